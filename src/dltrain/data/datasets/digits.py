"""The embedded data set: 1,797 real handwritten digits in digits.npz, so that the first run downloads nothing.

Alpaydin, Kaynak: Optical recognition of handwritten digits. UCI Machine Learning Repository, 1998,
doi:10.24432/C50P49; its test part, under CC BY 4.0. Equal to scikit-learn's load_digits.
"""

from pathlib import Path

import numpy
import torch
from PIL import Image

from dltrain.data.splits import Examples, fixed_part

FILE = Path(__file__).with_name("digits.npz")


def digits(split: str) -> Examples | None:
    """1,797 real handwritten digits, embedded: no download (1x28x28, 10 classes)."""
    if split == "val":
        return None
    with numpy.load(FILE, allow_pickle=False) as file:
        levels, labels = file["images"], torch.from_numpy(file["labels"]).long()  # (1797, 8, 8) from 0 to 16, (1797,)
    small = (levels * (255 / 16)).round().astype(numpy.uint8)
    large = [numpy.asarray(Image.fromarray(image).resize((28, 28), Image.Resampling.BILINEAR)) for image in small]
    images = torch.from_numpy(numpy.stack(large)).unsqueeze(1)  # (1797, 1, 28, 28)
    chosen = fixed_part(labels, split)
    return Examples(images[chosen], labels[chosen], tuple("0123456789"))
