"""`dltrain inspect`: shows what a checkpoint contains, without torch and without building or running any of it."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from dltrain.checkpoints import archive, foreign_files
from dltrain.checkpoints.pickle_reader import TensorInfo, UnsafePickle
from dltrain.runtime.errors import ConfigError, InputError
from dltrain.runtime.folders import expand_user

SHOWN_WEIGHTS = 40
MOST_VALUES = 10_000  # of a config that is shown


def lines(path: Path) -> Iterator[str]:
    """Yield the description of a checkpoint or a bare state dict. Raises InputError for a file that cannot be read."""
    try:
        with path.open("rb") as file:
            size, digest = archive.verified_size(file)
            content = archive.read(file, size)
    except OSError as error:
        raise InputError(f"{path}: could not be read ({error.strerror})") from error
    except (UnsafePickle, ValueError) as error:
        if path.suffix == ".safetensors":
            raise InputError(f"{path}: bare weights, without a config. Use them with init={path}") from error
        raise InputError(foreign_files.refusal(path, str(error))) from error
    yield f"{path}, {size:,} bytes"
    yield f"digest       SHA-256 {digest}, verified" if digest else "digest       none: damage would not be noticed"
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}; expected a checkpoint or a state dict")
    is_ours = isinstance(content.get("config"), dict)
    key = "model" if is_ours else foreign_files.weights_key(content, TensorInfo, path)
    weights = content if key is None else content.get(key)
    where = "" if key is None else f" under '{key}'"
    yield f"kind         {_kind(content) if is_ours else f'weights{where}, not a checkpoint of dltrain'}"
    if is_ours:
        for key in ("environment", "data", "runtime"):
            if isinstance(node := content.get(key), dict):
                yield f"{key:<12} {_short(node)}"
        progress = content.get("progress")
        best = content.get("best") or (progress.get("best") if isinstance(progress, dict) else None)
        yield f"{'best':<12} {_short(best) if isinstance(best, dict) and best else 'none yet'}"
        yield from _custom_code(content["config"])
        yield from _config(content["config"])
    yield from _weights(weights if isinstance(weights, dict) else {})


def _kind(content: dict[str, Any]) -> str:
    is_last = "optimizer" in content
    use = f"last.pt, to resume from step {content.get('step')}" if is_last else "best.pt, for eval, predict and export"
    return f"checkpoint of format {content.get('format')}: {use}"


def _config(config: dict[str, Any]) -> Iterator[str]:
    if _values(config) > MOST_VALUES:
        yield f"config       more than {MOST_VALUES:,} values, not shown"
        return
    try:
        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    except yaml.YAMLError:  # a tensor where a plain value belongs
        yield "config       not made of plain values, not shown"
        return
    yield "config"
    yield from ("  " + line for line in text.splitlines())


def _values(node: Any) -> int:
    parts = node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ()
    return 1 + sum(map(_values, parts))


def _custom_code(config: dict[str, Any]) -> Iterator[str]:
    """Yield a line with what the config would import if it were trusted, if anything."""
    hooks = config.get("hooks")
    names = [node.get("name") for node in config.values() if isinstance(node, dict)]
    names += hooks if isinstance(hooks, list) else [hooks]
    if foreign := [str(name) for name in names if ":" in str(name) or "${" in str(name)]:
        yield f"{'custom code':<12} {', '.join(foreign)}: runs only with trust="


def _weights(weights: dict[Any, Any]) -> Iterator[str]:
    tensors = {str(key): value for key, value in weights.items() if isinstance(value, TensorInfo)}
    yield f"weights      {len(tensors)} tensors, {sum(math.prod(t.shape) for t in tensors.values()):,} numbers"
    for key, tensor in list(tensors.items())[:SHOWN_WEIGHTS]:
        yield f"  {key}  {tensor.dtype} {'x'.join(map(str, tensor.shape)) or 'one number'}"
    if len(tensors) > SHOWN_WEIGHTS:
        yield f"  … and {len(tensors) - SHOWN_WEIGHTS} more"


def _short(node: dict[Any, Any]) -> str:
    text = ", ".join(f"{key} {value}" for key, value in node.items())
    return text if len(text) <= 300 else text[:300] + " …"


def checked_path(arguments: list[str]) -> Path:
    """Return the checkpoint that the only argument names, with or without `ckpt=` before it. Raises UserError."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        flags = "".join(f"{it}: no such flag; " for it in arguments if it.startswith("-"))
        raise ConfigError(f"{flags}inspect needs one file: dltrain inspect outputs/DATE/TIME/checkpoints/best.pt")
    path = expand_user(arguments[0].removeprefix("ckpt="))
    for candidate in (path, path / "best.pt", path / "checkpoints" / "best.pt"):
        if candidate.is_file():
            return candidate
    raise InputError(f"{path}: no such checkpoint")
