"""Generated data files in the real formats, with tiny images that a network can learn."""

import gzip
import hashlib
import pickle
import tarfile
from pathlib import Path

import numpy
from PIL import Image
from scipy.io import savemat


def pictures(count: int, shape: tuple[int, ...], seed: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return uint8 images (count, *shape) with a bright row that shows the class, and labels 0..9 (count,)."""
    generator = numpy.random.default_rng(seed)
    labels = numpy.arange(count) % 10
    images = generator.integers(0, 60, (count, *shape), dtype=numpy.uint8)
    for image, label in zip(images, labels, strict=True):
        image[..., 2 * label + 4 : 2 * label + 7, :] += 180
    return images, labels.astype(numpy.uint8)


def write_idx(path: Path, array: numpy.ndarray) -> None:
    """Write an array of bytes as an idx file, the format of MNIST."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + array.tobytes())


def write_mnist(root: Path, train: int = 200, test: int = 50, name: str = "MNIST") -> Path:
    """Write the four unpacked files of an MNIST-like data set below `root`; return root."""
    for prefix, count, seed in (("train", train, 0), ("t10k", test, 1)):
        images, labels = pictures(count, (28, 28), seed)
        write_idx(root / name / "raw" / f"{prefix}-images-idx3-ubyte", images)
        write_idx(root / name / "raw" / f"{prefix}-labels-idx1-ubyte", labels)
    return root


def mnist_sums(root: Path, name: str = "MNIST") -> dict[str, str]:
    """Return the SHA-256 of each unpacked file, by file name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (root / name / "raw").iterdir()}


def pack_mnist(root: Path, folder: Path, name: str = "MNIST") -> list[tuple[str, str]]:
    """Compress each of the four files below `root` into `folder`; return torchvision's (name, MD5) of each."""
    folder.mkdir(parents=True)
    resources = []
    for path in sorted((root / name / "raw").iterdir()):
        content = gzip.compress(path.read_bytes(), mtime=0)
        (folder / f"{path.name}.gz").write_bytes(content)
        resources.append((f"{path.name}.gz", hashlib.md5(content).hexdigest()))
    return resources


def pack_cifar(root: Path, archive: Path, folder: str = "cifar-10-batches-py") -> str:
    """Pack CIFAR-10 or CIFAR-100 below `root` as its authors did; return the MD5 of the archive."""
    archive.parent.mkdir(parents=True)
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(root / folder, folder)
    return hashlib.md5(archive.read_bytes()).hexdigest()


def damaged(content: bytes, kind: str, generator: numpy.random.Generator, header: int = 0) -> bytes:
    """Return the content of a file after some damage; it always differs from the original.

    Args:
        kind: noise, other size, cut, longer, bit, header (one byte of it), label (one beyond the last class)
        header: length of the file's header in bytes
    """
    place = int(generator.integers(header if kind == "label" else 0, header if kind == "header" else len(content)))
    old = content[place]
    match kind:
        case "noise":
            return generator.bytes(len(content))
        case "other size":
            return generator.bytes(int(generator.integers(1, 2 * len(content))))
        case "cut":
            return content[:place]
        case "longer":
            return content + generator.bytes(int(generator.integers(1, 100)))
        case "bit":
            new = old ^ (1 << int(generator.integers(8)))
        case "header":
            new = (old + int(generator.integers(1, 256))) % 256
        case "label":
            new = int(generator.integers(10, 256))
        case _:
            raise AssertionError(kind)
    return content[:place] + bytes([new]) + content[place + 1 :]


def write_cifar10(root: Path, train: int = 200, test: int = 50) -> dict[str, str]:
    """Write the files of CIFAR-10's Python version below `root`; return the MD5 of each."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True, exist_ok=True)
    sums = {}

    def write(name: str, content: object) -> None:
        data = pickle.dumps(content, protocol=2)
        (folder / name).write_bytes(data)
        sums[name] = hashlib.md5(data).hexdigest()

    for name, count, seed in [*((f"data_batch_{i}", train // 5, i) for i in range(1, 6)), ("test_batch", test, 9)]:
        images, labels = pictures(count, (3, 32, 32), seed)
        write(name, {"data": images.reshape(count, -1), "labels": [int(label) for label in labels]})
    write("batches.meta", {"label_names": [f"thing {i}" for i in range(10)]})
    return sums


def write_svhn(root: Path, train: int = 60, test: int = 40) -> dict[str, str]:
    """Write the two MATLAB files of SVHN's cropped version into `root`; return the MD5 of each."""
    root.mkdir(parents=True, exist_ok=True)
    sums = {}
    for split, count, seed in (("train", train, 0), ("test", test, 1)):
        images, labels = pictures(count, (3, 32, 32), seed)
        named = numpy.where(labels == 0, 10, labels).reshape(-1, 1)  # SVHN labels the digit 0 as 10
        path = root / f"{split}_32x32.mat"
        savemat(path, {"X": images.transpose(2, 3, 1, 0), "y": named}, do_compression=True)
        sums[split] = hashlib.md5(path.read_bytes()).hexdigest()
    return sums


def write_cifar100(root: Path, train: int = 60, test: int = 40) -> dict[str, str]:
    """Write the files of CIFAR-100's Python version below `root`; return the MD5 of each."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True, exist_ok=True)
    sums = {}
    contents: dict[str, object] = {"meta": {"fine_label_names": [f"thing {i}" for i in range(100)]}}
    for name, count, seed in (("train", train, 0), ("test", test, 1)):
        images, labels = pictures(count, (3, 32, 32), seed)
        fine = [10 * int(label) + 9 for label in labels]
        contents[name] = {"data": images.reshape(count, -1), "fine_labels": fine}
    for name, content in contents.items():
        data = pickle.dumps(content, protocol=2)
        (folder / name).write_bytes(data)
        sums[name] = hashlib.md5(data).hexdigest()
    return sums


def write_odd_pictures(root: Path, count: int, damaged: int) -> list[Path]:
    """Write images of varying format, mode and size into two class folders, dark and light; return the damaged ones."""
    formats = (
        ("png", "RGB"),
        ("jpg", "L"),
        ("webp", "RGBA"),
        ("PNG", "LA"),
        ("gif", "P"),
        ("tiff", "CMYK"),
        ("bmp", "1"),
    )
    generator = numpy.random.default_rng(0)
    bad = []
    for index in range(count):
        name, level = ("dark", 40) if index % 2 else ("light and wide", 215)
        folder = root / name / ("more" if index % 5 == 0 else "")
        folder.mkdir(parents=True, exist_ok=True)
        ending, mode = formats[index % len(formats)]
        path = folder / f"Bild {index:03} ü.{ending}"
        height, width = (int(side) for side in generator.integers(1, 90, 2))
        pixels = (level + generator.integers(-30, 31, (height, width, 3))).astype(numpy.uint8)
        Image.fromarray(pixels).convert(mode, dither=Image.Dither.NONE).save(path)
        if len(bad) < damaged and index % 23 == 7:
            path.write_bytes(path.read_bytes()[: 10 + len(bad)])
            bad.append(path)
    assert len(bad) == damaged
    return bad
