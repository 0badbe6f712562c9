"""A policy in the manner of TrivialAugment (Müller, Hutter, 2021): one random change of each image, at random strength.

Strengths are from -1 to 1. The largest changes are those of AutoAugment's search space, as in the paper.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dltrain.data import colour
from dltrain.data.geometric import rotations

SHEAR, SHIFT, ROTATION, FACTOR = 0.3, 0.3, math.radians(30), 0.9  # the shift as a fraction of the side
GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
COLOUR: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": lambda images, strengths: colour.brightness(images, 1 + FACTOR * strengths),
    "contrast": lambda images, strengths: colour.contrast(images, 1 + FACTOR * strengths),
    "saturation": lambda images, strengths: colour.saturation(images, 1 + FACTOR * strengths),
    "sharpness": lambda images, strengths: colour.sharpness(images, 1 + FACTOR * strengths),
    "posterize": lambda images, strengths: colour.posterize(images, 8 - (4 * strengths.abs()).round()),
    "solarize": lambda images, strengths: colour.solarize(images, 255 * (1 - strengths.abs())),
    "autocontrast": lambda images, strengths: colour.autocontrast(images),
    "equalize": lambda images, strengths: colour.equalize(images),
}
OPERATIONS = ("identity", *GEOMETRIC, *COLOUR)


def maps(operations: Tensor, strengths: Tensor, H: int, W: int) -> Tensor:
    """Return the affine maps (N, 3, 3) of the operations (N,) at their strengths (N,); others keep the image."""
    angle, shear_x, shear_y, x, y = (strengths * (operations == OPERATIONS.index(name)) for name in GEOMETRIC)
    found = rotations(ROTATION * angle)
    found[:, 1, 0] += SHEAR * shear_x
    found[:, 0, 1] += SHEAR * shear_y
    found[:, 1, 2] += SHIFT * W * x
    found[:, 0, 2] += SHIFT * H * y
    return found


def recolour(images: Tensor, operations: Tensor, strengths: Tensor) -> Tensor:
    """Change images (B, C, H, W), in place, by the operations (B,) at their strengths (B,), both on the CPU."""
    for number, change in enumerate(COLOUR.values(), 1 + len(GEOMETRIC)):
        if len(chosen := (operations == number).nonzero().flatten()):
            on_device = [part.to(images.device, non_blocking=True) for part in (chosen, strengths[chosen])]
            images[on_device[0]] = change(images[on_device[0]], on_device[1])
    return images
