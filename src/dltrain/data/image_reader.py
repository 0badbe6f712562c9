"""Read many image files: from the cache of decoded images, or else by decoding them."""

import functools
import itertools
import logging
import math
import os
import re
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import PIL
import torch
from rich.progress import track
from torch import Tensor

from dltrain.data import image_cache, image_files
from dltrain.data.image_cache import DecodedImages
from dltrain.data.levels import EACH_BY_ITSELF, Levels, choose
from dltrain.data.splits import rules
from dltrain.runtime import terminal
from dltrain.runtime.errors import ConfigError, InputError, OutputError, listed
from dltrain.runtime.memory import free_memory

log = logging.getLogger(__name__)
Result = TypeVar("Result")
READ_AHEAD = 64  # results that may wait, so that little memory is needed for many large images
LINE_SECONDS = 10.0  # between two lines without a terminal
LISTED_REASONS, LISTED_FILES = 4, 20  # on the console; in train.log, for each reason
ROOM, SPARE = 3, 10  # times their size that must be free: in memory, as dividing copies them; on the disk of the cache


def read_images(
    base: Path,  # folder of the data set, which the log leaves out of paths: it may contain a secret
    paths: list[str],  # the files, below base
    split: str,
    train: list[str],  # the training files, if the split is another
    size: list[int],  # height and width that every image is resized to
    channels: int,
    fit: str,
    range: Levels = None,  # of images of more than 8 bits, see levels.py; None for those of the training files
    memory: bool | None = None,  # true for images in memory, false for a mapped file, None for what their size suggests
    left_out: Iterable[tuple[str, str]] = (),  # files that the search for images has left out, with the reason
) -> DecodedImages:
    """Decode the files of a split, or take them from the cache; what is left out is logged with its reason.

    Raises InputError if no file can be read or the memory is too small, OutputError if the disk is.
    """
    if range is not None and range[0] >= range[1]:
        raise ConfigError(f"data.range={range}: the first number must be below the second")
    shape = (channels, size[0], size[1])
    needed, free = len(paths) * math.prod(shape), free_memory()
    if memory and ROOM * needed > free:
        raise InputError(
            f"{base}: the {len(paths):,} images of the {split} split need {ROOM * needed / 1e9:,.1f} GB of memory, "
            f"{free / 1e9:,.1f} GB are free. Set data.memory=null to leave them in a file, or a smaller data.size"
        )
    is_mapped = memory is False or ROOM * needed > free
    levels = EACH_BY_ITSELF if range is None and rules.get() < 2 else range
    decode = functools.partial(image_files.decode, channels=channels, size=(size[0], size[1]), fit=fit)
    settings = (PIL.__version__, image_files.HAS_HEIF, decode.keywords, levels)
    cache = image_cache.cache_path(base.name, base.absolute(), split, settings)
    key = image_cache.fingerprint(base, train + paths, settings)
    decoded = None if cache is None else image_cache.read(cache, key, shape, mapped=is_mapped)
    source = ("decoded" if decoded is None else "from the cache") + ", in a mapped file" * is_mapped
    if decoded is None:
        levels = levels or _find_levels(tuple(train or paths), image_cache.fingerprint(base, train or paths))
        failures: dict[int, ValueError] = {}
        images = _decode_all(paths, functools.partial(decode, levels=levels), split, failures)
        place = cache or Path(tempfile.gettempdir(), f"dltrain-{os.getpid()}.images")
        if is_mapped:
            image_cache.write(place, key, images, (failures, levels), needed)
            if (decoded := image_cache.read(place, key, shape, mapped=True)) is None:
                why = f"cannot hold {needed:,} bytes of images. Set DLTRAIN_CACHE elsewhere"
                raise OutputError(f"{place.parent}: {why}")
        else:
            found = list(images)
            reasons = {index: str(why) for index, why in failures.items()}
            decoded = DecodedImages(torch.stack(found) if found else torch.empty(0), reasons, levels)
        is_final = cache and not any(isinstance(why, image_files.Unreadable) for why in failures.values())
        if is_mapped and not is_final:
            place.unlink(missing_ok=True)  # the images stay in it
        elif not is_mapped and is_final and found:
            image_cache.write(place, key, found, (failures, levels), SPARE * needed)
    summary = _log_left_out(base, [*left_out, *((paths[index], why) for index, why in decoded.left_out.items())])
    if not len(decoded.images):
        raise InputError(f"{base}: none of the {len(paths)} images of the {split} split can be read\n{summary}")
    level = logging.WARNING if summary else logging.INFO
    count = f"{len(decoded.images)} {'image' if len(decoded.images) == 1 else 'images'}"
    log.log(level, "%s: %s %s, %s", split, count, source, summary or "no file left out")
    if range is None and decoded.levels not in (None, EACH_BY_ITSELF) and split == "train":
        log.info("deep images: values %g to %g become 0 to 255; data.range=[low,high] changes it", *decoded.levels)
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


@functools.lru_cache(maxsize=1)
def _find_levels(train: tuple[str, ...], fingerprint: str) -> Levels:
    """Return the levels of a data set by its training files; their fingerprint tells if they change."""
    with image_files.without_pillow_warnings():
        spreads = in_threads(image_files.deep_spread, train, "reading levels")
        return choose([spread for spread in spreads if isinstance(spread, tuple)])


def _decode_all(
    paths: list[str], decode: Callable[[str], Tensor], split: str, failures: dict[int, ValueError]
) -> Iterator[Tensor]:
    """Yield the images of files, and note why others have none."""
    with image_files.without_pillow_warnings():
        for index, result in enumerate(in_threads(decode, paths, f"reading {split}")):
            if isinstance(result, Tensor):
                yield result
            else:
                failures[index] = result


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
