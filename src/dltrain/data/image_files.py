"""Image files of any format, size and mode, found and decoded to tensors."""

import contextlib
import functools
import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from dltrain.runtime.errors import InputError


class Unreadable(ValueError):
    """The system could not read the file; another try may succeed, unlike for a damaged one."""


EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".avif")


@functools.cache
def _formats() -> list[str]:
    """Return Pillow's names of the formats above; others, such as EPS, would start other programs."""
    Image.init()
    wanted = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
    return [name for name in wanted if name in Image.OPEN]


@contextlib.contextmanager
def without_pillow_warnings() -> Iterator[None]:
    """Silence Pillow's warnings about odd files. Use it around threads, not in them: warning filters are global."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def find_images(folder: str | Path) -> list[str]:
    """Return the image files below a folder, sorted by the parts of their paths; hidden files and folders are skipped.

    Returns texts, as Paths would take ten times as long. Raises InputError for a folder that cannot be read.
    """
    return sorted(_below(folder), key=lambda path: path.split(os.sep))  # noqa: PTH206


def _below(folder: str | Path) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            children = list(entries)
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from error
    for entry in children:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _below(entry.path)
        # For a broken or circular link Path.is_file() is False; an entry's own is_file() raises.
        elif entry.name.lower().endswith(EXTENSIONS) and (Path(entry.path) if entry.is_symlink() else entry).is_file():
            yield entry.path


def decode(path: str | Path, *, channels: int, size: tuple[int, int], fit: str) -> Tensor:
    """Decode an image file to uint8 (C, H, W) of `size` (H, W). Raises ValueError as `open_image` does."""
    return resized(open_image(path, channels=channels), size=size, fit=fit)


def open_image(path: str | Path, *, channels: int) -> Image.Image:
    """Open an image as L or RGB: its first frame, upright, with transparent parts on white.

    Raises ValueError with a short reason for a file that is damaged or no image.
    """
    try:
        # As a file: given a path, Pillow 13 maps some rotated TIFFs into memory and mixes up their pixels.
        with Path(path).open("rb") as file, Image.open(file, formats=_formats()) as opened:
            if opened.width * opened.height > (Image.MAX_IMAGE_PIXELS or math.inf):
                raise ValueError(f"{opened.width}x{opened.height} pixels, at most {Image.MAX_IMAGE_PIXELS} are allowed")
            upright = ImageOps.exif_transpose(opened)
            return _flatten(upright, "RGB" if channels == 3 else "L")
    except UnidentifiedImageError:
        raise ValueError("not an image, or damaged at its beginning") from None
    except Exception as error:  # decoders raise nearly anything on damaged input
        kind = Unreadable if isinstance(error, OSError) and error.errno is not None else ValueError
        raise kind((" ".join(str(error).split()) or type(error).__name__)[:120]) from None


def resized(image: Image.Image, *, size: tuple[int, int], fit: str) -> Tensor:
    """Resize an image in L or RGB; return it as uint8 (C, H, W).

    `fit` is `resize` (may distort) or `crop` (scale to cover `size`, then crop the centre).
    """
    width_height = size[1], size[0]
    if fit == "crop":
        image = ImageOps.fit(image, width_height, Image.Resampling.BILINEAR)
    else:
        image = image.resize(width_height, Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(numpy.array(image))
    return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def _flatten(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image of any mode to L or RGB."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        # PIL would clip these at 255: scale 16-bit levels (and floats in 0..1) to bytes instead.
        levels = numpy.asarray(image, dtype=numpy.float64)
        highest = levels.max(initial=0)
        top = 65535 if image.mode.startswith("I;16") or highest > 255 else 255
        if image.mode == "F" and highest <= 1:
            top = 1
        image = Image.fromarray((levels.clip(0, top) * (255 / top)).round().astype(numpy.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)
