"""A file system that behaves as those of a cluster may, simulated in this process: no locks, and the manners of NFS."""

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import secrets
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest


@contextlib.contextmanager
def without_locks(number: int) -> Iterator[None]:
    """Refuse every flock with an errno."""

    def refuse(*_: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse)
        yield


def refuse_all_locks(number: int) -> None:
    """Let the kernel refuse every lock of this process, and of all that it starts, with an errno: also those of C code.

    There is no way back: call it in a fork.
    """
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        pytest.skip("the filter of system calls is written for Linux on x86-64")
    load, if_equal, if_at_least, if_greater, answer = 0x20, 0x15, 0x35, 0x25, 0x06
    flock, fcntl_, first, last = 73, 72, 5, 7  # F_GETLK, F_SETLK, F_SETLKW
    lines = [  # code, lines to skip if true, and if false, value
        (load, 0, 0, 0),  # the number of the system call
        (if_equal, 4, 0, flock),
        (if_equal, 0, 4, fcntl_),
        (load, 0, 0, 24),  # its second argument
        (if_at_least, 0, 2, first),
        (if_greater, 1, 0, last),
        (answer, 0, 0, 0x00050000 | number),
        (answer, 0, 0, 0x7FFF0000),  # go on
    ]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    filter_ = struct.pack("@HP", len(lines), ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # no new privileges
    assert libc.prctl(22, 2, ctypes.create_string_buffer(filter_), 0, 0) == 0


def _is_open(path: Any, folder: int | None) -> bool:
    """True if this process has the file open; `folder` is a descriptor that the path is relative to."""
    try:
        wanted = os.stat(path, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    for number in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(int(number.name)), wanted):
                return True
    return False


@contextlib.contextmanager
def nfs(*, lost: float = 0.0, seed: int = 0) -> Iterator[list[str]]:
    """Be as NFS: a file removed or replaced while it is open keeps a name, folders cannot be flushed.

    The answer of a part `lost` of all renames and links is lost; the request, sent again, then fails. Yields the names
    of the operations that met one of these.
    """
    import random

    chance, met = random.Random(seed), []
    unlink, replace, link, fsync = os.unlink, os.replace, os.link, os.fsync

    def is_lost(name: str) -> bool:
        hit = chance.random() < lost
        met.extend([name] * hit)
        return hit

    def silly(path: Any, folder: int | None) -> str:
        met.append("silly rename")
        return os.path.join(os.path.dirname(path), f".nfs{secrets.token_hex(8)}")  # noqa: PTH118, PTH120

    def unlink_there(path: Any, *, dir_fd: int | None = None) -> None:
        if _is_open(path, dir_fd):
            os.rename(path, silly(path, dir_fd), src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        else:
            unlink(path, dir_fd=dir_fd)

    def replace_there(path: Any, target: Any) -> None:
        if _is_open(target, None):
            link(target, silly(target, None))
        replace(path, target)
        if is_lost("rename"):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

    def link_there(path: Any, target: Any) -> None:
        link(path, target)
        if is_lost("link"):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))

    def flush(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            met.append("flush of a folder")
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(descriptor)

    changed = {"unlink": unlink_there, "remove": unlink_there, "replace": replace_there}
    with pytest.MonkeyPatch.context() as patch:
        for name, function in (changed | {"link": link_there, "fsync": flush}).items():
            patch.setattr(os, name, function)
        yield met
