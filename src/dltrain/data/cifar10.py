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
IN_A_FILE = 10_000


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
    files = CIFAR10.train_list if split == "train" else CIFAR10.test_list
    images = torch.empty(len(files) * IN_A_FILE, 3, 32, 32, dtype=torch.uint8)
    targets: list[int] = []
    try:
        for file in files:  # one after another: torchvision would hold all of them twice
            # They are pickles: torchvision opens them only when their MD5 sums are those of the original.
            checked = [] if targets else CIFAR10.train_list + CIFAR10.test_list  # besides the file: all of them, once
            part = type("Part", (CIFAR10,), {"train_list": [file], "test_list": checked})(folder)
            count = len(targets) + len(part.targets)
            images[len(targets) : count] = torch.from_numpy(part.data).permute(0, 3, 1, 2)  # (N, H, W, C)
            targets += part.targets
    except Exception as error:  # whatever a disk can do
        raise InputError(_diagnosis(folder, error, CIFAR10)) from error
    return Examples(images[: len(targets)], torch.tensor(targets), tuple(part.classes))


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
