"""Pseudo-terminals: run a command line as in a user's terminal and keep everything it shows."""

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b[=>]")
# Makes the terminal the controlling terminal of the process, so that Ctrl-C and a hang-up reach it.
LAUNCHER = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGHUP, signal.SIG_IGN if sys.argv[1] == "nohup" else signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
os.execv(sys.executable, [sys.executable, "-m", "dltrain", *sys.argv[2:]])
"""


class Terminal:
    """A pseudo-terminal with a command line at its other end."""

    def __init__(self, folder: Path, *arguments: str, columns: int, nohup: bool = False, **environment: str) -> None:
        self.shown = ""
        self.end, other_end = pty.openpty()
        self.resize(columns)
        self.settings = termios.tcgetattr(self.end)
        dropped = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "DLTRAIN_TRACEBACK")
        kept = {key: value for key, value in os.environ.items() if key not in dropped}
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, "nohup" if nohup else "", *arguments],
            cwd=folder,
            stdin=other_end,
            stdout=other_end,
            stderr=other_end,
            start_new_session=True,
            env=kept | {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"} | environment,
        )
        os.close(other_end)

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self.end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def read(self, until: str = "", seconds: float = 60.0) -> str:
        """Return what is shown from now on until `until` appears, the time is up or the other end is closed."""
        new, end = "", time.monotonic() + seconds
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while (left := end - time.monotonic()) > 0 and not (until and until in new):
                if select.select([self.end], [], [], left)[0]:
                    new += os.read(self.end, 65536).decode(errors="replace")
        self.shown += new
        return new

    def type(self, text: str) -> None:
        os.write(self.end, text.encode())

    def close(self) -> None:
        """Hang up, as when the user closes the window."""
        if self.end >= 0:
            os.close(self.end)
            self.end = -1


@contextlib.contextmanager
def terminal(
    folder: Path, *arguments: str, columns: int = 80, nohup: bool = False, **environment: str
) -> Iterator[Terminal]:
    """Yield a command line that runs in a terminal; end the process and close the terminal afterwards."""
    opened = Terminal(folder, *arguments, columns=columns, nohup=nohup, **environment)
    try:
        yield opened
    finally:
        opened.close()
        if opened.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                opened.process.wait(20)
            opened.process.kill()
        opened.process.wait()


def lines(shown: str) -> list[str]:
    """Return the lines that were written, including those overwritten since, without control codes."""
    return re.split(r"[\r\n]+", CODES.sub("", shown))
