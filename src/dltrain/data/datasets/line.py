"""The simplest data set: numbers on the line y = 2x."""

from typing import Annotated

import torch
from annotated_types import Interval

from dltrain.data.splits import Examples


def line(split: str, *, count: Annotated[int, Interval(ge=2)]) -> Examples | None:
    """Numbers on the line y = 2x, generated, for task=regression.

    Args:
        count: points in each split, evenly spaced between -2 and 2
    """
    if split == "val":
        return None
    x = torch.linspace(-2, 2, count)
    if split == "test":
        x = x + 2 / (count - 1)  # half-way between the training points, the last one beyond them
    return Examples(x.view(-1, 1, 1, 1), 2 * x.view(-1, 1), ())
