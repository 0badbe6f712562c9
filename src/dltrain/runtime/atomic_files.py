"""Write files atomically: a reader sees the old file or the new one, never a part. Imports no torch."""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from dltrain.runtime.errors import OutputError

NO_FLUSH = (errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.ENOTSUP)


@contextlib.contextmanager
def output_errors(path: Path, size: int | None = None) -> Iterator[None]:
    """Convert an OSError into an OutputError that names the path, the reason and the bytes needed."""
    try:
        yield
    except OSError as error:
        where = path if size is not None else error.filename or path
        needed = "" if size is None else f"; {size:,} bytes are needed"
        problem = f"could not be written ({error.strerror or error}){needed}"
        places = {
            errno.ENOENT: "Create its folder",
            errno.ENOTDIR: "Choose another folder",
            errno.EISDIR: "Name a file",
        }
        advice = places.get(error.errno or 0, "Free disk space or change the permissions")
        raise OutputError(f"{where}: {problem}. {advice}") from error


def require_folder(path: Path) -> None:
    """Raise OutputError if the folder of a path is missing or the path is a folder, before the work for the file."""
    with output_errors(path):
        number = errno.EISDIR if path.is_dir() else 0
        if not number and not path.parent.is_dir():
            number = errno.ENOTDIR if path.parent.exists() else errno.ENOENT
        if number:
            raise OSError(number, os.strerror(number), f"output={path}")


def atomic_write(path: Path, *parts: bytes | memoryview) -> None:
    """Write a temporary file in the same folder, flush it to disk and rename it to `path`.

    Raises OutputError if that fails; an earlier file at `path` is then unchanged.
    """
    temporary = temporary_name(path)
    with output_errors(path, sum(len(part) for part in parts)):
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                for part in parts:
                    write_all(descriptor, part)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            rename(temporary, path)
            fsync(path.parent)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()


def rename(path: Path, target: Path) -> None:
    """Rename a file. Over NFS a request whose answer is lost is repeated, and finds no such file: that is no error."""
    number = path.stat().st_ino
    try:
        path.replace(target)
    except FileNotFoundError:
        if target.stat().st_ino != number:
            raise


def keep_link(path: Path) -> Path | None:
    """Return a temporary hard link to a file, so that it survives being replaced; None if there is no such file."""
    temporary = temporary_name(path)
    try:
        os.link(path, temporary)
    except FileNotFoundError:
        return None
    except FileExistsError:  # a request sent twice over NFS: the name is random
        pass
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
    """Flush a file, or a folder's entries, to disk: a rename must survive a power cut as well."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FLUSH:  # a file system that cannot flush folders
            raise
    finally:
        os.close(descriptor)


def temporary_name(path: Path) -> Path:
    """Return an unused name in the same folder."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def remove_leftovers(path: Path) -> None:
    """Remove temporary files that killed writers left next to `path`. The caller must hold the folder's lock."""
    with output_errors(path):
        for leftover in path.parent.glob(f".{path.name}.*"):
            leftover.unlink()


def write_all(descriptor: int, content: bytes | memoryview) -> None:
    """Write all of the content, of which the system may take only a part at once. Raises OSError."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
