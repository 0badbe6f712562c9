"""The order of an epoch in which rare classes come more often than in the training set."""

from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor


def balanced_order(
    targets: Tensor, *, generator: torch.Generator, balance: Annotated[float, Interval(ge=0, le=1)] = 0.0
) -> Tensor:
    """Return the examples of an epoch as indices (N,) in random order, from their classes (N,) on the CPU.

    A class's fraction of the epoch is (1 - balance) times its fraction of the training set, plus balance divided by the
    number of classes. All its examples are drawn equally often, and a random part of them once more to fill the rest.

    Args:
        balance: 0 for every example once in an epoch, 1 for every class equally often, or a number between; the length
            of an epoch stays the same
    """
    count = len(targets)
    shuffled = torch.randperm(count, generator=generator)
    by_class = shuffled[targets[shuffled].argsort(stable=True)]
    sizes = targets.bincount()
    sizes = sizes[sizes > 0]
    expected = (1 - balance) * sizes.double() + balance * count / len(sizes)
    # Rounded at random, so that over many epochs a class has exactly its fraction.
    offset = torch.rand((), generator=generator, dtype=torch.float64)
    ends = (expected.cumsum(0) + offset).floor().long().clamp(max=count)
    ends[-1] = count
    amounts = ends.diff(prepend=ends.new_zeros(1))
    label = torch.arange(len(sizes)).repeat_interleave(amounts)
    turns = (torch.arange(count) - (ends - amounts)[label]) % sizes[label]
    order = by_class[(sizes.cumsum(0) - sizes)[label] + turns]
    return order[torch.randperm(count, generator=generator)]
