"""SVHN: read back as written, noughts as 0, downloaded, and refused when a file is not the original."""

import shutil
from pathlib import Path

import numpy
import pytest
from torchvision.datasets import SVHN

from dltrain.data.datasets.svhn import svhn
from dltrain.data.splits import Examples
from dltrain.runtime.errors import InputError
from support import generated
from support.loopback import serving

pytestmark = pytest.mark.usefixtures("no_network")


@pytest.fixture
def root(tmp_path: Path, no_network: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a generated SVHN, which torchvision knows by its checksums as it knows the real one."""
    sums = generated.write_svhn(tmp_path / "svhn")
    lists = {split: [*SVHN.split_list[split][:2], md5] for split, md5 in sums.items()}
    monkeypatch.setattr(SVHN, "split_list", {**SVHN.split_list, **lists})
    return tmp_path / "svhn"


def load(root: Path, split: str) -> Examples:
    found = svhn(split, root=str(root))
    assert found is not None
    return found


def test_both_splits_are_read_back_and_ten_is_a_nought(root: Path) -> None:
    for split, count, seed in (("train", 60, 0), ("test", 40, 1)):
        images, labels = generated.pictures(count, (3, 32, 32), seed)
        found = load(root, split)
        assert numpy.array_equal(found.images, images)
        assert found.images.is_contiguous()
        assert found.targets.tolist() == labels.tolist()
        assert found.classes == tuple("0123456789")


def test_there_is_no_validation_split_even_without_files(tmp_path: Path) -> None:
    assert svhn("val", root=str(tmp_path)) is None


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_altered_file_is_named_and_never_opened(root: Path, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = root / f"{split}_32x32.mat"
    generated.write_svhn(root, train=20, test=20)  # files that can be read, and are other ones
    monkeypatch.setattr("scipy.io.loadmat", lambda *arguments: pytest.fail("was opened"))
    with pytest.raises(InputError, match=f"{path}: expected a file with MD5") as caught:
        load(root, split)
    assert "Delete it" in str(caught.value)


def test_missing_files_are_downloaded_checked_and_read(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(root) as address:
        lists = {split: [address + name, name, md5] for split, (_, name, md5) in SVHN.split_list.items()}
        monkeypatch.setattr(SVHN, "split_list", lists)
        assert len(load(tmp_path / "new", "train").images) == 60
    assert len(load(tmp_path / "new", "test").images) == 40


def test_an_existing_file_is_not_downloaded_again(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new").mkdir()
    shutil.copy(root / "train_32x32.mat", tmp_path / "new")
    (root / "train_32x32.mat").unlink()
    with serving(root) as address:
        lists = {split: [address + name, name, md5] for split, (_, name, md5) in SVHN.split_list.items()}
        monkeypatch.setattr(SVHN, "split_list", lists)
        assert len(load(tmp_path / "new", "test").images) == 40
    assert len(load(tmp_path / "new", "train").images) == 60


def test_without_files_and_network_the_message_names_the_folder_and_the_key(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"SVHN is not in {tmp_path} and") as caught:
        load(tmp_path, "train")
    assert "Put train_32x32.mat, test_32x32.mat there, or set data.root" in str(caught.value)
