"""The embedded data set: 1,797 real handwritten digits that come with scikit-learn, so that nothing is downloaded.

Alpaydin, Kaynak: Optical recognition of handwritten digits. UCI Machine Learning Repository, 1998.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy
import torch
from PIL import Image

from dltrain.data.splits import Examples, stratified


def digits(split: str) -> Examples | None:
    """1,797 real handwritten digits, embedded: no download (1x28x28, 10 classes)."""
    if split == "val":
        return None
    rows = _stored()
    small = (rows[:, :-1].reshape(-1, 8, 8) * (255 / 16)).round().astype(numpy.uint8)  # (1797, 8, 8), 17 grey levels
    large = [numpy.asarray(Image.fromarray(image).resize((28, 28), Image.Resampling.BILINEAR)) for image in small]
    images = torch.from_numpy(numpy.stack(large)).unsqueeze(1)  # (1797, 1, 28, 28)
    labels = torch.from_numpy(rows[:, -1]).long()
    # The split is part of the data set: fixed for every seed, 80 % of each class for training.
    test = torch.zeros(len(labels), dtype=torch.bool)
    test[stratified(labels, round(0.2 * len(labels)), seed=0)] = True
    chosen = test if split == "test" else ~test
    return Examples(images[chosen], labels[chosen], tuple("0123456789"))


def _stored() -> "numpy.ndarray[tuple[int, int], numpy.dtype[numpy.float64]]":
    """The 64 grey levels of each digit, 0 to 16, and behind them which it is (1797, 65)."""
    package = find_spec("sklearn")
    file = Path((package and package.origin) or "").parent / "datasets" / "data" / "digits.csv.gz"
    if file.is_file():
        return numpy.loadtxt(file, delimiter=",", ndmin=2)
    from sklearn.datasets import load_digits  # who reads this file, wherever it lies; to import it takes a second

    found = load_digits()
    return numpy.column_stack([found.data, found.target])
