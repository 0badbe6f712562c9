"""A cache of decoded images in a file, so that the next start need not decode them again.

The file lies in the user's cache folder and may be deleted at any time. A file that is truncated, altered or of
other images is ignored. It holds only tensors and texts.
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

from dltrain.data.levels import Levels
from dltrain.runtime import atomic_files, torchrun
from dltrain.runtime.errors import UserError
from dltrain.runtime.folders import expand_user, safe_name

log = logging.getLogger(__name__)

SPARE = 10  # write only if this many times the size of the images is free on the disk


class DecodedImages(NamedTuple):
    """uint8 images (N, C, H, W) of the readable files, and why others were left out, by their index in the list."""

    images: Tensor
    left_out: dict[int, str]
    levels: Levels = None  # by which images of more than 8 bits were decoded


def cache_path(name: str, *source: object) -> Path | None:
    """Return the file for images of a source, in DLTRAIN_CACHE or ~/.cache/dltrain; None if DLTRAIN_CACHE is empty."""
    chosen = os.environ.get("DLTRAIN_CACHE")
    if chosen == "":
        return None
    digest = hashlib.sha256(repr(source).encode(errors="surrogateescape")).hexdigest()[:16]
    try:
        base = expand_user(chosen or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "dltrain")
    except UserError:  # the user has no home folder
        return None
    return base / f"{safe_name(name)}-{digest}.safetensors"


def fingerprint(root: Path, paths: list[str], *settings: object) -> str:
    """Return a digest that changes if a file is added, removed, renamed or written, or `settings` change."""
    digest = hashlib.sha256(repr(settings).encode())
    prefix = len(str(root / "x")) - 1  # 0 for the current folder
    for path in paths:
        stat = os.stat(path)  # noqa: PTH116  (ten thousand Paths take a tenth of a second)
        # Two files of one size and time that swap their names differ in inode, and a rewritten one in ctime.
        numbers = (stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_ctime_ns)
        digest.update(b"%s\0%d\0%d\0%d\0%d\0" % (os.fsencode(path[prefix:]), *numbers))
    return digest.hexdigest()


def read(path: Path, key: str) -> DecodedImages | None:
    """Return the images cached under this fingerprint; None if there are none or the file was altered."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            if metadata["key"] != key:
                return None
            images: Tensor = file.get_tensor("images").clone()  # a copy, as the file may be replaced while it is mapped
        if metadata["digest"] != _digest(images, metadata["left_out"]):
            log.info("%s was altered: images are decoded again", path)
            return None
        left_out, levels = json.loads(metadata["left_out"])
        return DecodedImages(images, {int(index): why for index, why in left_out.items()}, levels)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def write(path: Path, key: str, decoded: DecodedImages) -> None:
    """Write the file, whole or not at all; if that fails, the next start decodes the images again."""
    left_out = json.dumps([decoded.left_out, decoded.levels])
    metadata = {"key": key, "left_out": left_out, "digest": _digest(decoded.images, left_out)}
    temporary = atomic_files.temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if torchrun.processes().rank or shutil.disk_usage(path.parent).free < SPARE * decoded.images.nbytes:
            return
        # Not atomic_write: its bytes would be another copy in memory, and the digest shows damage by a power loss.
        safetensors.torch.save_file({"images": decoded.images}, temporary, metadata)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        log.info("the decoded images could not be cached: %s", error)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _digest(images: Tensor, left_out: str) -> str:
    digest = hashlib.sha256(left_out.encode())
    digest.update(images.numpy().data)
    return digest.hexdigest()
