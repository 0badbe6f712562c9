"""Folders: of the configs, those that runs and sweeps make for themselves, and locks on them. Imports no torch."""

import contextlib
import errno
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from dltrain.runtime.errors import InputError, OutputError

log = logging.getLogger(__name__)

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # some network file systems


def new_folder(base: Path, name: str) -> Path:
    """Make a folder that nobody else has: `base/name`, or with -2, -3 … behind it.

    Raises OutputError where it cannot be made.
    """
    try:
        base.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            folder = base / (name if number == 1 else f"{name}-{number}")
            with contextlib.suppress(FileExistsError):
                folder.mkdir()  # fails if it exists: two runs that start at once get two folders
                return folder
            number += 1
    except OSError as error:
        raise OutputError(f"{base}: cannot make a folder in it ({error.strerror}). Start elsewhere") from error


def dated_folder(kind: str = "", name: str | None = None) -> Path:
    """outputs/[kind/]<date>/<time>[-name][-N] under the current folder, made anew."""
    now = time.localtime()
    label = f"-{safe_name(name)}" if name else ""
    return new_folder(Path("outputs", kind, time.strftime("%Y-%m-%d", now)), time.strftime("%H-%M-%S", now) + label)


def newest_first(*bases: Path) -> list[Path]:
    """The folders base/<date>/<time> that `dated_folder` made, by their names."""

    def numbers(path: Path) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", "/".join(path.parts[-2:]))]

    found = [path for base in bases for path in base.glob("[0-9]*/*") if path.is_dir()]
    return sorted(found, key=numbers, reverse=True)


def safe_name(text: str) -> str:
    """A text as part of a file name: it cannot leave its folder and is not too long."""
    kept = re.sub(r"[^\w.,=+-]+", "_", text).strip("._")
    return kept.encode()[:100].decode(errors="ignore") or "_"  # file systems count bytes


def expand_user(text: str | Path) -> Path:
    """A path with ~ filled in. Raises InputError for a user who is not there."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise InputError(f"{text}: {str(error).rstrip('.')}. Write the folder out") from error


def refuse_links(folder: Path) -> None:
    """Raise InputError for a link or a pipe in a run folder: what is written there would land outside, or nowhere."""
    for parent, names, files in os.walk(folder):
        for name in (*names, *files):
            path = Path(parent, name)
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise InputError(f"{path}: is a link, or no file. A run writes in its own folder; put a copy there")


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock that is the file `path`; one that a dead process left is free, as the system forgets it.

    Without `wait` a lock that another holds is an OutputError; so is a folder that cannot be written.
    """
    lock = FileLock(path, timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout as error:
        raise OutputError(f"{path.parent}: another process is writing here. Wait for it, or stop it") from error
    except (OSError, NotImplementedError) as error:  # the latter of older filelocks
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise OutputError(f"{path}: could not be locked ({error.strerror})") from error
        log.warning("%s: its file system has no locks; see to it that nothing else writes there", path.parent)
    try:
        yield
    finally:
        lock.release()
