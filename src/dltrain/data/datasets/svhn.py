"""SVHN (Netzer et al., 2011): photographs of house numbers, read by torchvision, which checks MD5 sums."""

import torch

from dltrain.data import download
from dltrain.data.idx import data_root
from dltrain.data.splits import Examples
from dltrain.runtime.errors import InputError


def svhn(split: str, *, root: str | None) -> Examples | None:
    """SVHN: 99,289 colour photographs of the digits of house numbers (3x32x32, 10 classes).

    Args:
        root: folder of train_32x32.mat and test_32x32.mat; null takes DLTRAIN_DATA from the environment, else data/
    """
    if split == "val":
        return None
    from torchvision.datasets import SVHN  # more than a second of imports that other data sets do not need

    folder, files = data_root(root), {name: SVHN.split_list[name][1:] for name in ("train", "test")}
    names = [name for name, _ in files.values()]
    if not all((folder / name).exists() for name in names):
        download.fetch("SVHN", folder, ".", parts=[], packed=names, splits=list(files))
    name, expected = files[split]
    try:
        dataset = SVHN(folder, split=split)  # opens the file only if its MD5 sum is that of the original
    except RuntimeError as error:
        found = "found another. Delete it and start again to download it"
        raise InputError(f"{folder / name}: expected a file with MD5 {expected}, {found}") from error
    except Exception as error:  # disks and damaged files raise nearly anything
        raise InputError(f"{folder / name}: cannot be read ({error})") from error
    # MATLAB has the image's index as the last dimension, so this is a view: gathering needs it contiguous.
    return Examples(torch.from_numpy(dataset.data).contiguous(), torch.from_numpy(dataset.labels), tuple("0123456789"))
