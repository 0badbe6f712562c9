"""Image files of any format, size and mode, found and decoded to tensors."""

import contextlib
import functools
import importlib.util
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from dltrain.data.image_search import HEIF

HAS_HEIF = importlib.util.find_spec("pillow_heif") is not None


class Unreadable(ValueError):
    """The system could not read the file; another try may succeed, unlike for a damaged one."""


@functools.cache
def _formats(heif: bool) -> list[str]:
    """Return Pillow's names of the formats that are read; others, such as EPS, would start other programs."""
    Image.init()
    if heif and not HAS_HEIF:
        raise ValueError("HEIC: needs pillow-heif; in dltrain's checkout: pip install '.[heic]'")
    if heif:
        import pillow_heif

        pillow_heif.register_heif_opener()
    wanted = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", *(["HEIF"] if heif else []))
    return [name for name in wanted if name in Image.OPEN]


@contextlib.contextmanager
def without_pillow_warnings() -> Iterator[None]:
    """Silence Pillow's warnings about odd files. Use it around threads, not in them: warning filters are global."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def decode(path: str | Path, *, channels: int, size: tuple[int, int], fit: str) -> Tensor:
    """Decode an image file to uint8 (C, H, W) of `size` (H, W). Raises ValueError as `open_image` does."""
    return resized(open_image(path, channels=channels), size=size, fit=fit)


def open_image(path: str | Path, *, channels: int) -> Image.Image:
    """Open an image as L or RGB: its first frame, upright, with transparent parts on white.

    Raises ValueError with a short reason for a file that is damaged or no image.
    """
    try:
        # As a file: given a path, Pillow 13 maps some rotated TIFFs into memory and mixes up their pixels.
        with (
            Path(path).open("rb") as file,
            Image.open(file, formats=_formats(bool(HEIF.match(file.read(32))))) as opened,
        ):
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
