"""What a terminal is: whether it may be drawn on, how wide it is, what fits. Knows streams and text."""

import errno
import io
import os
import shutil
import sys
import termios
from collections.abc import Sequence
from typing import TextIO

DUMB = ("dumb", "unknown")


def make_streams_usable() -> None:
    """Let everything be printed: to nowhere where a stream was closed, with ? for letters that an encoding lacks."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123  (to the end)
            setattr(sys, name, nowhere)
            setattr(sys, f"__{name}__", nowhere)
        elif isinstance(stream := getattr(sys, name), io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def has_box_drawing(stream: TextIO) -> bool:
    """Whether a stream's encoding has the lines that tables are drawn with."""
    return (stream.encoding or "utf-8").lower().startswith("utf")


def is_interactive(stream: TextIO) -> bool:
    """Whether a stream may get control codes: a terminal that knows them, of a person who wants them (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in DUMB


def width() -> int:
    """Columns of the terminal; COLUMNS where it is set, 80 where there is no terminal."""
    return shutil.get_terminal_size().columns


def is_gone(descriptor: int) -> bool:
    """Whether what is printed goes to a terminal that was closed."""
    try:
        termios.tcgetattr(descriptor)
    except termios.error as error:
        return bool(error.args[0] == errno.EIO)
    return False


def detach_if_closed() -> None:
    """Let what is printed go nowhere if its terminal was closed, so that a run under it can end in order."""
    for descriptor in (1, 2):
        if is_gone(descriptor):
            silence(descriptor)


def silence(descriptor: int) -> None:
    """Let what is printed go nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def fit_parts(parts: Sequence[tuple[int, str]], columns: int) -> str:
    """Parts of a line in their order, each with its rank; where it is too narrow those of a high rank are left out."""
    kept: list[tuple[int, int, str]] = []
    for index, (rank, text) in sorted(enumerate(parts), key=lambda part: part[1][0]):
        if text and sum(len(each) + 2 for _, _, each in kept) + len(text) <= columns:
            kept.append((index, rank, text))
    return "  ".join(text for _, _, text in sorted(kept))
