"""Read many image files: from the cache of decoded images, or else by decoding them."""

import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import PIL
import torch
from rich.progress import track
from torch import Tensor

from dltrain.data import image_cache, image_files
from dltrain.data.image_cache import DecodedImages
from dltrain.runtime.errors import InputError, OutputError
from dltrain.runtime.memory import free_memory

log = logging.getLogger(__name__)

ROOM, SPARE = 3, 10  # times their size that must be free: in memory, as dividing copies them; on the disk of the cache


def read_images(
    base: Path, paths: list[str], split: str, *, size: list[int], channels: int, fit: str, memory: bool | None = None
) -> DecodedImages:
    """Decode the files of a split, or take them from the cache; each file that cannot be read is logged.

    Args:
        base: folder of the data set, which the log leaves out of paths: it may contain a secret from the environment
        paths: the files, below base
        size: height and width that every image is resized to
        memory: true for images in memory, false for a mapped file, None for what their size suggests

    Raises InputError if no file can be read or the memory is too small, OutputError if the disk is.
    """
    shape = (channels, size[0], size[1])
    needed, free = len(paths) * math.prod(shape), free_memory()
    if memory and ROOM * needed > free:
        raise InputError(
            f"{base}: the {len(paths):,} images of the {split} split need {ROOM * needed / 1e9:,.1f} GB of memory, "
            f"{free / 1e9:,.1f} GB are free. Set data.memory=null to leave them in a file, or a smaller data.size"
        )
    is_mapped = memory is False or ROOM * needed > free
    decode = partial(_try_decode, channels=channels, size=(size[0], size[1]), fit=fit)
    settings = (PIL.__version__, decode.keywords)
    cache = image_cache.cache_path(base.name, base.absolute(), split, settings)
    key = image_cache.fingerprint(base, paths, settings)
    decoded = None if cache is None else image_cache.read(cache, key, shape, mapped=is_mapped)
    source = ("decoded" if decoded is None else "from the cache") + ", in a mapped file" * is_mapped
    if decoded is None:
        failures: dict[int, object] = {}
        images = _decode_all(paths, decode, split, 1 + (32 << 20) // math.prod(shape), failures)
        place = cache or Path(tempfile.gettempdir(), f"dltrain-{os.getpid()}.images")
        if is_mapped:
            image_cache.write(place, key, images, failures, needed)
            decoded = image_cache.read(place, key, shape, mapped=True)
            if decoded is None:
                raise OutputError(
                    f"{place.parent}: cannot hold {needed:,} bytes of images. Set DLTRAIN_CACHE elsewhere"
                )
        else:
            found = list(images)
            decoded = DecodedImages(torch.stack(found) if found else torch.empty(0), failures)
        is_final = cache and not any(isinstance(why, image_files.Unreadable) for why in failures.values())
        if is_mapped and not is_final:
            place.unlink(missing_ok=True)  # the images stay in it
        elif not is_mapped and is_final and found:
            image_cache.write(place, key, found, failures, SPARE * needed)
    for index, why in decoded.left_out.items():
        log.warning("left out %s: %s", Path(paths[index]).relative_to(base), why)
    count = len(decoded.images)
    log.info("%s: %d images %s, damaged files left out: %d", split, count, source, len(decoded.left_out))
    if not count:
        raise InputError(f"{base}: none of the {len(paths)} images of the {split} split can be read")
    return decoded


def _decode_all(
    paths: list[str], decode: Callable[[str], Tensor | ValueError], split: str, ahead: int, failures: dict[int, object]
) -> Iterator[Tensor]:
    """Yield the images of files and note why others have none; threads decode `ahead` at once, without the GIL."""
    with image_files.without_pillow_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        results = (result for at in range(0, len(paths), ahead) for result in pool.map(decode, paths[at : at + ahead]))
        shown = track(results, f"reading {split}", len(paths), transient=True, disable=not os.isatty(1))
        for index, result in enumerate(shown):
            if isinstance(result, Tensor):
                yield result
            else:
                failures[index] = result


def _try_decode(path: str, *, channels: int, size: tuple[int, int], fit: str) -> Tensor | ValueError:
    try:
        return image_files.decode(path, channels=channels, size=size, fit=fit)
    except ValueError as error:
        return error
