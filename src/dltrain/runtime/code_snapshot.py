"""Keeps in a folder what git knows to have changed in the code, and which packages are installed. Imports no torch."""

import logging
import subprocess
import sys
from pathlib import Path

log = logging.getLogger(__name__)

MOST_BYTES = 1 << 20  # of code.diff
# Without what the repository's own config could run or would write.
GIT = ("git", "--no-optional-locks", "-c", "core.fsmonitor=false")


def write(folder: Path) -> None:
    """Write packages.txt and, if code has changed since the last commit, code.diff; a failure is only logged.

    A job of a sweep leaves both to the folder of the sweep.
    """
    if (folder.parent / "packages.txt").exists():
        return
    try:
        # The names of these folders are enough: to read the metadata in them takes a hundred times as long.
        found = {path.stem for entry in sys.path for path in Path(entry).glob("*.dist-info")}
        lines = [name.replace("-", "==", 1) + "\n" for name in sorted(found, key=str.lower)]
        (folder / "packages.txt").write_text("".join(lines), encoding="utf-8")
        if changes := _changes():
            (folder / "code.diff").write_bytes(changes)
        else:
            (folder / "code.diff").unlink(missing_ok=True)  # of before a resume
    except OSError as error:
        log.warning("code.diff and packages.txt: not written (%s)", error.strerror)


def _changes() -> bytes:
    """Return the diff of the current folder's work tree from its last commit; empty without git or a commit."""
    diff = _git("diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv")
    untracked = _git("ls-files", "--others", "--exclude-standard", "--directory").splitlines()
    head = [b"# not tracked by git, and not included: " + name + b"\n" for name in untracked]
    cut = b"\n# cut off after 1 MiB\n" if len(diff) > MOST_BYTES else b""
    return b"".join([*head, diff[:MOST_BYTES], cut])


def _git(*arguments: str) -> bytes:
    """Return the beginning of what git prints, one byte more than MOST_BYTES at most; empty if it fails."""
    try:
        with subprocess.Popen([*GIT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as git:
            assert git.stdout is not None
            printed = git.stdout.read(MOST_BYTES + 1)
            git.kill()
            return printed
    except OSError:  # git is missing
        return b""
