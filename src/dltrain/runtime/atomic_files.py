"""Files that are written whole or not at all. Knows paths and bytes; imports no torch."""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from dltrain.runtime.errors import OutputError


@contextlib.contextmanager
def output_errors(path: Path, size: int | None = None) -> Iterator[None]:
    """Turn what the operating system refuses into an OutputError with the path, the reason and the bytes needed."""
    try:
        yield
    except OSError as error:
        where = path if size is not None else error.filename or path
        needed = "" if size is None else f"; {size:,} bytes are needed"
        reason = error.strerror or error
        advice = "Free the disk or change its rights"
        raise OutputError(f"{where}: could not be written ({reason}){needed}. {advice}") from error


def atomic_write(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file under a unique temporary name in the same folder, flush it to the disk, and rename it.

    Raises OutputError where that fails; the file that was there before stays as it was.
    """
    temporary = temporary_name(path)
    with output_errors(path, sum(len(part) for part in parts)):
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                for part in parts:
                    _write(descriptor, memoryview(part))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            temporary.replace(path)
            fsync(path.parent)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()


def keep_link(path: Path) -> Path | None:
    """A second, temporary name for a file, under which it outlives being replaced; None where there is no file."""
    temporary = temporary_name(path)
    try:
        os.link(path, temporary)
    except FileNotFoundError:
        return None
    except OSError:  # a file system without hard links
        try:
            shutil.copyfile(path, temporary)
            fsync(temporary)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    return temporary


def fsync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk: a rename, too, must survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot flush folders
            raise
    finally:
        os.close(descriptor)


def temporary_name(path: Path) -> Path:
    """A name beside a file that nobody else uses."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def remove_leftovers(path: Path) -> None:
    """Remove what writers of a file that were killed left beside it; only for who holds the lock on its folder."""
    with output_errors(path):
        for leftover in path.parent.glob(f".{path.name}.*"):
            leftover.unlink()


def _write(descriptor: int, rest: memoryview) -> None:
    while rest:
        rest = rest[os.write(descriptor, rest) :]
