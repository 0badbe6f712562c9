"""CIFAR-10: read back as written, downloaded, and refused by name when a file is missing or not the original."""

import gc
import hashlib
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torchvision.datasets import CIFAR10

from dltrain.data.datasets.cifar10 import cifar10
from dltrain.data.loader import channel_statistics
from dltrain.data.splits import Examples
from dltrain.runtime.errors import InputError
from support import generated
from support.loopback import serving

pytestmark = pytest.mark.usefixtures("no_network")

FOLDER = "cifar-10-batches-py"
Sums = dict[str, str]


@pytest.fixture
def own_root(data_root: Path, cifar10_sums: Sums, tmp_path: Path) -> Path:
    """A copy of the generated CIFAR-10, to be damaged."""
    shutil.copytree(data_root / FOLDER, tmp_path / FOLDER)
    return tmp_path


@contextmanager
def served(archive: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A real server on this machine, from which torchvision gets the archive."""
    with serving(archive.parent) as address:
        monkeypatch.setattr(CIFAR10, "url", f"{address}{archive.name}")
        yield


def load(root: Path, split: str = "train") -> Examples:
    found = cifar10(split, root=str(root))
    assert found is not None
    return found


def refusal(root: Path, split: str = "train") -> str:
    """What a person reads when the data set cannot be had; the exit code is that of a missing or damaged input."""
    with pytest.raises(InputError) as caught:
        load(root, split)
    assert caught.value.exit_code == 66
    return str(caught.value)


# --- files that are there


def test_the_training_batches_are_read_back_in_order(data_root: Path, cifar10_sums: Sums) -> None:
    found = load(data_root)
    written = [generated.pictures(40, (3, 32, 32), seed) for seed in range(1, 6)]
    assert numpy.array_equal(found.images, numpy.concatenate([images for images, _ in written]))
    assert numpy.array_equal(found.targets, numpy.concatenate([labels for _, labels in written]))


def test_the_test_batch_is_read_back(data_root: Path, cifar10_sums: Sums) -> None:
    found = load(data_root, "test")
    images, labels = generated.pictures(50, (3, 32, 32), seed=9)
    assert numpy.array_equal(found.images, images)
    assert numpy.array_equal(found.targets, labels)


def test_images_are_contiguous_bytes_with_int64_labels_and_class_names(data_root: Path, cifar10_sums: Sums) -> None:
    found = load(data_root)
    assert (found.images.dtype, found.images.shape) == (torch.uint8, (200, 3, 32, 32))
    assert found.images.is_contiguous()
    assert (found.targets.dtype, found.targets.shape) == (torch.int64, (200,))
    assert found.classes == tuple(f"thing {i}" for i in range(10))


def test_the_colour_planes_are_red_green_blue(own_root: Path, cifar10_sums: Sums) -> None:
    colour = numpy.repeat(numpy.array([[10, 20, 30]], dtype=numpy.uint8), 1024, axis=1)  # 1024 red, green, blue bytes
    content = pickle.dumps({"data": colour, "labels": [0]}, protocol=2)
    (own_root / FOLDER / "test_batch").write_bytes(content)
    CIFAR10.test_list[0][1] = hashlib.md5(content).hexdigest()  # the fixture's list, not torchvision's
    picture = load(own_root, "test").images[0]
    assert [channel.unique().tolist() for channel in picture] == [[10], [20], [30]]


def test_there_is_no_validation_split_even_without_files(tmp_path: Path) -> None:
    assert cifar10("val", root=str(tmp_path)) is None


def test_without_the_key_the_environment_names_the_folder(
    data_root: Path, cifar10_sums: Sums, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLTRAIN_DATA", str(data_root))
    found = cifar10("test", root=None)
    assert found is not None
    assert len(found.images) == 50


def test_the_real_cifar10_has_its_known_counts_and_statistics(real_data: Path) -> None:
    train, test = load(real_data), load(real_data, "test")
    mean, std = channel_statistics(train.images)
    assert mean == pytest.approx((0.49139968, 0.48215841, 0.44653091), abs=1e-8)
    assert std == pytest.approx((0.24703223, 0.24348513, 0.26158784), abs=1e-8)
    assert torch.bincount(train.targets).tolist() == [5000] * 10
    assert torch.bincount(test.targets).tolist() == [1000] * 10
    assert train.classes[:3] == ("airplane", "automobile", "bird")


# --- a folder that is not there


def test_a_missing_folder_is_downloaded_and_then_read_without_the_server(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(archive, monkeypatch):
        load(tmp_path / "new")
    assert len(load(tmp_path / "new").images) == 200


def test_a_download_with_a_wrong_checksum_is_refused_and_not_unpacked(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.write_bytes(archive.read_bytes() + b"\0")
    with served(archive, monkeypatch):
        message = refusal(tmp_path)
    assert f"{tmp_path / FOLDER} and could not be downloaded" in message
    assert "corrupted" in message
    assert not (tmp_path / FOLDER).exists()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_server_without_the_archive_is_reported(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.unlink()
    with served(archive, monkeypatch):
        message = refusal(tmp_path)
    assert f"{tmp_path / FOLDER} and could not be downloaded" in message
    gc.collect()  # torchvision leaves the server's answer open: let it go here, not in a later test
    assert "404" in message


def test_without_folder_and_network_the_message_names_the_folder_and_the_key(tmp_path: Path) -> None:
    message = refusal(tmp_path)
    assert f"CIFAR10 is not in {tmp_path / FOLDER} and could not be downloaded" in message
    assert "data.root" in message


# --- damaged files

FILES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_with_the_sum_it_should_have(name: str, own_root: Path, cifar10_sums: Sums) -> None:
    path = own_root / FOLDER / name
    path.unlink()
    message = refusal(own_root)
    assert message.startswith(f"{path}: expected a file with MD5 {cifar10_sums[name]}, found none.")
    assert f"Delete the folder {path.parent} and start again" in message


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "one bit altered": lambda old: old[:30] + bytes([old[30] ^ 1]) + old[31:],
    "cut off": lambda old: old[: len(old) // 2],
    "too long": lambda old: old + b"\0",
    "empty": lambda old: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_an_altered_file_is_named_with_the_sum_it_should_have_and_the_sum_it_has(
    name: str, damage: str, own_root: Path, cifar10_sums: Sums
) -> None:
    path = own_root / FOLDER / name
    content = DAMAGES[damage](path.read_bytes())
    path.write_bytes(content)
    found = hashlib.md5(content).hexdigest()
    message = refusal(own_root)
    assert message.startswith(f"{path}: expected MD5 {cifar10_sums[name]}, found {found} ({len(content)} bytes).")
    assert f"Delete the folder {path.parent} and start again" in message


@pytest.mark.parametrize("count", [50, pytest.param(500, marks=pytest.mark.torture)])
def test_every_damaged_file_is_refused_with_both_sums(count: int, own_root: Path, cifar10_sums: Sums) -> None:
    generator = numpy.random.default_rng(count)
    kinds = ("noise", "other size", "cut", "longer", "bit")
    for number in range(count):
        path = own_root / FOLDER / FILES[number % len(FILES)]
        whole = path.read_bytes()
        content = generated.damaged(whole, kinds[number % len(kinds)], generator)
        path.write_bytes(content)
        found = hashlib.md5(content).hexdigest()
        message = refusal(own_root, ("train", "test")[number % 2])
        assert message.startswith(f"{path}: expected MD5 {cifar10_sums[path.name]}, found {found} ")
        path.write_bytes(whole)
    assert len(load(own_root).images) == 200


class Payload:
    """A pickle that makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


def test_the_payload_makes_a_file_when_it_is_unpickled(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "made"), protocol=2))
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", FILES)
def test_an_altered_pickle_is_never_unpickled(name: str, split: str, own_root: Path, tmp_path: Path) -> None:
    (own_root / FOLDER / name).write_bytes(pickle.dumps(Payload(tmp_path / "made"), protocol=2))
    refusal(own_root, split)
    assert not (tmp_path / "made").exists()


def test_following_the_message_repairs_a_damaged_folder(
    own_root: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own_root / FOLDER / "test_batch").write_bytes(b"damaged")
    assert f"Delete the folder {own_root / FOLDER} and start again" in refusal(own_root)
    shutil.rmtree(own_root / FOLDER)
    with served(archive, monkeypatch):
        assert len(load(own_root).images) == 200
