"""One picture file of any size and mode to a tensor."""

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
    """The system would not let a file be read: another time it may."""


EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".avif")


@functools.cache
def _formats() -> list[str]:
    """Pillow's names of the formats above: others, such as EPS, would start other programs."""
    Image.init()
    wanted = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
    return [name for name in wanted if name in Image.OPEN]


@contextlib.contextmanager
def without_pillow_warnings() -> Iterator[None]:
    """Keep Pillow's warnings about odd files from the screen; around threads, not in them: filters are global."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def find_images(folder: str | Path) -> list[str]:
    """Picture files below a folder, sorted by the parts of their paths; what begins with a dot is left out.

    Texts and not Paths, which take ten times as long for a folder of many. Raises InputError for one that is closed.
    """
    return sorted(_below(folder), key=lambda path: path.split(os.sep))  # noqa: PTH206


def _below(folder: str | Path) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from error
    for entry in found:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _below(entry.path)
        # Of a link that leads nowhere, or back to itself, a Path says that it is no file; an entry raises.
        elif entry.name.lower().endswith(EXTENSIONS) and (Path(entry.path) if entry.is_symlink() else entry).is_file():
            yield entry.path


def decode(path: str | Path, *, channels: int, size: tuple[int, int], fit: str) -> Tensor:
    """A picture file as uint8 (C, H, W): `open_image`, which raises ValueError, then `resized`."""
    return resized(open_image(path, channels=channels), size=size, fit=fit)


def open_image(path: str | Path, *, channels: int) -> Image.Image:
    """A picture in L or RGB: turned upright, its first frame, on white where it is transparent.

    Raises ValueError with a short reason for a file that is no picture or is damaged.
    """
    try:
        # By file: by path Pillow 13 maps some turned TIFFs into memory and mixes up their pixels.
        with Path(path).open("rb") as file, Image.open(file, formats=_formats()) as opened:
            if opened.width * opened.height > (Image.MAX_IMAGE_PIXELS or math.inf):
                raise ValueError(f"{opened.width}x{opened.height} pixels, at most {Image.MAX_IMAGE_PIXELS} are read")
            upright = ImageOps.exif_transpose(opened)
            return _flatten(upright, "RGB" if channels == 3 else "L")
    except UnidentifiedImageError:
        raise ValueError("no picture, or damaged at its beginning") from None
    except Exception as error:  # decoders raise nearly anything on damaged input
        kind = Unreadable if isinstance(error, OSError) and error.errno is not None else ValueError
        raise kind((" ".join(str(error).split()) or type(error).__name__)[:120]) from None


def resized(picture: Image.Image, *, size: tuple[int, int], fit: str) -> Tensor:
    """A picture in L or RGB as uint8 (C, H, W).

    `fit` is `resize` (the sides may be squeezed) or `crop` (scaled to cover `size`, then cut out of the middle).
    """
    width_height = size[1], size[0]
    if fit == "crop":
        picture = ImageOps.fit(picture, width_height, Image.Resampling.BILINEAR)
    else:
        picture = picture.resize(width_height, Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(numpy.array(picture))
    return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def _flatten(picture: Image.Image, mode: str) -> Image.Image:
    """Any mode to L or RGB."""
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        # PIL clips these at 255: bring 16-bit levels (and floats in 0..1) to bytes instead.
        levels = numpy.asarray(picture, dtype=numpy.float64)
        highest = levels.max(initial=0)
        top = 65535 if picture.mode.startswith("I;16") or highest > 255 else 255
        if picture.mode == "F" and highest <= 1:
            top = 1
        picture = Image.fromarray((levels.clip(0, top) * (255 / top)).round().astype(numpy.uint8))
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert(mode)
