"""Fixtures: the command line in this process, generated data sets in their real formats, the real data sets."""

import contextlib
import gc
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
from support.lives import Nursery, nursery
from support.real_data import REAL_DATA, REAL_SUMS

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # onnxruntime, which some tests import directly, would send usage data


def pytest_collection_finish() -> None:
    """Spare the garbage collector what stays until the end: torch's modules and thousands of collected tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def dltrain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs a command line in this process, in an empty folder."""
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
    """Return a folder of runs that tests share, and the run of each tuple of overrides, relative to that folder."""
    return tmp_path_factory.mktemp("finished"), {}


@pytest.fixture
def trained(dltrain: Command, finished_runs: tuple[Path, dict[tuple[str, ...], Path]]) -> Trained:
    """Return a function that copies a finished run with the given overrides to the test's folder and returns its path.

    Each run is trained once per session, and writes no page and no event files unless the overrides ask for them.
    """
    home, runs = finished_runs

    def run(*overrides: str) -> Path:
        keys = {override.partition("=")[0] for override in overrides}
        quiet = [override for override in ("report=false", "logger=none") if override.partition("=")[0] not in keys]
        if overrides not in runs:
            with contextlib.chdir(home):
                result = dltrain("train", *overrides, *quiet)
            assert result.code == 0, result.err
            runs[overrides] = result.folder
        return Path(shutil.copytree(home / runs[overrides], runs[overrides], dirs_exist_ok=False))

    return run


@pytest.fixture(scope="session")
def lives() -> Iterator[Nursery]:
    """Return a server that starts processes in milliseconds."""
    with nursery() as ready:
        yield ready


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data root with generated MNIST, Fashion-MNIST and CIFAR-10, which also needs `cifar10_sums`."""
    root = tmp_path_factory.mktemp("data")
    generated.write_mnist(root)
    generated.write_mnist(root, name="FashionMNIST")
    generated.write_cifar10(root)
    return root


@pytest.fixture
def cifar10_sums(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Make torchvision accept the checksums of the generated CIFAR-10, and return them."""
    from torchvision.datasets import CIFAR10

    sums = generated.write_cifar10(data_root)
    monkeypatch.setattr(CIFAR10, "train_list", [[f"data_batch_{i}", sums[f"data_batch_{i}"]] for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})
    return sums


@pytest.fixture
def packed(data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the generated MNIST as .gz files, whose checksums torchvision accepts."""
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "resources", generated.pack_mnist(data_root, tmp_path / "packed"))
    return tmp_path / "packed"


@pytest.fixture
def archive(data_root: Path, cifar10_sums: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the generated CIFAR-10 as an archive whose checksum torchvision accepts."""
    from torchvision.datasets import CIFAR10

    path = tmp_path / "served" / CIFAR10.filename
    monkeypatch.setattr(CIFAR10, "tgz_md5", generated.pack_cifar(data_root, path))
    return path


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Send downloads to a port without a listener, and retry at once."""
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
def _no_image_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch off the cache of decoded images; a test that needs it sets DLTRAIN_CACHE."""
    monkeypatch.setenv("DLTRAIN_CACHE", "")


@pytest.fixture(autouse=True)
def _no_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the known checksums, so that generated files are accepted; `mnist_sums` and `real_data` set them."""
    monkeypatch.setattr(idx, "SUMS", {})


@pytest.fixture
def mnist_sums(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Make dltrain expect the checksums of the generated MNIST, and return them."""
    sums = generated.mnist_sums(data_root)
    monkeypatch.setattr(idx, "SUMS", {"MNIST": sums})
    return sums


@pytest.fixture
def real_data(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder with the real MNIST and CIFAR-10 from DLTRAIN_DATA; skip the test without it."""
    monkeypatch.setattr(idx, "SUMS", REAL_SUMS)
    if not REAL_DATA or not (Path(REAL_DATA) / "MNIST" / "raw").is_dir():
        pytest.skip("DLTRAIN_DATA does not name a folder with the real data sets")
    return Path(REAL_DATA)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Compute on one thread: faster for tiny tensors, and independent of what an earlier test has set."""
    torch.set_num_threads(1)
