"""Reasons to end a run early, and the time to save: signals, limits, patience."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator

UNITS = {"s": 1, "m": 60, "h": 3600}


@contextlib.contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Note SIGINT and SIGTERM in a list instead of dying, so that the run can save; a second one ends it at once."""
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield noted
        return

    def note(number: int, _: object) -> None:
        noted.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, note)
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def reason_to_stop(
    *,
    signals: list[int],
    step: int,
    limit_steps: int | None,
    seconds: float,
    max_seconds: float | None,
    stale_epochs: int,
    patience: int | None,
) -> str:
    """Name of the limit that is reached, empty for none."""
    if signals:
        return "interrupted"
    if limit_steps is not None and step >= limit_steps:
        return "limit_steps"
    if max_seconds is not None and seconds >= max_seconds:
        return "max_seconds"
    if patience is not None and stale_epochs >= patience:
        return "patience"
    return ""


def every(interval: int | str) -> Callable[[int], bool]:
    """A function of the step that is true once each interval: of steps, or of time such as 30s."""
    if isinstance(interval, int):
        return lambda step: step % interval == 0
    seconds = float(interval[:-1]) * UNITS[interval[-1]]
    last = time.monotonic()

    def is_due(_: int) -> bool:
        nonlocal last
        now = time.monotonic()
        if now - last < seconds:
            return False
        last = now
        return True

    return is_due
