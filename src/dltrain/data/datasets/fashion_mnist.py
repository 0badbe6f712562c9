"""Fashion-MNIST (Xiao, Rasul, Vollgraf, 2017): images of clothes, in MNIST's format."""

from dltrain.data import idx
from dltrain.data.splits import Examples

CLASSES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def fashion_mnist(split: str, *, root: str | None) -> Examples | None:
    """Fashion-MNIST: 70,000 images of clothes (1x28x28, 10 classes).

    Args:
        root: folder that holds FashionMNIST/raw; null takes DLTRAIN_DATA from the environment, else data/
    """
    return idx.load("FashionMNIST", split, root, CLASSES)
