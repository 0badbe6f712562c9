"""Query a terminal: is it interactive, is it closed, what fits in a line. Knows streams and text only."""

import errno
import io
import os
import sys
import termios
from collections.abc import Sequence
from typing import TextIO


def make_streams_usable() -> None:
    """Make printing never fail: replace a closed stream by devnull, and characters that the encoding lacks by ?."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            devnull = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123  (open until exit)
            setattr(sys, name, devnull)
            setattr(sys, f"__{name}__", devnull)
        elif isinstance(stream := getattr(sys, name), io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def is_interactive(stream: TextIO) -> bool:
    """True if control codes may be written: a terminal that knows them and no NO_COLOR (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in ("dumb", "unknown")


def is_closed(descriptor: int) -> bool:
    """True if a file descriptor belongs to a terminal that was closed."""
    try:
        termios.tcgetattr(descriptor)
    except termios.error as error:
        return bool(error.args[0] == errno.EIO)
    return False


def detach_if_closed() -> None:
    """Discard further output if its terminal was closed, so that the run can end in order."""
    for descriptor in (1, 2):
        if is_closed(descriptor):
            discard_output(descriptor)


def discard_output(descriptor: int) -> None:
    """Redirect a file descriptor to devnull."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, descriptor)
    os.close(devnull)


def fit_parts(parts: Sequence[tuple[int, str]], columns: int) -> str:
    """Join (priority, text) pairs in their order; those with high numbers are dropped if the line is too wide."""
    kept: list[tuple[int, str]] = []
    for index, (_, text) in sorted(enumerate(parts), key=lambda part: part[1][0]):
        if text and sum(len(other) + 2 for _, other in kept) + len(text) <= columns:
            kept.append((index, text))
    return "  ".join(text for _, text in sorted(kept))
