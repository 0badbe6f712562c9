"""Save checkpoints atomically, and load them after verifying every byte, without running code from the file.

A file is an archive that `torch.load` reads, followed by a trailer with the SHA-256 of the archive. It holds tensors
and plain data only. Bare weights are read too, including .safetensors. Knows files; knows no model, no console.
"""

import io
import logging
import re
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from dltrain.checkpoints import archive, content_check, foreign_files
from dltrain.checkpoints.pickle_reader import UnsafePickle
from dltrain.runtime import atomic_files
from dltrain.runtime.errors import ConfigError, InputError, first_line
from dltrain.runtime.folders import expand_user

log = logging.getLogger(__name__)

FORMAT = 2
LAST = Path("checkpoints", "last.pt")


class DamagedFile(InputError):
    """The bytes of a file are not those that were written."""


def save(path: Path, content: dict[str, Any], *, keep: int = 1, check: bool = False) -> None:
    """Write a checkpoint and keep the `keep - 1` before it: last-1.pt is the one that last.pt replaced.

    Nothing is deleted before the new file is complete and in place. Raises OutputError if that fails, and with
    `check` ConfigError for content that could not be loaded again.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT} | content, buffer)
    if check:
        _require_readable(buffer, content)
    body = buffer.getbuffer()
    with atomic_files.output_errors(path, len(body)):
        held = atomic_files.keep_link(path) if keep > 1 else None
        try:
            atomic_files.atomic_write(path, body, archive.trailer(body))
            if held is not None:
                for number in reversed(_numbers(path)):  # not up to `keep`, which may be any number
                    if 1 <= number < keep - 1:
                        atomic_files.rename(_previous(path, number), _previous(path, number + 1))
                atomic_files.rename(held, _previous(path, 1))
        finally:
            if held is not None:
                held.unlink(missing_ok=True)


def _require_readable(buffer: io.BytesIO, content: dict[str, Any]) -> None:
    """Raise ConfigError for content that `load` would refuse."""
    try:
        archive.read(buffer, len(buffer.getbuffer()))
        problem = content_check.validation_error(content)
    except UnsafePickle as error:
        problem = str(error)
    if problem:
        raise ConfigError(
            f"a checkpoint of this run could not be loaded again: {problem}\n"
            "The model, the optimizer or the data has a state that is not made only of tensors and plain values"
        )


def load(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint, tensors on the CPU. Raises InputError for a missing, damaged or other one."""
    content = _read(path)
    if not isinstance(content, dict) or "model" not in content or "config" not in content:
        raise InputError(f"{path}: not a checkpoint of dltrain. Bare weights can be used with init={path}")
    found = content.get("format")
    if type(found) is not int or found != FORMAT:  # in a foreign file it may be a tensor, or text of many lines
        text = " ".join(str(found).split())[:40]
        is_newer = type(found) is int and found > FORMAT
        advice = "Install a newer dltrain" if is_newer else f"Its weights can be used in a new run: init={path}"
        raise InputError(f"{path}: a checkpoint of format {text}; this dltrain reads format {FORMAT}. {advice}")
    if problem := content_check.validation_error(content):
        raise InputError(f"{path}: not a checkpoint of dltrain, or altered by hand: {problem}")
    return content


def load_newest(path: Path) -> tuple[Path, dict[str, Any]]:
    """Return the path and content of a checkpoint; if it is missing or damaged, of the newest intact one before it.

    Damaged files are renamed, so that they never replace a good one later: the caller must hold the run's lock.
    """
    failure = InputError(f"{path}: no such file")
    damaged = []
    for candidate in _with_previous(path):
        try:
            content = load(candidate)
        except DamagedFile as damage:
            log.warning("%s", damage)
            damaged.append(candidate)
            failure = damage
            continue
        if candidate != path:
            log.warning("%s cannot be used: continuing from the one before, %s", path, candidate)
        with atomic_files.output_errors(path):
            for other in damaged:
                other.replace(other.with_name(f"{other.name}.damaged"))
        return candidate, content
    raise failure


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Return the weights of a checkpoint, with the description of its data, or bare ones. Raises InputError."""
    content = _read(path)
    if isinstance(content, dict):
        key = foreign_files.weights_key(content, Tensor, path)
        weights = content if key is None else content[key]
        if tensors := {name: w for name, w in weights.items() if isinstance(name, str) and isinstance(w, Tensor)}:
            is_ours = "config" in content and not content_check.validation_error(content)
            if key is not None and not is_ours:
                log.info("init: took the weights under '%s'", key)
            return tensors, content["data"] if is_ours else None
    raise InputError(f"{path}: holds no weights; expected a checkpoint or a state dict")


def find(path: Path, name: str) -> Path:
    """Return the file that a path means: itself, or `name` in a checkpoints/ or run folder. Raises InputError."""
    path = expand_user(path)
    if path.is_file():
        return path
    for candidate in (path / name, path / "checkpoints" / name):
        if _with_previous(candidate):
            return candidate
    if name == "best.pt" and (last := next(filter(_with_previous, (path / "last.pt", path / LAST)), None)):
        log.warning("%s: has no best.pt (not evaluated yet?); taking last.pt", path)
        return last
    if path.exists():
        raise InputError(f"{path}: expected checkpoints/{name} in it, found none. Is it the folder of a run?")
    raise InputError(f"{path}: no such file or folder")


def _previous(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def _with_previous(path: Path) -> list[Path]:
    """Return the existing files among a checkpoint and the ones before it, newest first."""
    older = [_previous(path, number) for number in _numbers(path)]
    return [candidate for candidate in (path, *older) if candidate.is_file()]


def _numbers(path: Path) -> list[int]:
    """Return the numbers of the checkpoints before one: 1 for last-1.pt."""
    numbered = re.compile(re.escape(path.stem) + r"-(0|[1-9][0-9]*)" + re.escape(path.suffix))
    matches = (numbered.fullmatch(other.name) for other in path.parent.glob(f"{path.stem}-*"))
    return sorted(int(match[1]) for match in matches if match)


def _read(path: Path) -> Any:
    """Load a file of verified digest that holds only tensors and plain values. Raises DamagedFile or InputError."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            # Only tensors: a length, names in JSON, bytes. Some have the suffix of torch's files.
            if path.suffix == ".safetensors" or file.peek(10)[8:10] == b'{"':
                return safetensors.torch.load(file.read())
            size, digest = archive.verified_size(file)
            content = archive.read(file, size)
            if digest is None and isinstance(content, dict) and content.get("format") not in (None, 1):  # 1 had none
                raise UnsafePickle("its end, which holds the SHA-256, is missing or altered")
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:  # the disk's or the network's, perhaps for a moment: no reason to take an older file
        advice = "Change its permissions" if isinstance(error, PermissionError) else "Try again, or take another"
        raise InputError(f"{path}: could not be read ({error.strerror or error}). {advice}") from error
    except Exception as error:  # torch raises nearly anything
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            raise InputError(f"{path}: there is not enough memory to read it") from error
        raise DamagedFile(foreign_files.refusal(path, first_line(error))) from error
