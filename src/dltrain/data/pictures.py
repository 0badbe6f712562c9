"""One picture file of any size and mode to a tensor."""

import warnings
from pathlib import Path

import numpy
import torch
from PIL import Image, ImageOps
from torch import Tensor

EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".avif"}


def find(folder: Path) -> list[Path]:
    """Picture files below a folder, sorted; what begins with a dot is left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in EXTENSIONS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def decode(path: Path, *, channels: int, size: tuple[int, int], fit: str) -> Tensor:
    """A picture as uint8 (C, H, W): turned upright, its first frame, on white where it is transparent.

    `fit` is `resize` (the sides may be squeezed) or `crop` (scaled to cover `size`, then cut out of the middle).
    Raises ValueError with a short reason for a file that is no picture or is damaged.
    """
    try:
        with warnings.catch_warnings(), Image.open(path) as opened:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            upright = ImageOps.exif_transpose(opened)
            picture = _flatten(upright, "RGB" if channels == 3 else "L")
    except Exception as error:  # decoders raise nearly anything on damaged input
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(reason.replace(f"'{path}'", "the file")[:120]) from None
    width_height = size[1], size[0]
    if fit == "crop":
        picture = ImageOps.fit(picture, width_height, Image.Resampling.BILINEAR)
    else:
        picture = picture.resize(width_height, Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(numpy.array(picture))
    return pixels.unsqueeze(0) if channels == 1 else pixels.permute(2, 0, 1).contiguous()


def _flatten(picture: Image.Image, mode: str) -> Image.Image:
    """Any mode to L or RGB."""
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        # PIL clips these at 255: bring 16-bit levels (and floats in 0..1) to bytes instead.
        levels = numpy.asarray(picture, dtype=numpy.float64)
        top = 65535 if levels.max(initial=0) > 255 else 1 if picture.mode == "F" and levels.max(initial=0) <= 1 else 255
        picture = Image.fromarray((levels.clip(0, top) * (255 / top)).round().astype(numpy.uint8))
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert(mode)
