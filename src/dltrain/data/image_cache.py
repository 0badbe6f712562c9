"""A cache of decoded images in a file, so that the next start need not decode them again.

It may be deleted at any time, and is ignored if truncated, altered or of other images. It holds the images, a digest,
a text that identifies them, and the text's length.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from dltrain.data.levels import Levels
from dltrain.data.mapped_images import MappedImages
from dltrain.runtime import atomic_files
from dltrain.runtime.errors import UserError
from dltrain.runtime.folders import expand_user, safe_name

log = logging.getLogger(__name__)

DIGEST, LENGTH = 32, 4  # bytes


class DecodedImages(NamedTuple):
    """uint8 images (N, C, H, W) of the readable files, and why others were left out, by their index in the list."""

    images: Tensor
    left_out: dict[int, str]
    levels: Levels  # by which images of more than 8 bits were decoded


def cache_folder() -> Path | None:
    """Return DLTRAIN_CACHE or ~/.cache/dltrain; None if DLTRAIN_CACHE is empty or the user has no home folder."""
    chosen = os.environ.get("DLTRAIN_CACHE")
    try:
        default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "dltrain"
        return None if chosen == "" else expand_user(chosen or default)
    except UserError:
        return None


def cache_path(name: str, *source: object) -> Path | None:
    """Return the file for images of a source in the cache's folder; None if there is no such folder."""
    digest = hashlib.sha256(repr(source).encode(errors="surrogateescape")).hexdigest()[:16]
    folder = cache_folder()
    return folder and folder / f"{safe_name(name)}-{digest}.images"


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


def read(path: Path, key: str, shape: tuple[int, ...], *, mapped: bool) -> DecodedImages | None:
    """Return the images (N, *shape) cached under this fingerprint; None if there are none or the file was altered."""
    try:
        with path.open("rb") as file:
            file.seek(-LENGTH, os.SEEK_END)
            size = file.seek(-LENGTH - int.from_bytes(file.read(LENGTH)) - DIGEST, os.SEEK_END)
            expected, text = file.read(DIGEST), file.read()[:-LENGTH]
            if (known := json.loads(text))["key"] != key:
                return None
            # Read-only, as private pages for more than the memory are refused. Stays valid if the file is replaced.
            pixels = numpy.asarray(numpy.memmap(file, numpy.uint8, "r", shape=(size // math.prod(shape), *shape)))
        images = MappedImages(pixels, torch.arange(len(pixels))) if mapped else torch.from_numpy(pixels.copy())
        digest = hashlib.sha256((pixels if mapped else images.numpy()).data)
        digest.update(text)
        if digest.digest() != expected:
            log.info("%s was altered: images are decoded again", path)
            return None
        left_out, levels = known["left_out"]
        return DecodedImages(images, {int(index): why for index, why in left_out.items()}, levels)
    except (OSError, AttributeError, KeyError, TypeError, ValueError):
        return None


def write(path: Path, key: str, images: Iterable[Tensor], left_out: object, size: int) -> None:
    """Write the file, whole or not at all; not if the disk has less than `size` bytes, or if writing fails."""
    temporary = atomic_files.temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(path.parent).free < size:
            return
        with temporary.open("xb") as file:
            digest = hashlib.sha256()
            for image in images:
                digest.update(image.numpy().data)
                file.write(image.numpy().data)
            text = json.dumps({"key": key, "left_out": left_out}, default=str).encode()
            digest.update(text)
            file.write(digest.digest() + text + len(text).to_bytes(LENGTH))
        temporary.replace(path)  # not flushed to the disk: the digest shows damage by a power loss
    except OSError as error:
        log.info("the decoded images could not be cached: %s", error)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
