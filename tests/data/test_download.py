"""A download: once for all processes, whole or not at all, from a failing server too; no write where all is there."""

import contextlib
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
from torchvision import datasets

from dltrain.data import download
from dltrain.data.datasets.cifar10 import cifar10
from dltrain.data.datasets.fashion_mnist import fashion_mnist
from dltrain.data.datasets.mnist import mnist
from dltrain.runtime.errors import InputError
from dltrain.runtime.folders import locked
from support import generated
from support.loopback import failing
from support.tiers import counts, mostly_slow

pytestmark = pytest.mark.usefixtures("no_network")

torture = pytest.mark.torture
SPLITS = ("train", "test")
FOLDER = "cifar-10-batches-py"
PEEK = os.WEXITED | os.WNOHANG | os.WNOWAIT  # whether a process has ended, without taking its exit code


@dataclass(frozen=True)
class Offer:
    """A data set that a server has: what it is called, how it is read, and which bytes must come to lie where."""

    name: str
    served: Path
    load: Callable[..., Any]
    whole: dict[str, bytes]
    packed: tuple[str, ...]

    def point_to(self, address: str) -> None:
        """Let torchvision take it from there; the fixture `no_network` puts back what was."""
        if self.name == "MNIST":
            datasets.MNIST.mirrors = [address]
        else:
            datasets.CIFAR10.url = address + datasets.CIFAR10.filename

    def arrived(self, root: Path) -> bool:
        """Whether both splits are read, and are what was served."""
        train, test = self.load("train", root=str(root)), self.load("test", root=str(root))
        seeds, shape = ([0], (28, 28)) if self.name == "MNIST" else (range(1, 6), (3, 32, 32))
        wanted = numpy.concatenate([generated.pictures(200 // len(seeds), shape, seed)[0] for seed in seeds])
        return numpy.array_equal(train.images.squeeze(1), wanted) and len(test.images) == 50

    def partial(self, root: Path) -> list[str]:
        """Files that lie in place and are not what was served."""
        found = []
        for name, content in self.whole.items():
            try:
                if (root / name).read_bytes() != content:
                    found.append(name)
            except FileNotFoundError:
                continue
        return found


@pytest.fixture(params=["MNIST", "CIFAR10"])
def offer(request: pytest.FixtureRequest, data_root: Path) -> Offer:
    """The generated MNIST or CIFAR-10, packed as a server has it."""
    if request.param == "MNIST":
        request.getfixturevalue("mnist_sums")
        served, folder = request.getfixturevalue("packed"), "MNIST/raw"
        packed = tuple(f"{folder}/{path.name}" for path in served.iterdir())
    else:
        served, folder = request.getfixturevalue("archive").parent, FOLDER
        packed = tuple(path.name for path in served.iterdir())
    whole = {f"{folder}/{path.name}": path.read_bytes() for path in (data_root / folder).iterdir()}
    whole |= {path: (served / Path(path).name).read_bytes() for path in packed}
    return Offer(request.param, served, mnist if request.param == "MNIST" else cifar10, whole, packed)


def forked(work: Callable[[], bool]) -> int:
    """The number of a process that does some work and ends with 0 where it went well, with 130 on SIGINT."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the child must not take one outside its `try`
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other tests may have left threads; none is needed here
        number = os.fork()
    if number:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return number
    code = 3
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.alarm(30)  # seconds; one that hangs ends, and the test fails
        if "tqdm" in sys.modules:  # its lock is shared with every fork: one that was killed holding it stops the others
            sys.modules["tqdm"].tqdm.set_lock(threading.RLock())
        code = 0 if work() else 1
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def exit_code(number: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def requests(journal: Path) -> list[str]:
    """The files that were asked for, in order."""
    return [line.split()[0] for line in journal.read_text().splitlines()]


def tree(root: Path) -> dict[str, tuple[int, int]]:
    """Names, sizes and times of all that lies there."""
    entries = [root, *root.rglob("*")]
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in entries}


# --- one process


def test_a_download_has_the_layout_of_torchvision_and_leaves_nothing_else(offer: Offer, tmp_path: Path) -> None:
    root = tmp_path / "root"
    with failing(offer.served, tmp_path / "journal", {}) as address:
        offer.point_to(address)
        assert exit_code(forked(lambda: offer.arrived(root))) == 0
    assert not offer.partial(root)
    files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert files == {*offer.whole, f".{offer.name}.lock"}
    assert not (root / f".{offer.name}.download").exists()
    assert len(getattr(datasets, offer.name)(root)) == 200


PLANS = {
    "busy": {1: "busy"},
    "cut": {1: "cut"},
    "silent": {1: "silent"},
    "busy and cut": {1: "busy", 2: "cut"},
    "cut twice": {1: "cut", 2: "cut"},
}


@pytest.mark.parametrize("plan", mostly_slow(PLANS, fast=["silent", "busy and cut"]))
def test_a_server_that_fails_twice_is_asked_again(
    plan: str, offer: Offer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if plan == "silent":
        monkeypatch.setattr(download, "SILENCE", 1.0)
    with failing(offer.served, tmp_path / "journal", PLANS[plan]) as address:
        offer.point_to(address)
        assert exit_code(forked(lambda: offer.arrived(tmp_path / "root"))) == 0
    asked = requests(tmp_path / "journal")
    assert len(asked) == len(offer.packed) + len(PLANS[plan])  # what had come whole was not asked for again
    assert not offer.partial(tmp_path / "root")


def test_a_server_that_fails_three_times_is_reported(offer: Offer, tmp_path: Path) -> None:
    def is_refused() -> bool:
        with pytest.raises(InputError, match=r"could not be downloaded: .*HTTP Error 503"):
            offer.load("train", root=str(tmp_path / "root"))
        return True

    with failing(offer.served, tmp_path / "journal", dict.fromkeys((1, 2, 3), "busy")) as address:
        offer.point_to(address)
        assert exit_code(forked(is_refused)) == 0
    assert len(requests(tmp_path / "journal")) == 3


def left(root: Path) -> set[str]:
    """All that lies below a folder."""
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def test_a_refused_download_leaves_nothing_behind(offer: Offer, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for root in (tmp_path / "new" / "root", tmp_path / "there"):
        with pytest.raises(InputError):
            offer.load("train", root=str(root))
    assert not (tmp_path / "new").exists()
    assert not left(tmp_path / "there")


def test_folders_and_files_that_were_there_before_a_refused_download_stay(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte").write_bytes(b"mine")
    with pytest.raises(InputError):
        mnist("train", root=str(tmp_path))
    assert left(tmp_path) == {"MNIST", "MNIST/raw", "MNIST/raw/train-images-idx3-ubyte"}


@pytest.mark.parametrize("fault", ["busy", "cut"])
def test_a_download_that_fails_keeps_only_whole_archives_and_the_next_start_uses_them(
    fault: str, packed: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"

    def is_refused() -> bool:
        with pytest.raises(InputError):
            mnist("train", root=str(root))
        return True

    with failing(packed, tmp_path / "journal", dict.fromkeys((3, 4, 5), fault)) as address:
        datasets.MNIST.mirrors = [address]
        assert exit_code(forked(is_refused)) == 0
        names = [name for name, _ in datasets.MNIST.resources]
        raw = ".MNIST.download/MNIST/raw"
        assert {path for path in left(root) if (root / path).is_file()} == {f"{raw}/{name}" for name in names[:2]}
        assert exit_code(forked(lambda: mnist("train", root=str(root)) is not None)) == 0
    assert requests(tmp_path / "journal") == [*names[:2], *[names[2]] * 3, *names[2:]]


def test_eight_processes_that_are_refused_at_once_leave_no_file_behind(offer: Offer, tmp_path: Path) -> None:
    def is_refused() -> bool:
        with pytest.raises(InputError, match="could not be downloaded"):
            offer.load("train", root=str(tmp_path / "root"))
        return True

    assert [exit_code(child) for child in [forked(is_refused) for _ in range(8)]] == [0] * 8
    assert not left(tmp_path / "root")


def test_a_process_that_waited_for_one_that_failed_is_refused_and_leaves_nothing_behind(
    offer: Offer, tmp_path: Path
) -> None:
    root, journal = tmp_path / "root", tmp_path / "journal"

    def about_to_wait(path: Path, *, wait: bool) -> contextlib.AbstractContextManager[None]:
        journal.touch()
        return locked(path, wait=wait)

    def is_refused() -> bool:
        download.locked = about_to_wait  # type: ignore[attr-defined]  (in this process alone)
        with pytest.raises(InputError, match="could not be downloaded"):
            offer.load("train", root=str(root))
        return True

    root.mkdir()
    with locked(root / f".{offer.name}.lock", wait=True):  # as the first process, which removes all it has made
        child = forked(is_refused)
        while not journal.exists():
            time.sleep(0.001)
        (root / f".{offer.name}.lock").unlink()
        root.rmdir()
    assert exit_code(child) == 0
    assert not root.exists()


def test_a_process_that_waited_for_one_that_failed_downloads_the_data(offer: Offer, tmp_path: Path) -> None:
    """The first is refused three times and removes lock and folder; the second, which waited, makes them anew."""
    root = tmp_path / "new" / "root"

    def is_refused() -> bool:
        with pytest.raises(InputError, match="503"):
            offer.load("train", root=str(root))
        return True

    with failing(offer.served, tmp_path / "journal", dict.fromkeys((1, 2, 3), "busy")) as address:
        offer.point_to(address)
        first = forked(is_refused)
        while not (tmp_path / "journal").exists() or not requests(tmp_path / "journal"):
            time.sleep(0.001)
        assert exit_code(forked(lambda: offer.arrived(root))) == 0
        assert exit_code(first) == 0
    assert not offer.partial(root)


def test_without_a_network_there_is_one_attempt_and_the_message_names_the_files(
    offer: Offer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "PAUSES", (-1.0, -1.0))  # a second try would end in another error
    with pytest.raises(InputError) as caught:
        offer.load("test", root=str(tmp_path))
    message = str(caught.value)
    assert "refused" in message
    assert len(message.splitlines()) <= 3
    assert all(Path(path).name in message for path in offer.packed)
    assert str(tmp_path) in message


def test_the_default_socket_timeout_is_restored(offer: Offer, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        offer.load("test", root=str(tmp_path))
    assert socket.getdefaulttimeout() is None


def test_existing_packed_files_are_used_without_a_network(offer: Offer, tmp_path: Path) -> None:
    for path in offer.packed:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(offer.whole[path])
    assert offer.arrived(tmp_path)


def test_a_damaged_packed_file_is_downloaded_again_or_kept_without_a_network(offer: Offer, tmp_path: Path) -> None:
    root, path = tmp_path / "root", tmp_path / "root" / offer.packed[0]
    path.parent.mkdir(parents=True)
    path.write_bytes(offer.whole[offer.packed[0]][:1000])
    with pytest.raises(InputError):
        offer.load("train", root=str(root))
    assert path.read_bytes() == offer.whole[offer.packed[0]][:1000]
    with failing(offer.served, tmp_path / "journal", {}) as address:
        offer.point_to(address)
        assert offer.arrived(root)
    assert not offer.partial(root)


# --- processes that are killed


@counts(2, 6, 100)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_download_interrupted_at_any_moment_leaves_no_invalid_data(
    number: signal.Signals, count: int, offer: Offer, tmp_path: Path
) -> None:
    root, generator = tmp_path / "root", random.Random(count)
    ended = 0
    with failing(offer.served, tmp_path / "journal", {}) as address:
        offer.point_to(address)
        while ended < count:
            child = forked(lambda: offer.arrived(root))
            time.sleep(generator.uniform(0, 0.15))
            os.kill(child, number)
            code = exit_code(child)
            assert code in (0, -number, 130)
            ended += code != 0
            assert not offer.partial(root)
            if code == 0:
                shutil.rmtree(root)
        assert exit_code(forked(lambda: offer.arrived(root))) == 0
    assert not offer.partial(root)


def test_a_start_after_a_kill_reuses_finished_packed_files(
    packed: Path, mnist_sums: dict[str, str], tmp_path: Path
) -> None:
    root = tmp_path / "root"
    with failing(packed, tmp_path / "journal", {3: "silent"}) as address:
        datasets.MNIST.mirrors = [address]
        child = forked(lambda: mnist("train", root=str(root)) is not None)
        while len(requests(tmp_path / "journal")) < 3 and not os.waitid(os.P_PID, child, PEEK):
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
        assert exit_code(child) == -signal.SIGKILL
        assert exit_code(forked(lambda: mnist("train", root=str(root)) is not None)) == 0
    names = [name for name, _ in datasets.MNIST.resources]
    assert requests(tmp_path / "journal") == [*names[:3], *names[2:]]


def test_half_of_an_unpacked_file_from_a_killed_start_is_not_believed(offer: Offer, tmp_path: Path) -> None:
    staging = tmp_path / "root" / f".{offer.name}.download"
    for path, content in offer.whole.items():
        (staging / path).parent.mkdir(parents=True, exist_ok=True)
        (staging / path).write_bytes(content if path in offer.packed else content[: len(content) // 2])
    assert offer.arrived(tmp_path / "root")  # without a network: the packed ones are whole


# --- eight processes at once


@dataclass
class Round:
    """What became of eight processes that started at once without data."""

    codes: list[int]
    killed: int
    partial: list[str]


def start_eight(offer: Offer, root: Path, *, kills: int, generator: random.Random) -> Round:
    """Eight processes that need the data, of which some are killed at random; what lies in place is watched."""
    waiting, start = os.pipe()

    def work() -> bool:
        os.close(start)
        os.read(waiting, 1)  # ends when the parent has closed its end too
        return offer.arrived(root)

    alive = {forked(work) for _ in range(8)}
    os.close(waiting)
    os.close(start)
    begun = time.monotonic()
    due = sorted(begun + generator.uniform(0, 0.15) for _ in range(kills))
    found = Round([], 0, [])
    while alive:
        if due and due[0] < time.monotonic():
            del due[0]
            os.kill(generator.choice(sorted(alive)), signal.SIGKILL)
        found.partial += offer.partial(root)
        for child in list(alive):
            number, status = os.waitpid(child, os.WNOHANG)
            if number:
                alive.remove(child)
                code = os.waitstatus_to_exitcode(status)
                found.killed += code == -signal.SIGKILL
                found.codes += [code] if code != -signal.SIGKILL else []
        time.sleep(0.001)
    found.partial += offer.partial(root)
    return found


ROUNDS = [2, pytest.param(20, marks=torture)]


@pytest.mark.parametrize("rounds", ROUNDS)
def test_eight_cold_processes_at_once_download_once(rounds: int, offer: Offer, tmp_path: Path) -> None:
    generator = random.Random(0)
    for number in range(rounds):
        journal = tmp_path / f"journal {number}"
        with failing(offer.served, journal, {}) as address:
            offer.point_to(address)
            found = start_eight(offer, tmp_path / str(number), kills=0, generator=generator)
        assert (found.codes, found.partial) == ([0] * 8, [])
        assert Counter(requests(journal)) == {Path(path).name: 1 for path in offer.packed}


@pytest.mark.parametrize("rounds", ROUNDS)
def test_survivors_of_kills_and_a_failing_server_get_the_data_and_nothing_partial_is_seen(
    rounds: int, offer: Offer, tmp_path: Path
) -> None:
    generator, killed = random.Random(rounds), 0
    for number in range(rounds):
        kills = 8 * (number + 1) // 5 - killed  # a fifth of all; who was done before its time is made up for
        journal = tmp_path / f"journal {number}"
        plan = {generator.randint(1, 3): generator.choice(("busy", "cut")) for _ in range(2)}
        with failing(offer.served, journal, plan) as address:
            offer.point_to(address)
            found = start_eight(offer, tmp_path / str(number), kills=kills, generator=generator)
        assert found.codes == [0] * (8 - found.killed)
        assert not found.partial
        assert not offer.partial(tmp_path / str(number))
        # One download: beyond it only what the server failed at, or a killed process was in the midst of.
        failed = sum(not line.endswith("whole") for line in journal.read_text().splitlines())
        assert len(offer.packed) <= len(requests(journal)) <= len(offer.packed) + failed + found.killed
        killed += found.killed
    print(f"{offer.name}: {rounds} rounds, {8 * rounds} processes, {killed} killed")


# --- folders that cannot be written


@pytest.fixture
def frozen(data_root: Path, cifar10_sums: dict[str, str]) -> Iterator[Path]:
    """A copy of the generated data in a folder that nobody may write; pytest's own are closed to other users."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        shutil.copytree(data_root, root)
        Path(folder).chmod(0o755)
        yield root
        for path in (root, *root.rglob("*")):
            path.chmod(0o755)


def freeze(root: Path) -> None:
    for path in (*root.rglob("*"), root):
        path.chmod(0o555 if path.is_dir() else 0o444)


def without_rights(work: Callable[[], bool]) -> int:
    """The exit code of work in a process that may write to no folder of root's; 4 where it tries to, or to connect."""
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
    changes = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate"}

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        seen = event == "socket.connect" or event in changes
        if seen or (event == "open" and (arguments[2] or 0) & writing):
            os.write(2, f"{event} {arguments}\n".encode())
            os._exit(4)

    def inside() -> bool:
        give_up_rights()
        sys.addaudithook(watch)
        return work()

    return exit_code(forked(inside))


def give_up_rights() -> None:
    if os.getuid() == 0:  # permission bits do not bind root
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)


def test_frozen_data_cannot_be_written_and_an_attempt_is_detected(frozen: Path) -> None:
    freeze(frozen)

    def try_to_write() -> bool:
        give_up_rights()
        with pytest.raises(PermissionError):
            (frozen / "new").touch()
        return True

    assert exit_code(forked(try_to_write)) == 0
    assert without_rights(lambda: (frozen / "new").touch() is None) == 4


def test_data_in_a_folder_that_cannot_be_written_is_read_without_a_write_or_a_network(
    frozen: Path, mnist_sums: dict[str, str]
) -> None:
    freeze(frozen)
    before = tree(frozen)

    def read_all() -> bool:
        found = [load(split, root=str(frozen)) for load in (mnist, fashion_mnist, cifar10) for split in SPLITS]
        return [len(each.images) for each in found if each] == [200, 50] * 3

    assert without_rights(read_all) == 0
    assert tree(frozen) == before


@pytest.mark.parametrize(
    ("load", "folder", "file"),
    [
        (mnist, "MNIST/raw", "train-images-idx3-ubyte.gz"),
        (fashion_mnist, "FashionMNIST/raw", "t10k-labels-idx1-ubyte.gz"),
        (cifar10, FOLDER, "cifar-10-python.tar.gz"),
    ],
)
def test_data_missing_in_a_folder_that_cannot_be_written_is_named_in_at_most_three_lines(
    load: Callable[..., Any], folder: str, file: str, frozen: Path
) -> None:
    shutil.rmtree(frozen / folder)
    freeze(frozen)
    before = tree(frozen)

    def is_refused() -> bool:
        give_up_rights()
        with pytest.raises(InputError) as caught:
            load("train", root=str(frozen))
        message = str(caught.value)
        assert len(message.splitlines()) <= 3
        assert f"is not in {frozen / folder} and could not be downloaded: " in message
        assert "Permission denied" in message
        assert file in message
        return "set data.root" in message

    assert exit_code(forked(is_refused)) == 0
    assert tree(frozen) == before
