"""CIFAR-10 (Krizhevsky, 2009): photographs of ten kinds of things, read by torchvision after its checksums."""

import hashlib
from pathlib import Path
from typing import Any

import torch

from dltrain.data import download
from dltrain.data.examples import Examples
from dltrain.data.idx import data_root
from dltrain.errors import InputError

FOLDER = "cifar-10-batches-py"


def cifar10(split: str, *, root: str | None) -> Examples | None:
    """CIFAR-10: 60,000 colour photographs (3x32x32, 10 classes).

    Args:
        root: folder that holds cifar-10-batches-py; null takes DLTRAIN_DATA from the environment, else data/
    """
    if split == "val":
        return None
    from torchvision.datasets import CIFAR10  # more than a second of imports that other data sets do not need

    folder = data_root(root)
    if not (folder / FOLDER).exists():
        download.fetch("CIFAR10", folder, FOLDER, parts=[FOLDER], packed=[CIFAR10.filename])
    try:
        # The files are pickles: torchvision opens them only when their MD5 sums are those of the original.
        found = CIFAR10(folder, train=split == "train")
    except Exception as error:  # whatever a disk can do
        raise InputError(_diagnosis(folder, error, CIFAR10)) from error
    images = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()  # (N, H, W, C) -> (N, C, H, W)
    return Examples(images, torch.tensor(found.targets), tuple(found.classes))


def _diagnosis(root: Path, error: Exception, dataset: Any) -> str:
    """Name the first missing or altered file."""
    remedy = f"Delete the folder {root / FOLDER} and start again to fetch it anew"
    for name, expected in dataset.train_list + dataset.test_list + [("batches.meta", dataset.meta["md5"])]:
        path = root / FOLDER / name
        if not path.exists():
            return f"{path}: expected a file with MD5 {expected}, found none. {remedy}"
        try:
            found = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        except OSError as unreadable:
            return f"{path}: cannot be read ({unreadable.strerror}). {remedy}"
        if found != expected:
            return f"{path}: expected MD5 {expected}, found {found} ({path.stat().st_size} bytes). {remedy}"
    return f"{root / FOLDER}: {error}"
