"""Convert drawings on paper to the look of the training images: invert and centre them. Knows no files, no network."""

from collections.abc import Sequence

import numpy
from PIL import Image, ImageOps

from dltrain.runtime.errors import ConfigError

DARK, LIGHT = 1 / 3, 2 / 3  # mean brightness of images: MNIST 0.13, Fashion-MNIST 0.29, CIFAR-10 0.47
BOX = 20 / 28  # MNIST's digits were scaled into 20x20 of 28x28 pixels (LeCun et al., 1998)
LARGEST = 1024  # pixels of a side after downscaling: strokes are wide enough for it, and memory is limited
FAINTEST = 32  # least difference in levels between paper and ink; with less the page is blank
INK = 0.25  # fraction of the strongest ink; anything fainter is a smudge or camera noise
BLANK_EDGE = 0.9  # least fraction of the edge that is paper in a drawing


def knows_dark(mean: Sequence[float]) -> bool:
    """True if a network was trained on light objects on dark ground, by the means of its data. Raises ConfigError."""
    average = sum(mean) / len(mean)
    if 0 < average < DARK:
        return True
    if LIGHT < average < 1:
        return False
    problem = f"the mean of the training images, {average:.2f}, is neither dark nor light"
    raise ConfigError(f"invert=auto: {problem}. Set invert=true or invert=false")


def is_dark(image: Image.Image) -> bool:
    """True if the paper is dark, by the median of the image's edge."""
    return bool(numpy.median(_edge(_levels(image))) < 128)


def centered(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scale and centre a drawing as MNIST's digits are: black and white, in a box of 20/28, by its centre of mass.

    Returns it in `size` (height, width) and the image's mode. A blank page and an image without a blank edge are
    not drawings and are returned unchanged.
    """
    if not is_dark(image):
        return ImageOps.invert(centered(ImageOps.invert(image), size))
    small = image.copy()
    small.thumbnail((LARGEST, LARGEST))
    levels = _levels(small)
    paper, lightest = float(numpy.median(_edge(levels))), float(levels.max())
    ink = (levels - paper) / max(lightest - paper, 1) > INK
    if lightest - paper < FAINTEST or numpy.mean(~_edge(ink)) < BLANK_EDGE:
        return image
    rows, columns = (numpy.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
    box = small.crop((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
    scale = BOX * min(size) / max(box.size)
    width, height = (max(1, round(scale * side)) for side in box.size)
    scaled = box.resize((width, height), Image.Resampling.BILINEAR)
    # Contrast is stretched after scaling, which has made thin strokes grey.
    mass = (_levels(scaled) - paper).clip(0)
    strongest = max(float(mass.max()), 1.0)
    stretched = [round(min(max(0.0, level - paper) * 255 / strongest, 255)) for level in range(256)]
    scaled = scaled.point(stretched * len(scaled.getbands()))
    # The centre of mass of MNIST's digits is at pixel 14 of 28, counted from 0: measured, 13.99 and 14.01.
    left, top = (
        round(min(max(0.0, whole / 2 - middle), whole - side))
        for whole, side, middle in zip(reversed(size), (width, height), _middle(mass), strict=True)
    )
    canvas = Image.new(image.mode, (size[1], size[0]))
    canvas.paste(scaled, (left, top))
    return canvas


def _levels(image: Image.Image) -> numpy.ndarray:
    """Return the brightness (H, W), 0..255."""
    return numpy.asarray(image.convert("L"), dtype=numpy.float32)


def _edge(levels: numpy.ndarray) -> numpy.ndarray:
    """Return the outermost pixels."""
    return numpy.concatenate([levels[0], levels[-1], levels[:, 0], levels[:, -1]])


def _middle(mass: numpy.ndarray) -> list[float]:
    """Return the centre of mass: column, row."""
    total = max(float(mass.sum()), 1.0)
    return [float((along * numpy.arange(len(along))).sum()) / total for along in (mass.sum(0), mass.sum(1))]
