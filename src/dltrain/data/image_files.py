"""Image files of any format, size and mode, found and decoded to tensors."""

import contextlib
import functools
import importlib.util
import math
import warnings
from pathlib import Path

import numpy
from PIL import Image, ImageOps, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor

from dltrain.data.image_search import HEIF
from dltrain.data.levels import DEEP_MODES, Levels, Spread, spread, to_bytes
from dltrain.data.splits import channels_first

HAS_HEIF = importlib.util.find_spec("pillow_heif") is not None
# Silences Pillow's warnings about odd files. Use it around threads, not in them: warning filters are global.
without_pillow_warnings = functools.partial(warnings.catch_warnings, action="ignore")


class Unreadable(ValueError):
    """The system could not read the file; another try may succeed, unlike for a damaged one."""


@functools.cache
def _formats(heif: bool) -> list[str]:
    """Return Pillow's names of the formats that are read; others, such as EPS, would start other programs."""
    Image.init()
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # 64 MB; texts and colour profiles may exceed 1 MB
    if heif and not HAS_HEIF:
        raise ValueError("HEIC: needs pillow-heif; in dltrain's checkout: pip install -e '.[heic]'")
    if heif:
        import pillow_heif

        pillow_heif.register_heif_opener()
    wanted = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", *(["HEIF"] if heif else []))
    return [name for name in wanted if name in Image.OPEN]


def decode(path: str | Path, *, channels: int, size: tuple[int, int], fit: str, levels: Levels = None) -> Tensor:
    """Decode an image file to uint8 (C, H, W) of `size` (H, W). Raises ValueError as `open_image` does."""
    return resized(open_image(path, channels=channels, levels=levels), size=size, fit=fit)


def open_image(path: str | Path, *, channels: int, levels: Levels = None) -> Image.Image:
    """Open an image as L or RGB: its first frame, upright, with transparent parts on white.

    `levels` become 0 and 255 in one of more than 8 bits, see levels.py. Raises ValueError for a file that is no image.
    """
    try:
        # As a file: given a path, Pillow 13 maps some rotated TIFFs into memory and mixes up their pixels.
        with (
            Path(path).open("rb") as file,
            Image.open(file, formats=_formats(bool(HEIF.match(file.read(32))))) as opened,
        ):
            if opened.width * opened.height > (most := Image.MAX_IMAGE_PIXELS or math.inf):
                raise ValueError(f"{opened.width}x{opened.height} pixels, at most {most:,} are read: shrink it first")
            ImageOps.exif_transpose(opened, in_place=True)  # a copy would make other threads wait
            return flatten(opened, channels, levels)
    except UnidentifiedImageError:
        raise ValueError(_unidentified(path)) from None
    except Exception as error:  # decoders raise nearly anything on damaged input
        kind = Unreadable if isinstance(error, OSError) and error.errno is not None else ValueError
        raise kind((" ".join(str(error).split()) or type(error).__name__)[:120]) from None


def _unidentified(path: str | Path) -> str:
    """Return why Pillow cannot open a file: it may be a TIFF of many bands or of wide numbers."""
    with contextlib.suppress(Exception), Path(path).open("rb") as file:
        tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(tags.next)
        tags.load(file)
        bands, bits, kind = tags.get(277, 1), tags[258][0], "float" if 3 in tags.get(339, ()) else "int"
        return f"a {bands}-band TIFF of {kind}{bits}: Pillow cannot read it; convert it to grey or RGB of 8 bits"
    return "not an image, or damaged at its beginning"


def deep_spread(path: str | Path) -> Spread | None:
    """Return the spread of the numbers of an image of more than 8 bits; None for other and unreadable files."""
    with contextlib.suppress(Exception), Image.open(path, formats=["PNG", "TIFF", "PPM"]) as opened:
        if opened.mode in DEEP_MODES:
            return spread(numpy.asarray(opened, dtype=numpy.float64), opened.mode)
    return None


def resized(image: Image.Image, *, size: tuple[int, int], fit: str) -> Tensor:
    """Resize an image to uint8 (C, H, W); `fit` is `resize`, which may distort, or `crop`, which cuts the sides off."""
    resize = ImageOps.fit if fit == "crop" else Image.Image.resize
    return channels_first(resize(image, (size[1], size[0]), Image.Resampling.BILINEAR)).contiguous()


def flatten(image: Image.Image, channels: int, levels: Levels) -> Image.Image:
    """Convert an image of any mode to L or RGB, with transparent parts on white."""
    if image.mode in DEEP_MODES:  # Pillow would clip these at 255
        image = Image.fromarray(to_bytes(numpy.asarray(image, dtype=numpy.float64), image.mode, levels))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return (image.convert("RGB") if image.mode == "LAB" else image).convert("RGB" if channels == 3 else "L")
