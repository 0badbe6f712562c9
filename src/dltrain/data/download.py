"""A download of one of torchvision's data sets: once for all processes, and in place only when whole.

torchvision fetches, checks the MD5 sum of what is packed, and unpacks, in a hidden folder beside the place of the
data; what is whole is moved. Killed at any moment, it leaves nothing there that is taken for data, and the next start
goes on with the packed files that were finished. Knows files and the network; knows no tensors.
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

from dltrain.runtime.errors import InputError
from dltrain.runtime.folders import locked

PAUSES = (1.0, 4.0)  # seconds before the second and the third try
_forbidden: ContextVar[str] = ContextVar("_forbidden", default="")  # why nothing is downloaded; empty where it may be
SILENCE = 30.0  # seconds without a byte, after which a server counts as dead; Python alone would wait for ever


@contextlib.contextmanager
def forbidden(why: str) -> Iterator[None]:
    """Let data be read, not downloaded, and say why; with an empty `why` it may be downloaded."""
    token = _forbidden.set(why)
    try:
        yield
    finally:
        _forbidden.reset(token)


def fetch(
    name: str, root: Path, folder: str, *, parts: Sequence[str], packed: Sequence[str], splits: Sequence[str] = ()
) -> None:
    """Bring the data set that torchvision calls `name` to its place below `root`, unless another process just has.

    Raises InputError with what is missing, why it could not be fetched, and what to do.

    Args:
        folder: where a person looks for the data, relative to root as all that follow
        parts: the unpacked files, or the one folder of them; none of what is not unpacked
        packed: what torchvision fetches: taken without a network where it lies there, and kept
        splits: which to ask torchvision for, where it gives one at a time
    """
    if why := _forbidden.get():
        raise InputError(f"{name} is not in {root / folder}: {why}")
    staging = root / f".{name}.download"
    try:
        for path in (*packed, *parts):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
        with locked(root / f".{name}.lock", wait=True):
            if all((root / part).exists() for part in parts or packed):
                return  # another process has fetched them while this one waited
            _offer(packed, root, staging)
            _fetch_and_unpack(name, staging, parts, splits)
            for path in (*packed, *parts):  # packed first: whoever is killed here unpacks them again
                (staging / path).replace(root / path)
            shutil.rmtree(staging, ignore_errors=True)
    except Exception as error:  # whatever a network, a server or a disk can do
        reason = textwrap.shorten(str(error), 200, placeholder=" …")
        archives = ", ".join(Path(path).name for path in packed)
        unpacked = f"its files there, or {archives} into {(root / packed[0]).parent}"
        raise InputError(
            f"{name} is not in {root / folder} and could not be downloaded: {reason}\n"
            f"Put {unpacked if parts else f'{archives} there'}, "
            "or set data.root (or DLTRAIN_DATA) to the folder that holds it"
        ) from error


def _offer(packed: Sequence[str], root: Path, staging: Path) -> None:
    """Copy packed files that lie in place to where torchvision looks; through a link it could write into them."""
    for path in packed:
        (staging / path).parent.mkdir(parents=True, exist_ok=True)
        if (root / path).exists():
            shutil.copyfile(root / path, staging / path)


def _fetch_and_unpack(name: str, staging: Path, parts: Sequence[str], splits: Sequence[str]) -> None:
    """Let torchvision do it, up to three times where the next try may go better."""
    from torchvision import datasets  # more than a second of imports that a start with data at hand does not need

    silence = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)
    try:
        for pause in (*PAUSES, None):
            for part in parts:  # torchvision believes half of an unpacked file too; it unpacks from checked ones
                _remove(staging / part)
            try:
                for own in [{"split": split} for split in splits] or [{}]:
                    getattr(datasets, name)(staging, download=True, **own)
                return
            except Exception as error:
                if pause is None or not _may_pass(error):
                    raise
                time.sleep(pause)
    finally:
        socket.setdefaulttimeout(silence)


def _remove(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _may_pass(error: Exception) -> bool:
    """Whether a server was reached and failed: busy, silent, or a transfer cut off, which shows as a wrong sum.

    Of the mirrors of MNIST torchvision reports the text alone.
    """
    cut = isinstance(error, ConnectionError | TimeoutError | http.client.HTTPException)
    return cut or any(words in str(error) for words in ("HTTP Error 5", "corrupted", "timed out"))
