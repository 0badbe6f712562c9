"""Read YAML files of unknown origin within limits of size, depth and aliases."""

from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException

DEEPEST = 50
LONGEST = 1 << 20  # bytes of a YAML file
LARGEST = 10_000  # values of a config once its aliases are written out; dltrain's own have less than 100


class UnsafeConfig(HydraException):
    """Raised for a config that exceeds a limit or asks Hydra for what dltrain does not allow."""


# libyaml is eight times as fast, which counts where 500 runs are compared; PyYAML may be built without it.
_BaseLoader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # makes texts only, and does not merge <<
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> Any:
    """Return the values of a YAML file of unknown origin. Raises UnsafeConfig that names the file."""
    text = checked_yaml(path)
    try:
        return _SafeLoader(text).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from None


def checked_yaml(path: Path) -> str:
    """Return the text of a YAML file after checking its size, depth and aliases. Raises UnsafeConfig with the path."""
    try:
        if not path.is_file() or path.stat().st_size > LONGEST:
            raise UnsafeConfig(f"no file of at most {LONGEST:,} bytes")
        text = path.read_text(encoding="utf-8")
        depth, has_aliases = 0, False
        for event in yaml.parse(text, Loader=_BaseLoader):  # before a loader in C could overflow its stack
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise UnsafeConfig(f"nested more than {DEEPEST} deep")
            has_aliases |= isinstance(event, yaml.AliasEvent)
        if has_aliases or len(text) > LARGEST:
            refuse_bomb(_BaseLoader(text).get_single_data())
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
