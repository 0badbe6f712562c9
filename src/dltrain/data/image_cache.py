"""Decoded pictures, kept in a file so that the next start need not decode them again.

The file lies in the person's own folder for such things and may be deleted at any time. One that is cut, altered or
from other pictures counts as none. It holds tensors and texts alone.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dltrain.runtime import atomic_files, torchrun
from dltrain.runtime.errors import UserError
from dltrain.runtime.folders import expand_user, safe_name

log = logging.getLogger(__name__)

SPARE = 10  # times as much as they take must be free on the disk


class DecodedImages(NamedTuple):
    """uint8 pictures (N, C, H, W) of the files that can be read, and why others cannot, by their place."""

    images: Tensor
    left_out: dict[int, str]


def cache_path(name: str, *what: object) -> Path | None:
    """Where pictures made from `what` are kept: below DLTRAIN_CACHE, or ~/.cache/dltrain; None where it is empty."""
    chosen = os.environ.get("DLTRAIN_CACHE")
    if chosen == "":
        return None
    digest = hashlib.sha256(repr(what).encode(errors="surrogateescape")).hexdigest()[:16]
    try:
        base = expand_user(chosen or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "dltrain")
    except UserError:  # a user without a home
        return None
    return base / f"{safe_name(name)}-{digest}.safetensors"


def fingerprint(root: Path, paths: list[str], *what: object) -> str:
    """A digest that changes when a file is added, taken away, renamed or written, or `what` is another."""
    digest = hashlib.sha256(repr(what).encode())
    before = len(str(root / "x")) - 1  # of the current folder it is 0
    for path in paths:
        found = os.stat(path)  # noqa: PTH116  (ten thousand Paths take a tenth of a second)
        digest.update(b"%s\0%d\0%d\0" % (os.fsencode(path[before:]), found.st_size, found.st_mtime_ns))
    return digest.hexdigest()


def read(path: Path, key: str) -> DecodedImages | None:
    """What was kept there under this fingerprint, unless it has been altered since."""
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata()
            if about["key"] != key:
                return None
            images: Tensor = file.get_tensor("images").clone()  # not the file's pages: it may be replaced
        if about["digest"] != _digest(images, about["left_out"]):
            log.info("%s was altered: pictures are decoded again", path)
            return None
        return DecodedImages(images, {int(place): why for place, why in json.loads(about["left_out"]).items()})
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def write(path: Path, key: str, decoded: DecodedImages) -> None:
    """Write them, whole or not at all; where that cannot be, the next start decodes again."""
    left_out = json.dumps(decoded.left_out)
    about = {"key": key, "left_out": left_out, "digest": _digest(decoded.images, left_out)}
    temporary = atomic_files.temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if torchrun.processes().rank or shutil.disk_usage(path.parent).free < SPARE * decoded.images.nbytes:
            return
        # Not by durable.replace: bytes would be another copy in memory, and what a power cut spoils the sum tells.
        safetensors.torch.save_file({"images": decoded.images}, temporary, about)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        log.info("decoded pictures are not kept: %s", error)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _digest(images: Tensor, left_out: str) -> str:
    digest = hashlib.sha256(left_out.encode())
    digest.update(images.numpy().data)
    return digest.hexdigest()
