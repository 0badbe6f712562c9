"""Read many image files: from the cache of decoded images, or else by decoding them."""

import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import PIL
import torch
from rich.progress import track
from torch import Tensor

from dltrain.data import image_cache, image_files
from dltrain.data.image_cache import DecodedImages
from dltrain.runtime.errors import InputError, listed

log = logging.getLogger(__name__)

LISTED_REASONS, LISTED_FILES = 4, 20  # on the console; in train.log, for each reason
Reasons = Iterable[tuple[str, str]]  # paths with the reason


def read_images(
    base: Path, paths: list[str], split: str, *, size: Sequence[int], channels: int, fit: str, left_out: Reasons = ()
) -> DecodedImages:
    """Decode the files of a split, or take them from the cache; what is left out is logged with its reason.

    Args:
        base: folder of the data set, which the log leaves out of paths: it may contain a secret from the environment
        paths: the files, below base
        size: height and width that every image is resized to
        left_out: files that the search for images has left out already, with the reason

    Raises InputError if no file can be read.
    """
    decode = partial(_try_decode, channels=channels, size=(size[0], size[1]), fit=fit)
    settings = (PIL.__version__, image_files.HAS_HEIF, decode.keywords)
    cache = image_cache.cache_path(base.name, base.absolute(), split, settings)
    key = image_cache.fingerprint(base, paths, settings)
    decoded = None if cache is None else image_cache.read(cache, key)
    source, may_cache = "from the cache", False
    if decoded is None:
        source = "decoded"
        decoded, may_cache = _decode_all(paths, decode, split)
    reasons = _log_left_out(base, [*left_out, *((paths[index], why) for index, why in decoded.left_out.items())])
    if not len(decoded.images):
        raise InputError(f"{base}: none of the {len(paths)} images of the {split} split can be read\n{reasons}")
    level = logging.WARNING if reasons else logging.INFO
    count = f"{len(decoded.images)} {'image' if len(decoded.images) == 1 else 'images'}"
    log.log(level, "%s: %s %s, %s", split, count, source, reasons or "no file left out")
    if may_cache and cache is not None:
        image_cache.write(cache, key, decoded)
    return decoded


def _log_left_out(base: Path, reasons: list[tuple[str, str]]) -> str:
    """Write the names of the files to the run's log; return how many were left out for which reason."""
    by_reason: dict[str, list[str]] = {}
    for path, why in reasons:
        by_reason.setdefault(re.sub(r"\d+", "…", why), []).append(os.path.relpath(path, base))
    parts = sorted(by_reason.items(), key=lambda part: -len(part[1]))
    for why, names in parts:
        log.debug("left out: %s (%s)", listed(sorted(names), LISTED_FILES), why)
    shown = listed([f"{len(names)} × {why}" for why, names in parts], LISTED_REASONS)
    return f"{len(reasons)} left out: {shown}" if reasons else ""


Decode = Callable[[str], Tensor | ValueError]


def _decode_all(paths: list[str], decode: Decode, split: str) -> tuple[DecodedImages, bool]:
    """Decode files in threads, as decoding releases the GIL; return the images, and True if no retry can add any."""
    with image_files.without_pillow_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(
            track(
                pool.map(decode, paths),
                description=f"reading {split}",
                total=len(paths),
                transient=True,
                disable=not os.isatty(1),
            )
        )
    images = [image for image in results if isinstance(image, Tensor)]
    left_out = {index: str(why) for index, why in enumerate(results) if isinstance(why, ValueError)}
    is_final = not any(isinstance(why, image_files.Unreadable) for why in results)
    return DecodedImages(torch.stack(images) if images else torch.empty(0), left_out), is_final


def _try_decode(path: str, *, channels: int, size: tuple[int, int], fit: str) -> Tensor | ValueError:
    try:
        return image_files.decode(path, channels=channels, size=size, fit=fit)
    except ValueError as error:
        return error
