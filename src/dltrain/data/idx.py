"""The idx files of MNIST and its kin: found, downloaded by torchvision where missing, and checked.

torchvision believes an unpacked file whatever is in it; here its size, header and labels are checked on every start.
Format: magic number (0, 0, 8 for bytes, number of dimensions), then each dimension as a big-endian int32, then bytes.
"""

import os
import textwrap
from pathlib import Path

import numpy
import torch
from torch import Tensor

from dltrain.data.examples import Examples
from dltrain.errors import InputError

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def data_root(root: str | None) -> Path:
    """Where data sets lie: `data.root`, else the environment's DLTRAIN_DATA, else data/."""
    return Path(root or os.environ.get("DLTRAIN_DATA") or "data").expanduser()


def load(torchvision_name: str, split: str, root: str | None, classes: tuple[str, ...]) -> Examples | None:
    """A split of a data set in torchvision's layout ROOT/NAME/raw, downloaded where it is missing.

    Raises InputError with the file, what was expected and found, and what to do.
    """
    if split == "val":
        return None
    folder = data_root(root) / torchvision_name / "raw"
    paths = [folder / name for name in FILES[split]]
    if not all(path.exists() for path in paths):
        download(torchvision_name, data_root(root))
    images, labels = read(paths[0], dimensions=3), read(paths[1], dimensions=1)
    if len(images) != len(labels):
        raise InputError(
            f"{paths[1]}: expected a label for each of {len(images)} images, found {len(labels)}. {_remedy(paths[1])}"
        )
    if len(labels) and int(labels.max()) >= len(classes):
        raise InputError(
            f"{paths[1]}: expected labels 0 to {len(classes) - 1}, found {int(labels.max())}. {_remedy(paths[1])}"
        )
    return Examples(images.unsqueeze(1), labels.long(), classes)


def read(path: Path, *, dimensions: int) -> Tensor:
    """The bytes of an idx file as a uint8 tensor of that many dimensions."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). {_remedy(path)}") from None
    header = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, 8, dimensions]):
        raise InputError(
            f"{path}: expected an idx file that begins with 00 00 08 0{dimensions}, "
            f"found {content[:4].hex(' ') or 'an empty file'}. {_remedy(path)}"
        )
    if len(content) < header:
        raise InputError(f"{path}: expected at least {header} bytes, found {len(content)}. {_remedy(path)}")
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, header, 4)]
    expected = header + int(numpy.prod(shape, dtype=object))
    if len(content) != expected:
        raise InputError(
            f"{path}: expected {expected} bytes (its header says {'x'.join(map(str, shape))}), "
            f"found {len(content)}. {_remedy(path)}"
        )
    return torch.from_numpy(numpy.frombuffer(bytearray(content), numpy.uint8, offset=header).reshape(shape))


def download(torchvision_name: str, root: Path) -> None:
    """Let torchvision fetch, check and unpack a data set; it also takes checked .gz files that already lie there."""
    from torchvision import datasets  # more than a second of imports that a start with data at hand does not need

    try:
        getattr(datasets, torchvision_name)(root, download=True)
    except Exception as error:  # whatever a network, a server or a disk can do
        folder = root / torchvision_name / "raw"
        raise InputError(not_downloaded(torchvision_name, folder, error)) from error


def not_downloaded(name: str, folder: Path, error: Exception) -> str:
    """What is missing, why it could not be fetched, and what to do."""
    reason = textwrap.shorten(str(error), 200, placeholder=" …")
    return (
        f"{name} is not in {folder} and could not be downloaded: {reason}\n"
        "Put its files there, or set data.root (or DLTRAIN_DATA) to the folder that holds it"
    )


def _remedy(path: Path) -> str:
    return f"Delete {path.name} and start again to fetch it anew"
