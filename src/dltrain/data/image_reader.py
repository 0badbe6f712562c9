"""Read many image files: from the cache of decoded images, or else by decoding them."""

import itertools
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import PIL
import torch
from rich.progress import track
from torch import Tensor

from dltrain.data import image_cache, image_files
from dltrain.data.image_cache import DecodedImages
from dltrain.runtime import terminal
from dltrain.runtime.errors import InputError

log = logging.getLogger(__name__)
Result = TypeVar("Result")
READ_AHEAD = 64  # results that may wait, so that little memory is needed for many large images
LINE_SECONDS = 10.0  # between two lines without a terminal


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
    decode = partial(image_files.decode, channels=channels, size=(size[0], size[1]), fit=fit)
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


def _decode_all(paths: list[str], decode: Callable[[str], Tensor], split: str) -> tuple[DecodedImages, bool]:
    """Decode files in threads, as decoding releases the GIL; return the images, and True if no retry can add any."""
    with image_files.without_pillow_warnings():
        results = list(in_threads(decode, paths, f"reading {split}"))
    images = [image for image in results if isinstance(image, Tensor)]
    left_out = {index: str(why) for index, why in enumerate(results) if isinstance(why, ValueError)}
    is_final = not any(isinstance(why, image_files.Unreadable) for why in results)
    return DecodedImages(torch.stack(images) if images else torch.empty(0), left_out), is_final


def in_threads(read: Callable[[Any], Result], files: Sequence[Any], title: str) -> Iterator[Result | ValueError]:
    """Read files in threads, as decoding releases the GIL; yield the results or ValueErrors in order, with progress."""

    def attempt(file: Any) -> Result | ValueError:
        try:
            return read(file)
        except ValueError as error:
            return error

    has_bar, shown = terminal.is_interactive(sys.stdout), time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        submitted = (pool.submit(attempt, file) for file in files)
        waiting = deque(itertools.islice(submitted, READ_AHEAD))
        for count in track(range(len(files)), title, transient=True, disable=not has_bar):
            waiting.extend(itertools.islice(submitted, 1))
            yield waiting.popleft().result()
            if not has_bar and time.monotonic() > shown + LINE_SECONDS:
                shown = time.monotonic()
                log.info("%s: %d of %d", title, count + 1, len(files))
