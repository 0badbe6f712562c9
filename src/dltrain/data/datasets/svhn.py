"""SVHN (Netzer et al., 2011): digits of house numbers in photographs, read by torchvision after its checksums."""

import torch

from dltrain.data import download
from dltrain.data.idx import data_root
from dltrain.data.splits import Examples
from dltrain.runtime.errors import InputError


def svhn(split: str, *, root: str | None) -> Examples | None:
    """SVHN: 99,289 colour photographs of house numbers' digits (3x32x32, 10 classes).

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
        found = SVHN(folder, split=split)  # opens the file only when its MD5 sum is that of the original
    except RuntimeError as error:
        raise InputError(
            f"{folder / name}: expected a file with MD5 {expected}, found another. "
            "Delete it and start again to fetch it anew"
        ) from error
    except Exception as error:  # whatever a disk can do
        raise InputError(f"{folder / name}: cannot be read ({error})") from error
    # As MATLAB keeps them the pictures' numbers are the last dimension: to be gathered they must be the first.
    return Examples(torch.from_numpy(found.data).contiguous(), torch.from_numpy(found.labels), tuple("0123456789"))
