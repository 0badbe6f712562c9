"""A file is written whole or not at all, and what the system refuses is an OutputError; durable.py alone."""

import errno
import os
from pathlib import Path

import pytest

from dltrain.runtime import atomic_files
from dltrain.runtime.errors import OutputError
from support.contents import files
from support.faults import FAILURES, KILLS, Fault, at_call, file_limit, forked

OLD, NEW = b"old" * 100, b"new" * 200


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that is to be replaced."""
    (tmp_path / "file").write_bytes(OLD)
    return tmp_path / "file"


def test_the_parts_replace_the_earlier_file(path: Path) -> None:
    atomic_files.atomic_write(path, NEW, memoryview(OLD), b"")
    assert path.read_bytes() == NEW + OLD
    assert files(path.parent) == ["file"]


def test_the_bytes_are_flushed_before_the_rename_and_the_name_after_it(path: Path) -> None:
    with at_call() as made:
        atomic_files.atomic_write(path, NEW)
    assert made == ["open", "write", "fsync", "close", "replace", "open", "fsync", "close", "unlink"]


def test_partial_writes_are_completed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    atomic_files.atomic_write(path, NEW, OLD)
    assert path.read_bytes() == NEW + OLD


def test_the_permissions_of_a_file_follow_the_umask(path: Path) -> None:
    before = os.umask(0o027)
    try:
        atomic_files.atomic_write(path, NEW)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("fault", FAILURES, ids=str)
def test_a_failure_at_any_call_leaves_the_old_or_new_file_and_is_reported(path: Path, fault: Fault) -> None:
    with at_call() as made:
        atomic_files.atomic_write(path, OLD)
    for number, name in enumerate(made):
        path.write_bytes(OLD)
        told = False
        with at_call(number, fault):
            try:
                atomic_files.atomic_write(path, NEW)
            except OutputError as error:
                told = True
                assert str(error).startswith(f"{path}: could not be written ({os.strerror(fault.number)}); 600 bytes")
        assert path.read_bytes() == (OLD if number <= made.index("replace") else NEW), name
        assert told == (name != "unlink"), name  # nothing is left to unlink
        assert files(path.parent) == ["file"], name


@pytest.mark.parametrize("fault", KILLS, ids=str)
def test_a_kill_at_any_call_leaves_the_old_or_new_file_and_removable_leftovers(path: Path, fault: Fault) -> None:
    with at_call() as made:
        atomic_files.atomic_write(path, OLD)

    def child() -> None:
        with at_call(number, fault):
            atomic_files.atomic_write(path, NEW)

    for number, name in enumerate(made):
        path.write_bytes(OLD)
        assert forked(child).code == -9
        renamed = number > made.index("replace") or (name == "replace" and fault.moment == "after")
        assert path.read_bytes() == (NEW if renamed else OLD), name
        atomic_files.remove_leftovers(path)
        assert files(path.parent) == ["file"], name


def test_a_full_disk_is_reported_with_the_path_and_the_bytes_needed(path: Path) -> None:
    with file_limit(len(NEW) - 1), pytest.raises(OutputError) as caught:
        atomic_files.atomic_write(path, NEW)
    assert caught.value.exit_code == 74
    assert str(caught.value) == (
        f"{path}: could not be written (File too large); 600 bytes are needed. "
        "Free disk space or change the permissions"
    )
    assert (path.read_bytes(), files(path.parent)) == (OLD, ["file"])


def test_an_error_without_a_size_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught, atomic_files.output_errors(tmp_path):
        (tmp_path / "gone" / "file").touch()
    assert str(caught.value).startswith(f"{tmp_path / 'gone' / 'file'}: could not be written (No such file")


@pytest.mark.parametrize("links", [True, False])
def test_a_kept_link_survives_replacing_the_file(path: Path, links: bool) -> None:
    with at_call(links=links):
        held = atomic_files.keep_link(path)
    atomic_files.atomic_write(path, NEW)
    assert held is not None
    assert (held.read_bytes(), path.read_bytes()) == (OLD, NEW)
    atomic_files.remove_leftovers(path)
    assert files(path.parent) == ["file"]


def test_no_link_is_kept_for_a_missing_file(tmp_path: Path) -> None:
    assert atomic_files.keep_link(tmp_path / "file") is None
    assert files(tmp_path) == []


@pytest.mark.parametrize("fault", FAILURES, ids=str)
def test_a_failed_copy_leaves_nothing(path: Path, fault: Fault) -> None:
    with at_call(links=False) as made:
        held = atomic_files.keep_link(path)
    assert held is not None
    held.unlink()
    for number in range(1, len(made)):
        with at_call(number, fault, links=False), pytest.raises(OSError, match=os.strerror(fault.number)):
            atomic_files.keep_link(path)
        assert files(path.parent) == ["file"], made[number]


def test_a_copy_is_flushed_before_it_is_renamed(path: Path) -> None:
    with at_call(links=False) as made:
        atomic_files.keep_link(path)
    assert made == ["link", "copyfile", "open", "fsync", "close"]


def test_a_file_system_that_cannot_flush_folders_is_accepted(tmp_path: Path) -> None:
    with at_call(1, Fault(errno.EINVAL)):
        atomic_files.fsync(tmp_path)
    with at_call(1, Fault(errno.EIO)), pytest.raises(OSError, match="Input/output error"):
        atomic_files.fsync(tmp_path)


def test_only_leftovers_of_the_same_file_are_removed(path: Path) -> None:
    others = [".file", ".lock", ".other.0123456789abcdef", "file.damaged", "file-1"]
    for name in (*others, ".file.0123456789abcdef"):
        (path.parent / name).touch()
    atomic_files.remove_leftovers(path)
    assert files(path.parent) == sorted(["file", *others])
