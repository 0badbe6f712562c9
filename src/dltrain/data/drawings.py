"""A drawing on paper brought to the form of the pictures that a network knows: its negative, in the middle.

Knows pictures in memory; knows no files, no network.
"""

from collections.abc import Sequence

import numpy
from PIL import Image, ImageOps

from dltrain.runtime.errors import ConfigError

DARK, LIGHT = 1 / 3, 2 / 3  # mean brightness of pictures: MNIST 0.13, Fashion-MNIST 0.29, CIFAR-10 0.47
BOX = 20 / 28  # MNIST's digits were scaled into 20x20 of 28x28 pixels (LeCun et al., 1998)
LARGEST = 1024  # pixels of a side that are looked at: strokes are wide, and memory is not
FAINTEST = 32  # levels between paper and ink; less is a blank page
INK = 0.25  # share of the strongest ink that is no smudge and no noise of a camera
BLANK_EDGE = 0.9  # share of the edge that is paper, in a drawing


def knows_dark(mean: Sequence[float]) -> bool:
    """Whether a network was trained on light things in the dark, by the mean (0..1) of each channel.

    Raises ConfigError for a mean that tells nothing.
    """
    average = sum(mean) / len(mean)
    if 0 < average < DARK:
        return True
    if LIGHT < average < 1:
        return False
    raise ConfigError(
        f"invert=auto: the mean of the training's pictures, {average:.2f}, is neither dark nor light. "
        "Set invert=true or invert=false"
    )


def is_dark(picture: Image.Image) -> bool:
    """Whether the paper is dark: the median of a picture's edge."""
    return bool(numpy.median(_edge(_levels(picture))) < 128)


def inverted(picture: Image.Image) -> Image.Image:
    """The negative of a picture in L or RGB."""
    return ImageOps.invert(picture)


def centered(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A drawing as MNIST's digits are: paper and ink black and white, in a box of 20/28, centred by its mass.

    In `size` (height, width) and the picture's mode. A blank page, and a picture with no blank edge, stay as they are:
    that is no drawing.
    """
    if not is_dark(picture):
        return inverted(centered(inverted(picture), size))
    small = picture.copy()
    small.thumbnail((LARGEST, LARGEST))
    levels = _levels(small)
    paper, lightest = float(numpy.median(_edge(levels))), float(levels.max())
    ink = (levels - paper) / max(lightest - paper, 1) > INK
    if lightest - paper < FAINTEST or numpy.mean(~_edge(ink)) < BLANK_EDGE:
        return picture
    rows, columns = (numpy.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
    box = small.crop((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
    scale = BOX * min(size) / max(box.size)
    width, height = (max(1, round(scale * side)) for side in box.size)
    scaled = box.resize((width, height), Image.Resampling.BILINEAR)
    # After the scaling, in which thin strokes have become grey.
    mass = (_levels(scaled) - paper).clip(0)
    strongest = max(float(mass.max()), 1.0)
    levels_of = [round(min(max(0.0, level - paper) * 255 / strongest, 255)) for level in range(256)]
    scaled = scaled.point(levels_of * len(scaled.getbands()))
    # The mass of MNIST's digits lies at pixel 14 of 28, counted from 0: measured, 13.99 and 14.01.
    left, top = (
        round(min(max(0.0, whole / 2 - middle), whole - side))
        for whole, side, middle in zip(reversed(size), (width, height), _middle(mass), strict=True)
    )
    canvas = Image.new(picture.mode, (size[1], size[0]))
    canvas.paste(scaled, (left, top))
    return canvas


def _levels(picture: Image.Image) -> numpy.ndarray:
    """Brightness (H, W), 0..255."""
    return numpy.asarray(picture.convert("L"), dtype=numpy.float32)


def _edge(levels: numpy.ndarray) -> numpy.ndarray:
    """The outermost pixels."""
    return numpy.concatenate([levels[0], levels[-1], levels[:, 0], levels[:, -1]])


def _middle(mass: numpy.ndarray) -> tuple[float, float]:
    """Centre of mass, column and row."""
    total = max(float(mass.sum()), 1.0)
    return (
        float((mass.sum(axis=0) * numpy.arange(mass.shape[1])).sum()) / total,
        float((mass.sum(axis=1) * numpy.arange(mass.shape[0])).sum()) / total,
    )
