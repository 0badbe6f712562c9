"""Kuzushiji-MNIST (Clanuwat et al., 2018): old cursive Japanese characters, in MNIST's format."""

from dltrain.data import idx
from dltrain.data.splits import Examples

CLASSES = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")


def kmnist(split: str, *, root: str | None) -> Examples | None:
    """Kuzushiji-MNIST: 70,000 cursive Japanese characters (1x28x28, 10 classes).

    Args:
        root: folder that holds KMNIST/raw; null takes DLTRAIN_DATA from the environment, else data/
    """
    return idx.load("KMNIST", split, root, CLASSES)
