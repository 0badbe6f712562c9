"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009): photographs of things, read by torchvision, which checks MD5 sums."""

import hashlib
from pathlib import Path
from typing import Any

import torch

from dltrain.data import download, known_files
from dltrain.data.idx import data_root
from dltrain.data.splits import Examples
from dltrain.runtime.errors import InputError

IMAGES = {"train": 50_000, "test": 10_000}  # in both data sets
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# The binary version of CIFAR-10: its files, and the SHA-256 of those of a split, one after the other.
BINARY_FILES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
BINARY_SUMS = {
    "train": "a0181da372c0d63a5920fdbea2ec3f83ecbc552d378218e1cb473cf634941a3b",
    "test": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}


def load(torchvision_name: str, split: str, root: str | None) -> Examples | None:
    """Load a split of a data set in torchvision's layout; download it if it is missing. Raises InputError."""
    if split == "val":
        return None
    from torchvision import datasets  # more than a second of imports that other data sets do not need

    dataset = getattr(datasets, torchvision_name)
    folder, name = data_root(root), dataset.base_folder
    if not (folder / name).exists():
        unused: list[str] = []
        if torchvision_name == "CIFAR10" and (found := _read_binary(folder, split, unused)):
            return found
        download.fetch(torchvision_name, folder, name, parts=[name], packed=[dataset.filename], unused=unused)
    files = dataset.train_list if split == "train" else dataset.test_list
    images = torch.empty(IMAGES[split], 3, 32, 32, dtype=torch.uint8)
    targets: list[int] = []
    try:
        for file in files:  # one by one: torchvision would hold all of them twice
            # They are pickles: torchvision opens them only if their MD5 sums are those of the original.
            checked = [] if targets else dataset.train_list + dataset.test_list  # checks all files before the first
            part = type("Part", (dataset,), {"train_list": [file], "test_list": checked})(folder)
            count = len(targets) + len(part.targets)
            images[len(targets) : count] = torch.from_numpy(part.data).permute(0, 3, 1, 2)  # (N, H, W, C)
            targets += part.targets
    except Exception as error:  # disks and damaged files raise nearly anything
        raise InputError(_diagnosis(folder, error, dataset)) from error
    return Examples(images[: len(targets)], torch.tensor(targets), tuple(part.classes))


def _read_binary(root: Path, split: str, unused: list[str]) -> Examples | None:
    """Read a split of CIFAR-10's binary version, which lies in its folder or in `root`; None if it does not."""
    candidates = [[at / name for name in BINARY_FILES[split]] for at in (root / "cifar-10-batches-bin", root)]
    if not (found := known_files.first_right(candidates, Path.read_bytes, BINARY_SUMS[split], unused)):
        return None
    records = torch.frombuffer(found[1], dtype=torch.uint8).view(-1, 1 + 3 * 32 * 32)  # the label, then the image
    return Examples(records[:, 1:].reshape(-1, 3, 32, 32).contiguous(), records[:, 0].long(), CIFAR10)


def _diagnosis(root: Path, error: Exception, dataset: Any) -> str:
    """Describe the first missing or altered file."""
    folder = root / dataset.base_folder
    remedy = f"Delete the folder {folder} and start again to download it"
    for name, expected in dataset.train_list + dataset.test_list + [(dataset.meta["filename"], dataset.meta["md5"])]:
        path = folder / name
        if not path.exists():
            return f"{path}: expected a file with MD5 {expected}, found none. {remedy}"
        try:
            found = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        except OSError as unreadable:
            return f"{path}: cannot be read ({unreadable.strerror}). {remedy}"
        if found != expected:
            return f"{path}: expected MD5 {expected}, found {found} ({path.stat().st_size} bytes). {remedy}"
    return f"{folder}: {error}"
