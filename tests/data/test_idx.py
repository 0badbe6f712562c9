"""MNIST and Fashion-MNIST: read back as written, unpacked and downloaded through torchvision, refused when damaged."""

import gc
import gzip
import hashlib
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy
import pytest
import torch
from torchvision.datasets import MNIST

from dltrain.data import idx
from dltrain.data.datasets.fashion_mnist import fashion_mnist
from dltrain.data.datasets.kmnist import kmnist
from dltrain.data.datasets.mnist import mnist
from dltrain.data.splits import Examples
from dltrain.runtime.errors import InputError
from support import generated
from support.loopback import serving
from support.real_data import REAL_SUMS

pytestmark = pytest.mark.usefixtures("no_network")

NAMES = [name for pair in idx.FILES.values() for name in pair]
Sums = dict[str, str]


@pytest.fixture
def own_root(data_root: Path, tmp_path: Path) -> Path:
    """A copy of the generated MNIST, to be damaged."""
    shutil.copytree(data_root / "MNIST", tmp_path / "MNIST")
    return tmp_path


@contextmanager
def served(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A real server on this machine, as MNIST's only mirror."""
    with serving(folder) as address:
        monkeypatch.setattr(MNIST, "mirrors", [address])
        yield


def load(root: Path | str | None, split: str = "train") -> Examples:
    found = mnist(split, root=None if root is None else str(root))
    assert found is not None
    return found


def is_generated(found: Examples, *, count: int, seed: int) -> bool:
    """Whether these are the pictures and labels that `generated` writes."""
    images, labels = generated.pictures(count, (28, 28), seed)
    return numpy.array_equal(found.images.squeeze(1), images) and numpy.array_equal(found.targets, labels)


# --- files that are there


def test_the_training_files_are_read_back_as_written(data_root: Path) -> None:
    assert is_generated(load(data_root), count=200, seed=0)


def test_the_test_files_are_read_back_as_written(data_root: Path) -> None:
    assert is_generated(load(data_root, "test"), count=50, seed=1)


def test_images_are_bytes_of_one_channel_with_int64_labels(data_root: Path) -> None:
    found = load(data_root)
    assert (found.images.dtype, found.images.shape) == (torch.uint8, (200, 1, 28, 28))
    assert (found.targets.dtype, found.targets.shape) == (torch.int64, (200,))
    assert found.classes == tuple("0123456789")


def test_images_are_in_memory_of_the_reader(data_root: Path) -> None:
    load(data_root).images.zero_()  # a view of the file's bytes would not be writable
    assert int(load(data_root).images.max()) > 0


@pytest.mark.parametrize(
    ("load", "name", "last"), [(fashion_mnist, "FashionMNIST", "Ankle boot"), (kmnist, "KMNIST", "wo")]
)
def test_variants_of_mnist_are_read_from_their_folders_with_their_class_names(
    load: Callable[..., Examples | None], name: str, last: str, tmp_path: Path
) -> None:
    generated.write_mnist(tmp_path, train=20, test=10, name=name)
    found = load("train", root=str(tmp_path))
    assert found is not None
    assert len(found.images) == 20
    assert len(found.classes) == 10
    assert found.classes[9] == last


def test_there_is_no_validation_split_even_without_files(tmp_path: Path) -> None:
    assert mnist("val", root=str(tmp_path)) is None
    assert fashion_mnist("val", root=str(tmp_path)) is None
    assert kmnist("val", root=str(tmp_path)) is None


def test_files_that_are_there_are_read_without_torchvision(data_root: Path) -> None:
    code = (  # another process knows the sums of the real MNIST: the generated one would be refused there
        "import sys; from dltrain.data.datasets.fashion_mnist import fashion_mnist; "
        f"print(len(fashion_mnist('train', root={str(data_root)!r}).images), 'torchvision' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["200", "False"]


def test_the_real_mnist_has_its_known_class_counts(real_data: Path) -> None:
    train, test = load(real_data), load(real_data, "test")
    assert torch.bincount(train.targets).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert torch.bincount(test.targets).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert train.images.shape == (60_000, 1, 28, 28)


# --- where they are looked for


def test_the_data_root_is_the_key_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLTRAIN_DATA", "/from/environment")
    assert idx.data_root("/from/key") == Path("/from/key")


def test_without_the_key_the_data_root_is_the_environment(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLTRAIN_DATA", str(data_root))
    assert is_generated(load(None), count=200, seed=0)


@pytest.mark.parametrize("environment", [None, ""])
def test_without_key_and_environment_the_data_root_is_data(
    environment: str | None, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if environment is not None:
        monkeypatch.setenv("DLTRAIN_DATA", environment)
    (tmp_path / "data").symlink_to(data_root)
    monkeypatch.chdir(tmp_path)
    assert is_generated(load(None), count=200, seed=0)


def test_a_tilde_in_the_data_root_is_the_home_folder(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(data_root))
    assert is_generated(load("~"), count=200, seed=0)


# --- files that are not there


def test_packed_files_are_unpacked_without_a_network(packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "MNIST" / "raw")
    assert is_generated(load(tmp_path), count=200, seed=0)


def test_missing_files_are_downloaded(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(packed, monkeypatch):
        assert is_generated(load(tmp_path / "new", "test"), count=50, seed=1)


def test_downloaded_files_are_read_without_the_server(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(packed, monkeypatch):
        load(tmp_path)
    assert is_generated(load(tmp_path), count=200, seed=0)
    assert is_generated(load(tmp_path, "test"), count=50, seed=1)


def refusal(root: Path, split: str = "train") -> str:
    """What a person reads when the data set cannot be had; the exit code is that of a missing or damaged input."""
    with pytest.raises(InputError) as caught:
        load(root, split)
    assert caught.value.exit_code == 66
    return str(caught.value)


def names_folder_and_key(message: str, root: Path) -> bool:
    return str(root / "MNIST" / "raw") in message and "could not be downloaded" in message and "data.root" in message


def test_without_a_network_the_message_names_folder_and_key(tmp_path: Path) -> None:
    message = refusal(tmp_path)
    assert names_folder_and_key(message, tmp_path)
    assert "refused" in message


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_server_without_the_files_is_reported_with_folder_and_key(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nothing").mkdir()
    with served(tmp_path / "nothing", monkeypatch):
        message = refusal(tmp_path)
    assert names_folder_and_key(message, tmp_path)
    gc.collect()  # torchvision leaves the server's answer open: let it go here, not in a later test
    assert "404" in message


def test_a_download_with_a_wrong_checksum_is_refused(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    altered = packed / "train-images-idx3-ubyte.gz"
    altered.write_bytes(altered.read_bytes() + b"\0")
    with served(packed, monkeypatch):
        message = refusal(tmp_path)
    assert names_folder_and_key(message, tmp_path)
    assert "corrupted" in message


def test_after_a_wrong_download_the_next_start_fetches_the_file_anew(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = packed / "train-images-idx3-ubyte.gz"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with served(packed, monkeypatch):
        refusal(tmp_path)
        file.write_bytes(content)
        assert is_generated(load(tmp_path), count=200, seed=0)


def test_a_data_root_that_cannot_be_written_is_reported_with_folder_and_key(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "MNIST").write_text("a file where a folder must be made")
    assert names_folder_and_key(refusal(tmp_path), tmp_path)


# --- damaged files


class Loader(Protocol):
    def __call__(self, split: str, *, root: str | None) -> Examples | None: ...


class Damaged(NamedTuple):
    name: str
    content: bytes
    whole: bytes
    message: str


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def header(*shape: int) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + b"".join(side.to_bytes(4, "big") for side in shape)


DAMAGES: dict[str, tuple[str, Callable[[bytes], bytes], str, str]] = {
    "images, empty": (IMAGES, lambda old: b"", "begins with 00 00 08 03", "an empty file"),
    "labels, empty": (LABELS, lambda old: b"", "begins with 00 00 08 01", "an empty file"),
    "images, a web page": (IMAGES, lambda old: b"<html>" + old, "begins with 00 00 08 03", "3c 68 74 6d"),
    "images, still packed": (IMAGES, lambda old: gzip.compress(old, mtime=0), "00 00 08 03", "1f 8b 08 00"),
    "images, of floats": (IMAGES, lambda old: bytes([0, 0, 13, 3]) + old[4:], "00 00 08 03", "00 00 0d 03"),
    "images, labels' file": (IMAGES, lambda old: header(200) + bytes(200), "00 00 08 03", "00 00 08 01"),
    "labels, images' file": (LABELS, lambda old: header(200, 1, 1) + bytes(200), "00 00 08 01", "00 00 08 03"),
    "images, cut off": (IMAGES, lambda old: old[:-1], "156816 bytes (its header says 200x28x28)", "156815"),
    "labels, cut off": (LABELS, lambda old: old[:100], "208 bytes (its header says 200)", "100"),
    "images, too long": (IMAGES, lambda old: old + b"\0", "156816 bytes (its header says 200x28x28)", "156817"),
    "labels, too long": (LABELS, lambda old: old + old, "208 bytes (its header says 200)", "416"),
    "images, header of other sides": (
        IMAGES,
        lambda old: header(200, 28, 27) + old[16:],
        "151216 bytes (its header says 200x28x27)",
        "156816",
    ),
    "images, header of ones": (
        IMAGES,
        lambda old: old[:4] + b"\xff" * 12 + old[16:],
        "(its header says 4294967295x4294967295x4294967295)",
        "156816",
    ),
    "labels, a class too high": (LABELS, lambda old: old[:-1] + b"\x0a", "labels 0 to 9", "10"),
    "labels, one too few": (LABELS, lambda old: header(199) + old[8:-1], "a label for each of 200 images", "199"),
    "labels, one too many": (LABELS, lambda old: header(201) + old[8:] + b"\0", "a label for each of 200", "201"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_with_expected_and_actual_content_and_advice(damage: str, own_root: Path) -> None:
    name, alter, expected, found = DAMAGES[damage]
    path = own_root / "MNIST" / "raw" / name
    path.write_bytes(alter(path.read_bytes()))
    message = refusal(own_root)
    assert message.startswith(f"{path}: expected ")
    assert expected in message
    assert f"found {found}. Delete {name} and start again" in message


def test_sides_other_than_28_are_refused_though_the_size_is_right(own_root: Path) -> None:
    path = own_root / "MNIST" / "raw" / IMAGES
    path.write_bytes(header(200, 14, 56) + path.read_bytes()[16:])
    assert refusal(own_root).startswith(f"{path}: expected images of 28x28, found 14x56. Delete {IMAGES}")


def test_a_damaged_test_file_does_not_touch_the_training_set(own_root: Path) -> None:
    path = own_root / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    path.write_bytes(b"")
    assert is_generated(load(own_root), count=200, seed=0)
    assert refusal(own_root, "test").startswith(str(path))


COUNTS = [50, pytest.param(500, marks=pytest.mark.torture)]
SHAPED = ("noise", "other size", "cut", "longer", "header")  # what a file whose sum is not known gives away


def check_damages(root: Path, folder: str, load: Loader, kinds: tuple[str, ...], count: int) -> Iterator[Damaged]:
    """Damage one of four files after the other; each time its split is refused and the file is named."""
    generator = numpy.random.default_rng(count)
    for number in range(count):
        split = ("train", "test")[number // 2 % 2]
        name = idx.FILES[split][number % 2]
        path = root / folder / "raw" / name
        whole = path.read_bytes()
        chosen = kinds if number % 2 == 0 else (*kinds, "label")
        kind = chosen[number // 4 % len(chosen)]
        content = generated.damaged(whole, kind, generator, header=8 if number % 2 else 16)
        assert content != whole
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            load(split, root=str(root))
        message = str(caught.value)
        assert message.startswith(f"{path}: expected ")
        assert f"Delete {name} and start again" in message
        yield Damaged(name, content, whole, message)
        path.write_bytes(whole)
    for split in idx.FILES:
        assert load(split, root=str(root)) is not None


@pytest.mark.parametrize("count", COUNTS)
def test_every_damaged_file_with_a_known_checksum_is_refused_with_both_checksums(
    count: int, own_root: Path, mnist_sums: Sums
) -> None:
    refused = 0
    for damaged in check_damages(own_root, "MNIST", mnist, (*SHAPED, "bit"), count):
        found = hashlib.sha256(damaged.content).hexdigest()
        assert f"expected SHA-256 {mnist_sums[damaged.name]}, found {found} ({len(damaged.content)} " in damaged.message
        refused += 1
    assert refused == count


@pytest.mark.parametrize("count", COUNTS)
def test_every_damaged_file_beside_its_packed_file_is_refused(count: int, tmp_path: Path) -> None:
    generated.write_mnist(tmp_path, train=20, test=10, name="FashionMNIST")
    generated.pack_mnist(tmp_path, tmp_path / "packed", name="FashionMNIST")
    shutil.copytree(tmp_path / "packed", tmp_path / "FashionMNIST" / "raw", dirs_exist_ok=True)
    refused = 0
    for damaged in check_damages(tmp_path, "FashionMNIST", fashion_mnist, (*SHAPED, "bit"), count):
        wanted, found = (f"{zlib.crc32(content):08x}" for content in (damaged.whole, damaged.content))
        assert f"expected CRC32 {wanted} and {len(damaged.whole)} bytes, as {damaged.name}.gz" in damaged.message
        assert f"found CRC32 {found} and {len(damaged.content)} bytes." in damaged.message
        refused += 1
    assert refused == count


@pytest.mark.parametrize("count", COUNTS)
def test_every_file_of_wrong_form_is_refused_though_nothing_tells_its_sum(count: int, tmp_path: Path) -> None:
    generated.write_mnist(tmp_path, train=20, test=10, name="FashionMNIST")
    assert sum(1 for _ in check_damages(tmp_path, "FashionMNIST", fashion_mnist, SHAPED, count)) == count


@pytest.mark.parametrize("count", [8, pytest.param(100, marks=pytest.mark.torture)])
def test_every_damaged_file_of_the_real_mnist_is_refused_with_both_sums(
    count: int, real_data: Path, tmp_path: Path
) -> None:
    shutil.copytree(real_data / "MNIST", tmp_path / "MNIST")
    for damaged in check_damages(tmp_path, "MNIST", mnist, (*SHAPED, "bit"), count):
        known = idx.SUMS["MNIST"][damaged.name]
        found = hashlib.sha256(damaged.content).hexdigest()
        assert f"expected SHA-256 {known}, found {found} " in damaged.message


def test_one_wrong_label_is_refused_if_the_checksum_is_known(own_root: Path, mnist_sums: Sums) -> None:
    path = own_root / "MNIST" / "raw" / LABELS
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] - 1]))
    assert refusal(own_root).startswith(f"{path}: expected SHA-256 {mnist_sums[LABELS]}, found ")


def test_the_sums_are_those_of_the_four_original_files() -> None:
    sums = {name: tuple(known) for name, known in REAL_SUMS.items()}
    assert sums == {"MNIST": tuple(NAMES)}


@pytest.mark.parametrize("length", [0, 5])
def test_a_packed_file_that_was_cut_off_is_not_believed(length: int, data_root: Path, tmp_path: Path) -> None:
    generated.write_mnist(tmp_path, train=20, test=10, name="FashionMNIST")
    raw = tmp_path / "FashionMNIST" / "raw"
    (raw / f"{IMAGES}.gz").write_bytes(bytes(length))
    with pytest.raises(InputError, match=r"expected CRC32 0* and 0 bytes, as train-images-idx3-ubyte.gz says"):
        fashion_mnist("train", root=str(tmp_path))


def test_a_folder_in_place_of_a_file_is_refused_by_name(own_root: Path) -> None:
    path = own_root / "MNIST" / "raw" / IMAGES
    path.unlink()
    path.mkdir()
    assert refusal(own_root).startswith(f"{path}: cannot be read")


def test_following_the_message_repairs_a_damaged_file(own_root: Path, packed: Path) -> None:
    raw = own_root / "MNIST" / "raw"
    shutil.copytree(packed, raw, dirs_exist_ok=True)
    (raw / IMAGES).write_bytes(b"damaged")
    assert f"Delete {IMAGES} and start again" in refusal(own_root)
    (raw / IMAGES).unlink()
    assert is_generated(load(own_root), count=200, seed=0)
