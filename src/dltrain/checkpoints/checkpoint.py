"""Checkpoints: written whole or not at all, verified byte by byte before they are read, read without running code.

A file is torch's archive, which `torch.load` reads, and behind it a trailer with the SHA-256 of the archive. It holds
tensors and plain data only. Bare weights are read too, also as .safetensors. Knows files; knows no model, no console.
"""

import io
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from dltrain.checkpoints import archive, content_check
from dltrain.checkpoints.pickle_reader import UnsafePickle
from dltrain.runtime import atomic_files
from dltrain.runtime.errors import ConfigError, InputError, first_line
from dltrain.runtime.folders import expand_user

log = logging.getLogger(__name__)

FORMAT = 2
LAST = Path("checkpoints", "last.pt")


class DamagedFile(InputError):
    """A file whose bytes are not those that were written."""


def save(path: Path, content: dict[str, Any], *, keep: int = 1, check: bool = False) -> None:
    """Write a checkpoint; of those it replaces, `keep - 1` stay beside it: last-1.pt is the one before last.pt.

    Nothing is deleted before the new file is whole and in its place. Raises OutputError where that fails, and with
    `check` ConfigError for content that could not be read again.
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
                        _previous(path, number).replace(_previous(path, number + 1))
                held.replace(_previous(path, 1))
        finally:
            if held is not None:
                held.unlink(missing_ok=True)


def _require_readable(buffer: io.BytesIO, content: dict[str, Any]) -> None:
    try:
        archive.read(buffer, len(buffer.getbuffer()))
        problem = content_check.validation_error(content)
    except UnsafePickle as error:
        problem = str(error)
    if problem:
        raise ConfigError(
            f"a checkpoint of this run could not be read again: {problem}\n"
            "The model, the optimizer or the data has what no checkpoint may hold: tensors and plain values alone"
        )


def load(path: Path) -> dict[str, Any]:
    """A checkpoint's content, tensors on the CPU. Raises InputError where it is missing, damaged or of another kind."""
    content = _read(path)
    if not isinstance(content, dict) or "model" not in content or "config" not in content:
        raise InputError(f"{path}: not a checkpoint of dltrain. Bare weights can be used with init={path}")
    while type(number := content.get("format")) is int and number in UPGRADES:
        content = UPGRADES[number](content)
    if type(number) is not int or number != FORMAT:  # a stranger's may be a tensor, or text of many lines
        told = " ".join(str(number).split())[:40]
        raise InputError(f"{path}: format {told}, this dltrain reads {FORMAT}. Install a newer one")
    if problem := content_check.validation_error(content):
        raise InputError(f"{path}: not a checkpoint of dltrain, or altered by hand: {problem}")
    return content


def load_newest(path: Path) -> tuple[Path, dict[str, Any]]:
    """The content of a checkpoint, or where that is missing or damaged of the newest one before it; and which it was.

    What is damaged is renamed, so that it does not take the place of a good one later: only for who holds the lock.
    """
    fault = InputError(f"{path}: no such file")
    damaged = []
    for candidate in _with_previous(path):
        try:
            content = load(candidate)
        except DamagedFile as error:
            log.warning("%s", error)
            damaged.append(candidate)
            fault = error
            continue
        if candidate != path:
            log.warning("%s cannot be used: going on from the one before, %s", path, candidate)
        with atomic_files.output_errors(path):
            for other in damaged:
                other.replace(other.with_name(f"{other.name}.damaged"))
        return candidate, content
    raise fault


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The weights in a checkpoint, in a .safetensors file, or in a bare state dict as torch saves it.

    And of a checkpoint what it knows of the data it was trained on.
    """
    weights = content = _read(path)
    if isinstance(content, dict):
        for key in ("averages", "model", "state_dict", "model_state_dict"):  # the first are what was validated
            if isinstance(content.get(key), dict):
                weights = content[key]
                break
        named = {key: value for key, value in weights.items() if isinstance(key, str)}
        if tensors := {key: value for key, value in named.items() if isinstance(value, Tensor)}:
            return tensors, content["data"] if "config" in content and not content_check.validation_error(
                content
            ) else None
    raise InputError(f"{path}: holds no weights; expected a checkpoint or a state dict")


def find(path: Path, name: str) -> Path:
    """A checkpoint file, given itself, a checkpoints/ folder or a run folder."""
    path = expand_user(path)
    if path.is_file():
        return path
    for candidate in (path / name, path / "checkpoints" / name):
        if _with_previous(candidate):
            return candidate
    if name == "best.pt" and (last := next(filter(_with_previous, (path / "last.pt", path / LAST)), None)):
        log.warning("%s: has no best.pt yet, as of a run that was killed early; taking last.pt", path)
        return last
    if path.exists():
        raise InputError(f"{path}: expected checkpoints/{name} in it, found none. Is it the folder of a run?")
    raise InputError(f"{path}: no such file or folder")


def _previous(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def _with_previous(path: Path) -> list[Path]:
    """Those that are there of a checkpoint and the ones before it, the newest first."""
    older = [_previous(path, number) for number in _numbers(path)]
    return [candidate for candidate in (path, *older) if candidate.is_file()]


def _numbers(path: Path) -> list[int]:
    """Of the checkpoints before one that are there."""
    numbered = re.compile(re.escape(path.stem) + r"-(0|[1-9][0-9]*)" + re.escape(path.suffix))
    matches = (numbered.fullmatch(other.name) for other in path.parent.glob(f"{path.stem}-*"))
    return sorted(int(match[1]) for match in matches if match)


def _read(path: Path) -> Any:
    """What a file holds, once its digest is right and nothing in it is more than it should be."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            if path.suffix == ".safetensors":  # plain tensors alone: a length, names in JSON, bytes
                return safetensors.torch.load(file.read())
            size, digest = archive.verified_size(file)
            seen = archive.read(file, size)
            if digest is None and isinstance(seen, dict) and seen.get("format") not in (None, 1):
                raise UnsafePickle("its end, which holds the SHA-256, is missing or altered")
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise InputError(f"{path}: could not be read ({error.strerror}). Change its rights") from error
    except OSError as error:  # of a disk or a network, perhaps for a moment: no reason to take an older one
        raise InputError(
            f"{path}: could not be read ({error.strerror or error}). Try again, or take another"
        ) from error
    except UnsafePickle as error:
        raise DamagedFile(f"{path}: no checkpoint, or a damaged one: {error}. Take another") from error
    except Exception as error:  # torch raises nearly anything
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            raise InputError(f"{path}: there is too little memory to read it") from error
        raise DamagedFile(f"{path}: no checkpoint, or a damaged one: {first_line(error)}. Take another") from error


def _from_1(content: dict[str, Any]) -> dict[str, Any]:
    """Format 1 had no digest, knew less of where it was made, and had two keys less in its config."""
    environment = {**_dict(content.get("versions")), **_dict(content.get("runtime"))}
    config = {"keep": 1, "on_nonfinite": "stop"} | _dict(content["config"])
    return content | {"format": 2, "environment": environment, "digests": {}, "faults": None, "config": config}


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1}
