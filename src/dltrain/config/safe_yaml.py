"""Read YAML files of unknown origin within limits of size, depth and aliases."""

import contextlib
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException

DEEPEST = 50
LONGEST = 1 << 20  # bytes of a YAML file
LARGEST = 10_000  # values of a config once its aliases are written out; dltrain's own have less than 100


class UnsafeConfig(HydraException):
    """Raised for a config that exceeds a limit or asks Hydra for what dltrain does not allow."""


class _Loader(yaml.BaseLoader):  # keeps aliases shared and does not merge <<
    depth = 0

    def compose_node(self, *place: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise UnsafeConfig(f"nested more than {DEEPEST} deep")
        node = super().compose_node(*place)
        self.depth -= 1
        return node


def read_yaml(path: Path) -> Any:
    """Return the values of a YAML file of unknown origin. Raises UnsafeConfig that names the file."""
    try:
        return yaml.safe_load(checked_yaml(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from None


def read_to_show(path: Path) -> Any:
    """Return the values of a YAML file that are only shown, by libyaml, which is eight times as fast; else `read_yaml`.

    Not of a file that Hydra then reads by PyYAML's own parser: a check must see what the parser after it sees.
    """
    with contextlib.suppress(yaml.YAMLError, OSError, ValueError, RecursionError):
        if path.is_file() and path.stat().st_size <= LARGEST:
            text, loader = path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
            depth = 0
            for event in yaml.parse(text, loader):
                depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
                if depth > DEEPEST or isinstance(event, yaml.AliasEvent):
                    break
            else:
                return loader(text).get_single_data()
    return read_yaml(path)


def checked_yaml(path: Path) -> str:
    """Return the text of a YAML file after checking its size, depth and aliases. Raises UnsafeConfig with the path."""
    try:
        if not path.is_file() or path.stat().st_size > LONGEST:
            raise UnsafeConfig(f"no file of at most {LONGEST:,} bytes")
        text = path.read_text(encoding="utf-8")
        refuse_bomb(_Loader(text).get_single_data())
        return text
    except (yaml.YAMLError, OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from None
    except UnsafeConfig as error:
        raise UnsafeConfig(f"{path}: {error}") from None


def _unreadable(path: Path, error: Exception) -> UnsafeConfig:
    return UnsafeConfig(f"{path}: cannot be read as YAML: {' '.join(str(error).split())[:300]}")


def refuse_bomb(value: Any) -> int:
    """Count values, shared ones each time. Raises UnsafeConfig if they are too many, or if one contains itself."""
    sizes: dict[int, float] = {}

    def size(node: Any) -> float:
        if not isinstance(node, dict | list):
            return 1
        if id(node) not in sizes:
            sizes[id(node)] = float("inf")  # until it is known: a node that is met again meanwhile contains itself
            parts = node.values() if isinstance(node, dict) else node
            sizes[id(node)] = 1 + sum(size(part) for part in parts)
        return sizes[id(node)]

    try:
        amount = size(value)
    except RecursionError:
        amount = float("inf")
    if amount > LARGEST:
        raise UnsafeConfig(f"its aliases stand for more than {LARGEST:,} values, or it is nested without end")
    return int(amount)
