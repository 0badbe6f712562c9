"""Files of MNIST and CIFAR-10 in the folders and forms that people have them in, recognised by their content."""

import gzip
import hashlib
import io
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy

from dltrain.runtime.errors import first_line

LIMIT = 1 << 26  # bytes that are read of a file; the largest of MNIST has 47,040,016
Found = tuple[Path, bytearray]


def mnist(root: Path, name: str, file: str, sha256: str | None, unused: list[str]) -> Found | None:
    """Find a file of a data set in MNIST's format, whose usual, unpacked form is called `file`.

    Data sets whose checksums are not known have files of the same names: theirs are taken only from a folder `name`.
    """
    plain = [file, file.replace("-idx", ".idx")]
    forms = [*plain, *(f"{form}.gz" for form in plain), "mnist.npz"] if sha256 else plain
    folders = [f"{name}/raw", name, "raw", "."] if sha256 else [f"{name}/raw", name]
    candidates = [[root / folder / form] for folder in folders for form in forms]
    return first_right(candidates, partial(_idx_content, file=file), sha256, unused)


def first_right(
    candidates: Sequence[Sequence[Path]], read: Callable[[Path], bytes], sha256: str | None, unused: list[str]
) -> Found | None:
    """Return the joint content of the first paths that has this checksum; others get a line each in `unused`."""
    for first, *others in candidates:
        if first.is_file():
            try:
                content = bytearray().join(map(read, (first, *others)))
            except Exception as error:  # damaged archives raise nearly anything
                unused.append(f"{first} (cannot be read: {first_line(error)})")
                continue
            if sha256 in (None, found := hashlib.sha256(content).hexdigest()):
                return first, content
            unused.append(f"{first} (its SHA-256 {found[:12]}… is not that of the original)")
    return None


def _idx_content(path: Path, *, file: str) -> bytes:
    if path.suffix == ".npz":  # of Keras
        member = f"{'x' if 'images' in file else 'y'}_{'train' if 'train' in file else 'test'}.npy"
        with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
            array = numpy.lib.format.read_array(io.BytesIO(stream.read(LIMIT)), allow_pickle=False)
        sides = (side.to_bytes(4, "big") for side in array.shape)
        return b"".join((bytes([0, 0, 8, array.ndim]), *sides, array.tobytes()))
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
        return stream.read(LIMIT)
