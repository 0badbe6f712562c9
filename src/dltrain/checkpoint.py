"""Checkpoints: written whole or not at all, read without running code.

A checkpoint holds tensors and plain data only. Knows files; knows no model, no config, no console.
"""

import contextlib
import os
import secrets
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dltrain.errors import InputError, OutputError

FORMAT = 1


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint under a unique temporary name in the same folder, flush it to the disk, and rename it.

    Raises OutputError with the path where that fails; the file that was there before stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            torch.save({"format": FORMAT} | content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)  # the new name, too, must survive a power cut
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        raise OutputError(f"{path}: could not be written ({error}). Free the disk or change its rights") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def load(path: Path) -> dict[str, Any]:
    """A checkpoint's content, tensors on the CPU. Raises InputError where it is missing, damaged or of another kind."""
    content = _read(path)
    if not isinstance(content, dict) or "model" not in content or "config" not in content:
        raise InputError(f"{path}: not a checkpoint of dltrain. Bare weights can be used with init={path}")
    if content.get("format") != FORMAT:
        raise InputError(f"{path}: format {content.get('format')}, this dltrain reads {FORMAT}. Install a newer one")
    return content


def load_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint, or in a bare state dict such as `torch.save(model.state_dict(), path)`."""
    content = _read(path)
    if isinstance(content, dict):
        for key in ("model", "state_dict", "model_state_dict"):
            if isinstance(content.get(key), dict):
                content = content[key]
                break
        weights = {key: value for key, value in content.items() if isinstance(value, Tensor)}
        if weights:
            return weights
    raise InputError(f"{path}: holds no weights; expected a checkpoint or a state dict")


def find(path: Path, name: str) -> Path:
    """A checkpoint file, given itself, a checkpoints/ folder or a run folder."""
    path = path.expanduser()
    for candidate in (path, path / name, path / "checkpoints" / name):
        if candidate.is_file():
            return candidate
    if path.exists():
        raise InputError(f"{path}: expected checkpoints/{name} in it, found none. Is it the folder of a run?")
    raise InputError(f"{path}: no such file or folder")


def _read(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises nearly anything on damaged or hostile files
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise InputError(f"{path}: no checkpoint, or a damaged one ({reason}). Take another") from error
