"""Fixtures: the command line in this process, data sets in the true formats, the real data where it is."""

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dltrain import cli
from dltrain.data import download, idx
from support import generated
from support.command import Command, Result, Trained
from support.real_data import REAL_DATA, REAL_SUMS

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # onnxruntime, which some tests import themselves, would call home


@pytest.fixture
def dltrain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DLTRAIN_DATA", raising=False)
    monkeypatch.delenv("DLTRAIN_TRACEBACK", raising=False)

    def run(*arguments: str) -> Result:
        capsys.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def finished_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[tuple[str, ...], Path]]:
    """A folder with runs that tests share, and the run of each line of overrides, relative to that folder."""
    return tmp_path_factory.mktemp("finished"), {}


@pytest.fixture
def trained(dltrain: Command, finished_runs: tuple[Path, dict[tuple[str, ...], Path]]) -> Trained:
    """Return the folder of a finished run with these overrides, below the test's own folder.

    It is trained once in a session, without a page and event files where the overrides do not ask for them, and copied.
    """
    home, runs = finished_runs

    def run(*overrides: str) -> Path:
        typed = {override.partition("=")[0] for override in overrides}
        unasked = [word for word in ("report=false", "logger=none") if word.partition("=")[0] not in typed]
        if overrides not in runs:
            with contextlib.chdir(home):
                result = dltrain("train", *overrides, *unasked)
            assert result.code == 0, result.err
            runs[overrides] = result.folder
        return Path(shutil.copytree(home / runs[overrides], runs[overrides], dirs_exist_ok=False))

    return run


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with generated MNIST, Fashion-MNIST and CIFAR-10; CIFAR-10 needs the fixture `cifar10_sums` too."""
    root = tmp_path_factory.mktemp("data")
    generated.write_mnist(root)
    generated.write_mnist(root, name="FashionMNIST")
    generated.write_cifar10(root)
    return root


@pytest.fixture
def cifar10_sums(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Let torchvision know the generated CIFAR-10 by its checksums, as it knows the real one."""
    from torchvision.datasets import CIFAR10

    sums = generated.write_cifar10(data_root)
    monkeypatch.setattr(CIFAR10, "train_list", [[f"data_batch_{i}", sums[f"data_batch_{i}"]] for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})
    return sums


@pytest.fixture
def packed(data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the generated MNIST as .gz files, which torchvision knows by their checksums."""
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "resources", generated.pack_mnist(data_root, tmp_path / "packed"))
    return tmp_path / "packed"


@pytest.fixture
def archive(data_root: Path, cifar10_sums: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The generated CIFAR-10 as the archive that torchvision knows by its checksum."""
    from torchvision.datasets import CIFAR10

    path = tmp_path / "served" / CIFAR10.filename
    monkeypatch.setattr(CIFAR10, "tgz_md5", generated.pack_cifar(data_root, path))
    return path


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Downloads go to a port where nobody listens, and a further try comes at once."""
    from torchvision.datasets import CIFAR10, CIFAR100, KMNIST, MNIST, SVHN, FashionMNIST

    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("DLTRAIN_DATA", raising=False)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        for dataset in (MNIST, FashionMNIST, KMNIST):
            monkeypatch.setattr(dataset, "mirrors", [address])
        for dataset in (CIFAR10, CIFAR100):
            monkeypatch.setattr(dataset, "url", address + dataset.filename)
        lists = {split: [address + name, name, md5] for split, (_, name, md5) in SVHN.split_list.items()}
        monkeypatch.setattr(SVHN, "split_list", lists)
        yield


@pytest.fixture(autouse=True)
def _nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoded pictures are not kept for the next start, but where a test asks for it."""
    monkeypatch.setenv("DLTRAIN_CACHE", "")


@pytest.fixture(autouse=True)
def _no_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of generated files no sum is known, as if they were Fashion-MNIST's; `mnist_sums` and `real_data` make known."""
    monkeypatch.setattr(idx, "SUMS", {})


@pytest.fixture
def mnist_sums(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Let dltrain know the generated MNIST by its checksums, as it knows the real one."""
    sums = generated.mnist_sums(data_root)
    monkeypatch.setattr(idx, "SUMS", {"MNIST": sums})
    return sums


@pytest.fixture
def real_data(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with the real MNIST and CIFAR-10, named by DLTRAIN_DATA; skips where there is none."""
    monkeypatch.setattr(idx, "SUMS", REAL_SUMS)
    if not REAL_DATA or not (Path(REAL_DATA) / "MNIST" / "raw").is_dir():
        pytest.skip("DLTRAIN_DATA does not name a folder with the real data sets")
    return Path(REAL_DATA)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tiny tensors are slower on more threads, and a test must not depend on what one before it set."""
    torch.set_num_threads(1)
