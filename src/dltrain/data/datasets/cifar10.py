"""CIFAR-10 (Krizhevsky, 2009): photographs of ten kinds of things."""

from dltrain.data import cifar
from dltrain.data.splits import Examples


def cifar10(split: str, *, root: str | None) -> Examples | None:
    """CIFAR-10: 60,000 colour photographs (3x32x32, 10 classes).

    Args:
        root: folder that holds cifar-10-batches-py or -bin; null takes DLTRAIN_DATA from the environment, else data/
    """
    return cifar.load("CIFAR10", split, root)
