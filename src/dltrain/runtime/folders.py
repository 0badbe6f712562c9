"""Create, name and lock the folders of runs and sweeps. Imports no torch."""

import contextlib
import errno
import logging
import os
import re
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

from filelock import FileLock, Timeout

from dltrain.runtime.errors import InputError, OutputError, listed

log = logging.getLogger(__name__)

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # some network file systems


def dated_folder(kind: str = "", name: str | None = None) -> Path:
    """Create outputs/[kind/]<date>/<time>[-name][-N] under the current folder. Raises OutputError if that fails."""
    now = _later_than_all(datetime(*time.localtime()[:6]))
    base = Path("outputs", kind, f"{now:%Y-%m-%d}")
    label = f"{now:%H-%M-%S}" + (f"-{safe_name(name)}" if name else "")
    try:
        base.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            folder = base / (label if number == 1 else f"{label}-{number}")
            with contextlib.suppress(FileExistsError):
                folder.mkdir()  # fails if it exists, so that two runs that start together get two folders
                return folder
            number += 1
    except OSError as error:
        raise OutputError(f"{base}: cannot create a folder here ({error.strerror}). Start in another folder") from error


def _later_than_all(now: datetime) -> datetime:
    """Return the time, or a second after that in the name of the newest folder if that is later.

    Hosts that share outputs/ have other clocks and time zones; `last` is judged by names.
    """
    bases = Path("outputs"), Path("outputs", "sweeps")
    days = [day for base in bases for day in sorted(base.glob("-".join(["[0-9]" * 4, "[0-9]" * 2, "[0-9]" * 2])))[-1:]]
    names = (f"{day.name} {path.name[:8]}" for day in days for path in day.glob("-".join(["[0-9]" * 2] * 3) + "*"))
    with contextlib.suppress(ValueError):  # a folder of the user's own
        newest = datetime.strptime(max(names, default=""), "%Y-%m-%d %H-%M-%S")
        if now < newest < now + timedelta(days=1):  # not years, after a clock that was never set
            return newest + timedelta(seconds=1)
    return now


def newest_first(*bases: Path) -> list[Path]:
    """Return the folders base/<date>/<time> that `dated_folder` created, newest first, judged by their names."""

    def numbers(path: Path) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", "/".join(path.parts[-2:]))]

    folders = (path for base in bases for path in base.glob("[0-9]*/*") if path.is_dir())
    return sorted(folders, key=numbers, reverse=True)


def find_run(name: str | Path) -> Path:
    """Return the path that a name means: `last`, the newest run or sweep in outputs/, or a unique part of a path there.

    A path, and a name that nothing matches, stays as it is. Raises InputError for a part of several paths.
    """
    path, text = expand_user(name), str(name).removeprefix("outputs/")
    if text in ("", "null") or (text != "last" and os.path.exists(path)):  # noqa: PTH110  (Path.exists raises for long texts)
        return path
    runs = newest_first(Path("outputs"), Path("outputs", "sweeps"))
    if text == "last":
        for run in runs:  # the newest may have just begun
            if (run / "sweep.json").exists() or any(run.glob("checkpoints/*.pt")):
                return run
        raise InputError("last: outputs/ contains no run with a checkpoint. Give the folder of one")
    jobs = (job for job in Path("outputs", "sweeps").glob("[0-9]*/*/[0-9]*") if job.is_dir())
    matching = [run for run in runs if text in str(run.relative_to("outputs"))]
    matching = matching or [job for job in jobs if text in str(job.relative_to("outputs"))]
    matching = [it for it in matching if f"{text}_" in f"{it}_"] or matching  # 10-00-00/1 is not job 10
    if len(matching) > 1:
        shown = listed(list(map(str, matching)), 3)
        raise InputError(f"{text}: matches {len(matching)} runs ({shown}); be more specific")
    return matching[0] if matching else path


def safe_name(text: str) -> str:
    """Make a text safe as part of a file name: no separators, not too long."""
    kept = re.sub(r"[^\w.,=+-]+", "_", text).strip("._")
    return kept.encode()[:100].decode(errors="ignore") or "_"  # file systems count bytes


def expand_user(text: str | Path) -> Path:
    """Expand ~ in a path. Raises InputError for an unknown user."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise InputError(f"{text}: {str(error).rstrip('.')}. Write the path in full") from error


def refuse_links(folder: Path) -> None:
    """Raise InputError for a link or a pipe in a run folder: writes to it would land elsewhere or nowhere."""
    for parent, names, files in os.walk(folder):
        for name in (*names, *files):
            path = Path(parent, name)
            if path.is_symlink() or (not path.is_file() and not path.is_dir() and path.exists()):
                advice = "Put a copy here: a run writes in its folder only"
                raise InputError(f"{path}: is a link, or not a regular file. {advice}")


@contextlib.contextmanager
def locked(path: Path, *, wait: bool | float, required: bool = False) -> Iterator[None]:
    """Hold the lock file `path`. The operating system releases the lock of a process that died.

    Raises OutputError if it is still held after `wait` seconds (True: no limit), or if the folder is not writable; with
    `required` also on a file system without locks, else that is only a warning.
    """
    # Its other kind of lock, a file that exists, would outlive a machine that died.
    lock = FileLock(path, timeout=-1 if wait is True else float(wait), fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise OutputError(f"{path.parent}: another process is writing here. Wait for it or stop it") from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise OutputError(f"{path}: could not be locked ({error.strerror})") from error
        if required:
            advice = "whether a run is in progress cannot be known. Remove it yourself, once nothing writes there"
            raise OutputError(f"{path.parent}: the file system has no locks; {advice}") from error
        advice = "Files stay whole, but start nothing else that writes here until this has ended"
        log.warning("%s: the file system has no locks (%s). %s", path.parent, error.strerror, advice)
    try:
        yield
    finally:
        lock.release()
