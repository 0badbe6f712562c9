"""CIFAR-100 (Krizhevsky, 2009): photographs of a hundred kinds of things, in CIFAR-10's format."""

from dltrain.data import cifar
from dltrain.data.splits import Examples


def cifar100(split: str, *, root: str | None) -> Examples | None:
    """CIFAR-100: 60,000 colour photographs (3x32x32, 100 classes).

    Args:
        root: folder that holds cifar-100-python; null takes DLTRAIN_DATA from the environment, else data/
    """
    return cifar.load("CIFAR100", split, root)
