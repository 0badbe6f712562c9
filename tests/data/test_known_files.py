"""MNIST and CIFAR-10 are found in the folders and forms that people have, where the content is right; else refused."""

import gzip
import hashlib
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch

from dltrain.data import cifar, download, idx
from dltrain.data.datasets.cifar10 import cifar10
from dltrain.data.datasets.fashion_mnist import fashion_mnist
from dltrain.data.datasets.mnist import mnist
from dltrain.data.splits import Examples
from dltrain.runtime.errors import InputError
from support import generated

pytestmark = pytest.mark.usefixtures("no_network")

FILES = [name for pair in idx.FILES.values() for name in pair]
FORMS: dict[str, Callable[[str, bytes], tuple[str, bytes]]] = {
    "as they are": lambda name, content: (name, content),
    "with dots": lambda name, content: (name.replace("-idx", ".idx"), content),
    "packed": lambda name, content: (f"{name}.gz", gzip.compress(content, mtime=0)),
    "packed, with dots": lambda name, content: (f"{name.replace('-idx', '.idx')}.gz", gzip.compress(content, mtime=0)),
}


def write_keras(path: Path) -> None:
    """Write the generated MNIST as Keras keeps it."""
    arrays = {}
    for split, count, seed in (("train", 200, 0), ("test", 50, 1)):
        arrays[f"x_{split}"], arrays[f"y_{split}"] = generated.pictures(count, (28, 28), seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    numpy.savez(path, **arrays)


def put(data_root: Path, folder: Path, form: str) -> None:
    """Write the generated MNIST in one of the forms into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        name, content = FORMS[form](name, (data_root / "MNIST" / "raw" / name).read_bytes())
        (folder / name).write_bytes(content)


def is_whole(root: Path) -> bool:
    """Whether both splits of the generated MNIST are read."""
    train, test = mnist("train", root=str(root)), mnist("test", root=str(root))
    assert train is not None
    assert test is not None
    wanted = [generated.pictures(200, (28, 28), 0), generated.pictures(50, (28, 28), 1)]
    return all(
        numpy.array_equal(found.images.squeeze(1), images) and numpy.array_equal(found.targets, labels)
        for found, (images, labels) in zip((train, test), wanted, strict=True)
    )


@pytest.mark.parametrize("folder", [".", "raw", "MNIST", "MNIST/raw"])
@pytest.mark.parametrize("form", FORMS)
def test_mnist_is_read_from_every_usual_folder_in_every_form_and_nothing_is_written(
    form: str, folder: str, data_root: Path, mnist_sums: dict[str, str], tmp_path: Path
) -> None:
    put(data_root, tmp_path / folder, form)
    before = sorted(tmp_path.rglob("*"))
    assert is_whole(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_mnist_is_read_from_the_file_of_keras(mnist_sums: dict[str, str], tmp_path: Path) -> None:
    write_keras(tmp_path / "mnist.npz")
    assert is_whole(tmp_path)


def test_a_damaged_file_gives_way_to_a_good_one_of_another_form(
    data_root: Path, mnist_sums: dict[str, str], tmp_path: Path
) -> None:
    put(data_root, tmp_path, "packed")
    (tmp_path / FILES[0]).write_bytes(b"\0\0\x08\x03")
    assert is_whole(tmp_path)


def refusal(load: Callable[..., Examples | None], root: Path) -> str:
    with pytest.raises(InputError) as caught:
        load("train", root=str(root))
    assert len(str(caught.value).splitlines()) <= 3
    return str(caught.value)


def test_other_content_under_the_names_of_mnist_is_not_used_and_named(
    data_root: Path, mnist_sums: dict[str, str], tmp_path: Path
) -> None:
    put(data_root, tmp_path, "with dots")
    path = tmp_path / "train-images.idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    message = refusal(mnist, tmp_path)
    assert f"Not used: {path} (its SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}… is not that" in message


@pytest.mark.parametrize("folder", [".", "raw", "MNIST/raw"])
def test_files_of_mnist_are_not_taken_for_fashion_mnist(
    folder: str, data_root: Path, mnist_sums: dict[str, str], tmp_path: Path
) -> None:
    put(data_root, tmp_path / folder, "as they are")
    assert "FashionMNIST is not in" in refusal(fashion_mnist, tmp_path)


@pytest.mark.parametrize(("folder", "form"), [("FashionMNIST", "as they are"), ("FashionMNIST/raw", "with dots")])
def test_fashion_mnist_is_read_from_a_folder_of_its_name(
    folder: str, form: str, data_root: Path, tmp_path: Path
) -> None:
    put(data_root, tmp_path / folder, form)
    found = fashion_mnist("train", root=str(tmp_path))
    assert found is not None
    assert len(found.images) == 200


class Payload:
    """A pickle that makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


def test_pickles_in_the_file_of_keras_are_never_unpickled(mnist_sums: dict[str, str], tmp_path: Path) -> None:
    objects = numpy.array([Payload(tmp_path / "made")], dtype=object)
    numpy.savez(tmp_path / "mnist.npz", x_train=objects, y_train=objects)
    (tmp_path / "made").unlink(missing_ok=True)
    assert "mnist.npz (cannot be read: Object arrays cannot be loaded" in refusal(mnist, tmp_path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["mnist.npz", f"{FILES[0]}.gz", FILES[0]])
def test_damaged_files_of_any_form_are_refused_and_named(
    name: str, data_root: Path, mnist_sums: dict[str, str], tmp_path: Path
) -> None:
    write_keras(tmp_path / "mnist.npz")
    put(data_root, tmp_path, "packed")
    put(data_root, tmp_path, "as they are")
    whole = (tmp_path / name).read_bytes()
    root = tmp_path / "root"
    root.mkdir()
    random = numpy.random.default_rng(0)
    for number in range(40):
        kind = ("noise", "cut", "longer", "bit", "other size")[number % 5]
        (root / name).write_bytes(generated.damaged(whole, kind, random))
        try:
            with download.forbidden("not in this test"):
                found = mnist("train", root=str(root))
        except InputError as error:
            # Bytes after an archive, or a bit of a date in it, change nothing: then only the labels are missing.
            assert str(root / name) in str(error) or kind in ("longer", "bit")
        else:  # the damage is in the test set, or in nothing
            assert found is not None
            assert numpy.array_equal(found.images.squeeze(1), generated.pictures(200, (28, 28), 0)[0])


# --- the binary version of CIFAR-10


def write_binary(folder: Path, source: Path) -> dict[str, str]:
    """Write the batches of the Python version as records; return the SHA-256 of each split."""
    folder.mkdir(parents=True, exist_ok=True)
    sums = {}
    for split, names in cifar.BINARY_FILES.items():
        sha256 = hashlib.sha256()
        for name in names:
            batch = pickle.loads((source / name.removesuffix(".bin")).read_bytes(), encoding="latin1")
            labels = numpy.array(batch["labels"], numpy.uint8).reshape(-1, 1)
            content = numpy.concatenate([labels, batch["data"]], axis=1).tobytes()
            (folder / name).write_bytes(content)
            sha256.update(content)
        sums[split] = sha256.hexdigest()
    return sums


@pytest.fixture
def binary(data_root: Path, cifar10_sums: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the generated CIFAR-10 in its binary version, whose checksums dltrain expects."""
    folder = tmp_path / "binary"
    monkeypatch.setattr(cifar, "BINARY_SUMS", write_binary(folder, data_root / "cifar-10-batches-py"))
    return folder


def same(one: Examples | None, other: Examples | None) -> bool:
    assert one is not None
    assert other is not None
    return torch.equal(one.images, other.images) and torch.equal(one.targets, other.targets)


@pytest.mark.parametrize("folder", [".", "cifar-10-batches-bin"])
def test_the_binary_version_equals_the_python_version_to_the_bit(
    folder: str, binary: Path, data_root: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    shutil.copytree(binary, root / folder)
    for split in ("train", "test"):
        found = cifar10(split, root=str(root))
        assert same(found, cifar10(split, root=str(data_root)))
        assert found is not None
        assert found.images.is_contiguous()
        assert found.classes == cifar.CIFAR10


@pytest.mark.slow
def test_the_real_binary_version_has_the_known_sums_and_equals_the_python_version(
    real_data: Path, tmp_path: Path
) -> None:
    assert write_binary(tmp_path, real_data / "cifar-10-batches-py") == cifar.BINARY_SUMS
    for split in ("train", "test"):
        found, known = cifar10(split, root=str(tmp_path)), cifar10(split, root=str(real_data))
        assert same(found, known)
        assert found is not None
        assert known is not None
        assert found.classes == known.classes


@pytest.mark.parametrize("damage", ["cut", "bit", "missing"])
def test_a_binary_version_that_is_not_whole_is_not_used_and_named(damage: str, binary: Path) -> None:
    path = binary / "data_batch_3.bin"
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[:-1] + (b"\7" if damage == "bit" else b""))
    message = refusal(cifar10, binary)
    assert f"Not used: {binary / 'data_batch_1.bin'} (" in message
    assert damage != "missing" or "data_batch_3.bin" in message
