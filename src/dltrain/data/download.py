"""Download torchvision's data sets: once for all processes, and moved into place only when complete.

torchvision downloads archives into a hidden folder beside the data, checks their MD5 sums and unpacks them; complete
files are then moved. A kill at any moment leaves nothing that could be mistaken for data, and the next start reuses the
archives that were complete; a download that fails leaves nothing else. Knows files and the network; knows no tensors.
"""

import contextlib
import http.client
import shutil
import socket
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path

from dltrain.runtime.errors import InputError, OutputError
from dltrain.runtime.folders import locked

Texts = Sequence[str]
PAUSES = (1.0, 4.0)  # seconds before the second and the third try
_forbidden: ContextVar[str] = ContextVar("_forbidden", default="")  # why downloads are forbidden, else empty
SILENCE = 30.0  # seconds without a byte, after which a server counts as dead; by default Python waits for ever


@contextlib.contextmanager
def forbidden(why: str) -> Iterator[None]:
    """Forbid downloads inside the `with` block, for the reason `why`; if it is empty, they are allowed."""
    token = _forbidden.set(why)
    try:
        yield
    finally:
        _forbidden.reset(token)


def fetch(
    name: str, root: Path, folder: str, *, parts: Texts, packed: Texts, splits: Texts = (), unused: Texts = ()
) -> None:
    """Download the data set that torchvision calls `name` to `root`, unless another process has just done so.

    Raises InputError that says what is missing, why it could not be downloaded, and what to do.

    Args:
        folder: folder of the data to name in errors, relative to root as all paths below
        parts: the unpacked files, or their one folder; empty if nothing is unpacked
        packed: the archives that torchvision downloads; used without a network if they are there already, and kept
        splits: splits to download, for data sets that torchvision downloads split by split
        unused: files that are there but not used, each with the reason, for errors
    """
    found = f"\nNot used: {', '.join(unused[:3])}" if unused else ""
    if why := _forbidden.get():
        raise InputError(f"{name} is not in {root / folder}: {why}{found}")
    staging, lock = root / f".{name}.download", root / f".{name}.lock"
    try:
        # A root with a lock is that of another process, which may have made it.
        made = [path for path in (root, *root.parents) if not path.exists() or (path == root and lock.exists())]
        with locked(lock, wait=True):  # which makes the folder
            if all((root / part).exists() for part in parts or packed):
                return  # another process downloaded them while this one waited for the lock
            try:
                for path in (*packed, *parts):
                    (root / path).parent.mkdir(parents=True, exist_ok=True)
                _offer(packed, root, staging)
                _fetch_and_unpack(name, staging, parts, splits)
                for path in (*packed, *parts):  # archives first: after a kill here they are unpacked again
                    (staging / path).replace(root / path)
                shutil.rmtree(staging, ignore_errors=True)
            except BaseException:
                # Processes that wait for the lock make it anew, so nothing of theirs may be removed after it.
                for left in (*_leftovers(name, root, staging, parts, packed), lock, *made):
                    with contextlib.suppress(OSError):  # a folder that is not empty
                        left.rmdir() if left.is_dir() else left.unlink()
                raise
    except Exception as error:  # networks, servers and disks raise nearly anything
        if isinstance(error, OutputError) and isinstance(error.__cause__, FileNotFoundError):
            # A process that held the lock before this one failed, and removed the folder it had made.
            fetch(name, root, folder, parts=parts, packed=packed, splits=splits, unused=unused)
            return
        reason = textwrap.shorten(str(error), 200, placeholder=" …")
        archives = ", ".join(Path(path).name for path in packed)
        either = f"its files there, or {archives} into {(root / packed[0]).parent}"
        raise InputError(
            f"{name} is not in {root / folder} and could not be downloaded: {reason}\n"
            f"Put {either if parts else f'{archives} there'}, "
            f"or set data.root (or DLTRAIN_DATA) to the folder that holds it{found}"
        ) from error


def _leftovers(name: str, root: Path, staging: Path, parts: Texts, packed: Texts) -> list[Path]:
    """Return what a failed download may have left, the deepest first, except archives that came whole."""
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity

    dataset = getattr(datasets, name)
    listed = [entry[1:] for entry in getattr(dataset, "split_list", {}).values()]
    sums = dict(getattr(dataset, "resources", listed)) or {dataset.filename: dataset.tgz_md5}
    came = [staging / path for path in packed if not (root / path).exists()]
    whole = {path for path in came if check_integrity(path, sums[path.name])}
    folders = {root / parent for path in (*packed, *parts) for parent in Path(path).parents}
    return sorted({staging, *staging.rglob("*"), *folders} - whole, reverse=True)


def _offer(packed: Sequence[str], root: Path, staging: Path) -> None:
    """Copy existing archives to where torchvision looks; not as links, through which it could overwrite them."""
    for path in packed:
        (staging / path).parent.mkdir(parents=True, exist_ok=True)
        if (root / path).exists():
            shutil.copyfile(root / path, staging / path)


def _fetch_and_unpack(name: str, staging: Path, parts: Sequence[str], splits: Sequence[str]) -> None:
    """Let torchvision download and unpack; try up to three times if the failure may be temporary."""
    from torchvision import datasets  # takes over a second, needed only for downloads

    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)
    try:
        for pause in (*PAUSES, None):
            for part in parts:  # torchvision takes half an unpacked file for a whole one, but checks archives
                path = staging / part
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            try:
                for options in [{"split": split} for split in splits] or [{}]:
                    getattr(datasets, name)(staging, download=True, **options)
                return
            except Exception as error:
                if pause is None or not _is_temporary(error):
                    raise
                time.sleep(pause)
    finally:
        socket.setdefaulttimeout(previous)


def _is_temporary(error: Exception) -> bool:
    """True if a server was reached and failed: busy, silent, or a transfer cut off, which shows as a wrong checksum.

    For the mirrors of MNIST, torchvision passes on only the text of the error.
    """
    disconnected = isinstance(error, ConnectionError | TimeoutError | http.client.HTTPException)
    return disconnected or any(text in str(error) for text in ("HTTP Error 5", "corrupted", "timed out"))
