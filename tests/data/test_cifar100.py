"""CIFAR-100: read back as written with its hundred classes, downloaded, and refused when a file is not the original."""

from pathlib import Path

import numpy
import pytest
from torchvision.datasets import CIFAR100

from dltrain.data.datasets.cifar100 import cifar100
from dltrain.data.splits import Examples
from dltrain.runtime.errors import InputError
from support import generated
from support.loopback import serving

pytestmark = pytest.mark.usefixtures("no_network")

FOLDER = "cifar-100-python"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a generated CIFAR-100, which torchvision knows by its checksums as it knows the real one."""
    sums = generated.write_cifar100(tmp_path)
    monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": sums["meta"]})
    return tmp_path


def load(root: Path, split: str) -> Examples:
    found = cifar100(split, root=str(root))
    assert found is not None
    return found


def test_both_splits_are_read_back_with_the_fine_classes(root: Path) -> None:
    for split, count, seed in (("train", 60, 0), ("test", 40, 1)):
        images, labels = generated.pictures(count, (3, 32, 32), seed)
        found = load(root, split)
        assert numpy.array_equal(found.images, images)
        assert found.targets.tolist() == [10 * int(label) + 9 for label in labels]
        assert found.classes == tuple(f"thing {i}" for i in range(100))


def test_there_is_no_validation_split_even_without_files(tmp_path: Path) -> None:
    assert cifar100("val", root=str(tmp_path)) is None


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_an_altered_file_is_named_and_never_opened(root: Path, name: str) -> None:
    path = root / FOLDER / name
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(InputError, match=f"{path}: expected MD5") as caught:
        load(root, "train")
    assert f"Delete the folder {path.parent}" in str(caught.value)


def test_a_missing_folder_is_downloaded_checked_and_read(
    root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, new = tmp_path_factory.mktemp("served") / "archives", tmp_path_factory.mktemp("new")
    monkeypatch.setattr(CIFAR100, "tgz_md5", generated.pack_cifar(root, served / CIFAR100.filename, FOLDER))
    with serving(served) as address:
        monkeypatch.setattr(CIFAR100, "url", f"{address}{CIFAR100.filename}")
        assert len(load(new, "train").images) == 60
    assert len(load(new, "test").images) == 40


def test_without_folder_and_network_the_message_names_the_folder_and_the_key(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="CIFAR100 is not in") as caught:
        load(tmp_path, "train")
    assert "data.root" in str(caught.value)
