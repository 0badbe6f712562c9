"""The numbers that become 0 and 255 in images of more than 8 bits: two for a whole data set."""

import numpy
from numpy.typing import NDArray

Levels = list[float] | None
Spread = tuple[bool, float, float, float]  # of an image: are they floats; lowest, highest without the top 1 %, highest

DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # of Pillow
EACH_BY_ITSELF = [-numpy.inf, numpy.inf]  # as commit 5bb6990 did: each image by its highest number
WHITES = (1, 255, 1023, 4095, 16383, 65535)  # of floats, and of 8 to 16 bits
OVERSHOOT = 1.25  # resampled and sharpened images exceed white by up to this factor, in at most 1 % of their pixels


def spread(numbers: NDArray[numpy.float64], mode: str) -> Spread:
    """Return what `choose` needs to know of an image in a deep mode."""
    finite = numpy.append(numbers[numpy.isfinite(numbers)], 0)
    return mode == "F", *(float(finite.min()), float(numpy.quantile(finite, 0.99, method="lower")), float(finite.max()))


def choose(spreads: list[Spread]) -> Levels:
    """Return the levels of a data set: of the fewest bits that hold its images. None if only some have floats."""
    if len({each[0] for each in spreads}) != 1:
        return None
    (is_float, *_), lows, usuals, highs = zip(*spreads, strict=True)
    low, usual, high = min(lows), max(usuals), max(highs)
    # Bytes use more than an eighth of their range: floats up to 3 are neither bytes nor from 0 to 1.
    whites = [white for white in WHITES[not is_float :] if white <= max(1 if is_float else 255, 8 * high)]
    white = next((white for white in whites if usual <= white and high <= OVERSHOOT * white), high)
    # Numbers far below zero mark missing values, such as -9999.
    return [low if -OVERSHOOT * white <= low < (1 - OVERSHOOT) * white else 0.0, float(white)]


def to_bytes(numbers: NDArray[numpy.float64], mode: str, levels: Levels) -> NDArray[numpy.uint8]:
    """Convert an image in a deep mode; without levels it is scaled by its highest number."""
    if levels is None or levels == EACH_BY_ITSELF:
        highest = numbers.max(initial=0) / (OVERSHOOT if levels is None else 1)
        levels = [0, 65535 if mode[:2] == "I;" or highest > 255 else 1 if mode == "F" and highest <= 1 else 255]
    low, high = levels
    return numpy.nan_to_num(((numbers - low) * (255 / (high - low))).clip(0, 255)).round().astype(numpy.uint8)
