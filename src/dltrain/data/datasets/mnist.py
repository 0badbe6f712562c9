"""MNIST (LeCun, Cortes, Burges): handwritten digits."""

from dltrain.data import idx
from dltrain.data.splits import Examples


def mnist(split: str, *, root: str | None) -> Examples | None:
    """MNIST: 70,000 handwritten digits (1x28x28, 10 classes).

    Args:
        root: folder that holds MNIST/raw, or the files; null takes DLTRAIN_DATA from the environment, else data/
    """
    return idx.load("MNIST", split, root, tuple("0123456789"))
