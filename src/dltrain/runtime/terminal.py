"""Query a terminal: is it interactive, is it closed, what fits in a line. Knows streams and text only."""

import contextlib
import errno
import io
import os
import sys
import termios
from collections.abc import Iterator, Sequence
from typing import TextIO


class LastingStream(io.TextIOWrapper):
    """A standard stream whose writes never fail: from the first that does, output is discarded."""

    failure: OSError | None = None  # of that write; None if nobody reads on: `head` has ended, a terminal was closed

    def write(self, text: str) -> int:
        with self._discarding():
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with self._discarding():
            super().flush()

    @contextlib.contextmanager
    def _discarding(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not isinstance(error, BrokenPipeError) and not is_closed(self.fileno()):
                self.failure = error
            discard_output(self.fileno())


def make_streams_last() -> None:
    """Make printing never fail: discard what cannot be written, and print ? for characters that the encoding lacks."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123  (open until exit)
        elif type(stream) is io.TextIOWrapper:
            errors = (stream.errors or "strict").replace("strict", "replace")
            buffering = stream.line_buffering, stream.write_through
            stream = LastingStream(stream.detach(), stream.encoding, errors, None, *buffering)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def is_terminal(stream: TextIO) -> bool:
    """True if a stream belongs to a terminal; a program's own stream need not have `isatty`."""
    return hasattr(stream, "isatty") and stream.isatty()


def is_interactive(stream: TextIO) -> bool:
    """True if control codes may be written: a terminal that knows them and no NO_COLOR (no-color.org)."""
    return is_terminal(stream) and not (os.environ.get("NO_COLOR") or os.environ.get("TERM") in ("dumb", "unknown"))


def is_closed(descriptor: int) -> bool:
    """True if a file descriptor belongs to a terminal that was closed."""
    try:
        termios.tcgetattr(descriptor)
    except termios.error as error:
        return bool(error.args[0] == errno.EIO)
    return False


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
