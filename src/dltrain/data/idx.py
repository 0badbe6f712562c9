"""Read the idx files of MNIST and of data sets in its format: find them, download missing ones, check all.

torchvision does not check unpacked files; here checksum, size, header and labels are checked at every
start. Format: magic number (0, 0, 8 for bytes, number of dimensions), then each dimension as a big-endian int32, then
bytes.
"""

import hashlib
import os
import zlib
from pathlib import Path

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from dltrain.data import download, known_files
from dltrain.data.splits import Examples
from dltrain.runtime.errors import InputError
from dltrain.runtime.folders import expand_user

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
SIDES = (28, 28)  # rows and columns of an image
# SHA-256 of the files unpacked from archives with the checksums that torchvision expects. It takes half as long as MD5,
# since processors have instructions for it. The other data sets are checked against the archive, if it was kept.
SUMS = {
    "MNIST": {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    }
}


def data_root(root: str | None) -> Path:
    """Return the folder of all data sets: `data.root`, else DLTRAIN_DATA from the environment, else data/."""
    return expand_user(root or os.environ.get("DLTRAIN_DATA") or "data")


def load(torchvision_name: str, split: str, root: str | None, classes: tuple[str, ...]) -> Examples | None:
    """Load a split from ROOT/NAME/raw, or as `known_files` finds it; download it if missing. Raises InputError."""
    if split == "val":
        return None
    base, raw, sums = data_root(root), f"{torchvision_name}/raw", SUMS.get(torchvision_name, {})
    paths = [base / raw / name for name in FILES[split]]
    contents: list[bytearray | None] = [None, None]
    if not all(path.exists() for path in paths):
        unused: list[str] = []
        searched = (known_files.mnist(base, torchvision_name, path.name, sums.get(path.name), unused) for path in paths)
        if len(found := [each for each in searched if each]) == len(paths):
            paths, contents = [path for path, _ in found], [content for _, content in found]
        else:
            parts = [f"{raw}/{name}" for names in FILES.values() for name in names]
            download.fetch(torchvision_name, base, raw, parts=parts, packed=[f"{it}.gz" for it in parts], unused=unused)
    images = read(paths[0], dimensions=3, sha256=sums.get(paths[0].name), found=contents[0])
    labels = read(paths[1], dimensions=1, sha256=sums.get(paths[1].name), found=contents[1])
    if images.shape[1:] != SIDES:
        raise _fault(paths[0], f"expected images of 28x28, found {'x'.join(map(str, images.shape[1:]))}")
    if len(images) != len(labels):
        raise _fault(paths[1], f"expected a label for each of {len(images)} images, found {len(labels)}")
    if len(labels) and int(labels.max()) >= len(classes):
        raise _fault(paths[1], f"expected labels 0 to {len(classes) - 1}, found {int(labels.max())}")
    return Examples(images.unsqueeze(1), labels.long(), classes)


def read(path: Path, *, dimensions: int, sha256: str | None, found: bytearray | None = None) -> Tensor:
    """Read an idx file as a uint8 tensor with that many dimensions.

    Args:
        sha256: expected checksum of the file; None if it is not known
        found: its content, if it has been read
    """
    try:  # the only copy: the tensor shares it
        content = numpy.fromfile(path, numpy.uint8) if found is None else numpy.frombuffer(found, numpy.uint8)
    except OSError as error:
        raise _fault(path, f"cannot be read ({error.strerror})") from None
    if sha256 is None:
        _check_against_packed(content, path)
    elif (actual := hashlib.sha256(content.data).hexdigest()) != sha256:
        raise _fault(path, f"expected SHA-256 {sha256}, found {actual} ({len(content)} bytes)")
    header = 4 + 4 * dimensions
    start = content[:header].tobytes()
    if start[:4] != bytes([0, 0, 8, dimensions]):
        begin = start[:4].hex(" ") or "an empty file"
        raise _fault(path, f"expected an idx file that begins with 00 00 08 0{dimensions}, found {begin}")
    if len(content) < header:
        raise _fault(path, f"expected at least {header} bytes, found {len(content)}")
    shape = [int.from_bytes(start[i : i + 4], "big") for i in range(4, header, 4)]
    expected = header + int(numpy.prod(shape, dtype=object))
    if len(content) != expected:
        sides = "x".join(map(str, shape))
        raise _fault(path, f"expected {expected} bytes (its header says {sides}), found {len(content)}")
    return torch.from_numpy(content[header:].reshape(shape))


def _check_against_packed(content: NDArray[numpy.uint8], path: Path) -> None:
    """Compare a file with the CRC32 and the size at the end of its gzip archive, if that lies beside it."""
    packed = path.with_name(f"{path.name}.gz")
    try:
        with packed.open("rb") as file:
            file.seek(max(0, packed.stat().st_size - 8))
            end = file.read()
    except FileNotFoundError:
        return
    except OSError as error:
        raise _fault(packed, f"cannot be read ({error.strerror})") from None
    found = zlib.crc32(content.data).to_bytes(4, "little") + (len(content) % 2**32).to_bytes(4, "little")
    if found != end:
        says = f"CRC32 {end[3::-1].hex()} and {int.from_bytes(end[4:], 'little')} bytes, as {packed.name} says"
        raise _fault(path, f"expected {says}, found CRC32 {found[3::-1].hex()} and {len(content)} bytes")


def _fault(path: Path, message: str) -> InputError:
    return InputError(f"{path}: {message}. Delete {path.name} and start again to download it")
