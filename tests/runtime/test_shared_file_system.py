"""Runs on the file system of a cluster: without locks, with the manners of NFS, and with hosts of other clocks."""

import errno
import fcntl
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dltrain import cli
from dltrain.runtime import atomic_files, folders
from dltrain.runtime.errors import OutputError
from support.command import Command
from support.contents import files
from support.faults import Child, forked
from support.lives import outcome
from support.network_files import nfs, refuse_all_locks, without_locks
from support.tiers import mostly_slow

RUN = ("train", "model=linear", "data.limit=64", "batch_size=8", "epochs=3", "checkpoint_every=2", "log_every=2")
RUN += ("report=false", "logger=none", "device.threads=1", "keep=3")
NO_LOCKS = [errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS]


# --- locks


@pytest.mark.parametrize("number", NO_LOCKS, ids=lambda number: errno.errorcode[number])
def test_without_locks_a_run_warns_once_and_is_resumed_to_the_same_result(
    dltrain: Command, tmp_path: Path, number: int
) -> None:
    whole = dltrain(*RUN).folder
    expected = outcome(tmp_path)
    shutil.rmtree(whole)
    with without_locks(number):
        stopped = dltrain(*RUN, "limit_steps=3")
        again = dltrain("resume", "last", "limit_steps=null")
    for result in (stopped, again):
        text = result.out + result.err
        assert result.code == 0, text
        assert text.count(f"{stopped.folder}: the file system has no locks") == 1
        assert "start nothing else that writes here until this has ended" in text.replace("\n", " ")
        assert "Traceback" not in text
    assert outcome(tmp_path) == expected


def test_a_host_that_died_leaves_no_lock_behind_where_there_are_none(dltrain: Command, tmp_path: Path) -> None:
    """filelock's own stand-in for locks is a file, which would outlive the host that made it."""
    folder = dltrain(*RUN, "limit_steps=3").folder
    (folder / ".lock").write_text("4242\nanother-host\n")
    with without_locks(errno.ENOSYS):
        assert dltrain("resume", str(folder), "limit_steps=null").code == 0


def test_without_locks_two_writers_leave_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"

    def write(content: bytes) -> Callable[[], None]:
        def action() -> None:
            with without_locks(errno.ENOLCK), folders.locked(tmp_path / ".lock", wait=False):
                for _ in range(200):
                    atomic_files.atomic_write(path, content * 10_000)

        return action

    writers = [Child(write(content)) for content in (b"a", b"b")]
    assert [writer.wait().code for writer in writers] == [0, 0]
    assert path.read_bytes() in (b"a" * 10_000, b"b" * 10_000)
    assert files(tmp_path) == [".lock", "last.pt"]


def test_without_locks_no_run_is_deleted_that_may_be_in_progress(dltrain: Command) -> None:
    folder = dltrain(*RUN).folder
    with without_locks(errno.ENOLCK):
        result = dltrain("runs", "model=linear", "--delete", "--yes")
    assert result.code == 74
    assert f"{folder}: the file system has no locks; whether a run is in progress cannot be known" in result.err
    assert (folder / "summary.json").exists()


def test_without_any_locks_a_search_ends_as_elsewhere(dltrain: Command, tmp_path: Path) -> None:
    """Also those of SQLite, in which Optuna keeps its study."""
    words = ("train", "-m", *RUN[1:], "sweep.search=random", "sweep.trials=3", "optim.lr=interval(0.01,0.1)")
    words += ("sweep.workers=1", "epochs=1", "seed=0")

    def search() -> int:
        refuse_all_locks(errno.ENOLCK)
        with pytest.raises(OSError, match="No locks available"), (tmp_path / "file").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
        return cli.main([*words])

    ended = forked(search)
    assert ended.code == 0, ended
    table = next(Path("outputs/sweeps").glob("*/*/results.csv")).read_text()
    assert table.count("done") == 3


def test_a_lock_that_fails_for_another_reason_is_an_error(dltrain: Command) -> None:
    with without_locks(errno.ESTALE):
        result = dltrain(*RUN)
    assert (result.code, "could not be locked (Stale file handle)" in result.err) == (74, True)


# --- NFS


@pytest.mark.parametrize("seed", mostly_slow(range(20), fast=[0]))
def test_a_run_on_nfs_is_stopped_resumed_and_deleted_as_elsewhere(dltrain: Command, tmp_path: Path, seed: int) -> None:
    shutil.rmtree(dltrain(*RUN).folder)  # once outside, so that all imports are done
    with nfs(lost=0.3, seed=seed) as met:
        stopped = dltrain(*RUN, "limit_steps=9")
        assert stopped.code == 0, stopped.err
        assert dltrain("resume", "last", "limit_steps=null").code == 0
        kept = outcome(tmp_path)
        names = files(stopped.folder / "checkpoints")
        deleted = dltrain("runs", "model=linear", "--delete", "--yes")
    assert {"rename", "flush of a folder"} <= set(met)
    assert names == ["best.pt", "last-1.pt", "last-2.pt", "last.pt"]
    assert (deleted.code, stopped.folder.exists()) == (0, False), deleted.err
    assert dltrain(*RUN).code == 0
    assert outcome(tmp_path) == kept


def test_a_rename_that_really_failed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OutputError, match="could not be written"):
        atomic_files.atomic_write(tmp_path / "file", b"new")
    assert ((tmp_path / "file").read_bytes(), files(tmp_path)) == (b"old", ["file"])


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS])
def test_a_folder_that_cannot_be_flushed_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, "not for folders")

    monkeypatch.setattr("os.fsync", refuse)
    atomic_files.fsync(tmp_path)


def test_a_checkpoint_that_another_host_has_just_replaced_can_be_read_again(
    dltrain: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = dltrain(*RUN, "limit_steps=3").folder
    real = Path.open

    def stale(path: Path, *arguments: object, **settings: object) -> object:
        if path.name == "last.pt":
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(path, *arguments, **settings)  # type: ignore[call-overload]

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", stale)
        result = dltrain("resume", str(folder))
    assert (result.code, "could not be read (Stale file handle). Try again" in result.err) == (66, True)
    assert dltrain("resume", str(folder), "limit_steps=null").code == 0


def test_a_file_that_vanishes_while_links_are_looked_for_is_no_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a temporary file of another host, or what NFS keeps of an open one."""
    monkeypatch.setattr("os.walk", lambda folder: [(folder, [], [".nfs0001"])])
    folders.refuse_links(tmp_path)


# --- clocks


def at(monkeypatch: pytest.MonkeyPatch, minutes: float) -> None:
    """Be on a host whose clock is `minutes` ahead."""
    real = time.time()
    monkeypatch.setattr(time, "localtime", lambda *_: time.gmtime(real + 60 * minutes))
    monkeypatch.setattr(time, "time", lambda: real + 60 * minutes)


@pytest.mark.parametrize("ahead", [0.05, 5, 60, 13 * 60])  # seconds, minutes, the end of summer time, time zones
def test_last_is_the_run_begun_last_whatever_the_clocks_of_the_hosts(
    dltrain: Command, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    begun = []
    for host, kind in enumerate(["", "", "sweeps", "", "sweeps", ""]):
        at(monkeypatch, ahead * (host % 2 == 0))
        folder = folders.dated_folder(kind, "resnet18" if host == 1 else None)
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "last.pt").touch()
        begun.append(folder)
        assert folders.find_run("last") == folder
    assert folders.newest_first(Path("outputs"), Path("outputs/sweeps")) == begun[::-1]


def test_a_folder_from_years_ahead_does_not_date_others(dltrain: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("outputs/2099-01-01/00-00-00").mkdir(parents=True)
    Path("outputs/2099-01-01/99-99-99").mkdir()
    assert folders.dated_folder().parent.name == time.strftime("%Y-%m-%d")


@pytest.mark.parametrize("minutes", [-10, 10])
def test_a_run_resumed_on_a_host_with_another_clock_keeps_the_order_of_its_records(
    dltrain: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: float
) -> None:
    words = (*RUN, "logger=[csv,tensorboard]")
    shutil.rmtree(dltrain(*words).folder)
    folder = dltrain(*words, "limit_steps=9").folder
    at(monkeypatch, minutes)
    assert dltrain("resume", "last", "limit_steps=null").code == 0
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records if record["split"] != "test"]  # which is of the best step
    assert steps == sorted(steps)
    assert steps[-1] == 24
    assert json.loads((folder / "summary.json").read_text())["total_seconds"] < 300
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload().Scalars("train/loss")
    assert [event.step for event in events] == sorted({event.step for event in events})
    assert [event.wall_time for event in events] == sorted(event.wall_time for event in events)
