"""Read many image files: from the cache of decoded images, or else by decoding them."""

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import PIL
import torch
from rich.progress import track
from torch import Tensor

from dltrain.data import image_cache, image_files
from dltrain.data.image_cache import DecodedImages
from dltrain.runtime.errors import InputError

log = logging.getLogger(__name__)


def read_images(
    base: Path, paths: list[str], split: str, *, size: Sequence[int], channels: int, fit: str
) -> DecodedImages:
    """Decode the files of a split, or take them from the cache; each file that cannot be read is logged.

    Args:
        base: folder of the data set, which the log leaves out of paths: it may contain a secret from the environment
        paths: the files, below base
        size: height and width that every image is resized to

    Raises InputError if no file can be read.
    """
    decode = partial(_try_decode, channels=channels, size=(size[0], size[1]), fit=fit)
    settings = (PIL.__version__, decode.keywords)
    cache = image_cache.cache_path(base.name, base.absolute(), split, settings)
    key = image_cache.fingerprint(base, paths, settings)
    decoded = None if cache is None else image_cache.read(cache, key)
    source, may_cache = "from the cache", False
    if decoded is None:
        source = "decoded"
        decoded, may_cache = _decode_all(paths, decode, split)
    for index, why in decoded.left_out.items():
        log.warning("left out %s: %s", Path(paths[index]).relative_to(base), why)
    count = len(decoded.images)
    log.info("%s: %d images %s, damaged files left out: %d", split, count, source, len(decoded.left_out))
    if not count:
        raise InputError(f"{base}: none of the {len(paths)} images of the {split} split can be read")
    if may_cache and cache is not None:
        image_cache.write(cache, key, decoded)
    return decoded


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
