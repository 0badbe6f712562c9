"""Decides when a run ends early and when it saves: signals, limits, patience. Imports no torch."""

import math
import time
from collections.abc import Callable

from dltrain.config.settings import Train

UNITS = {"s": 1, "m": 60, "h": 3600}


def reason_to_stop(settings: Train, signals: list[int], step: int, seconds: float, stale_epochs: int) -> str:
    """Return the key of the first limit that is reached, `interrupted` after a signal, else an empty text."""
    if signals:
        return "interrupted"
    spent = {"limit_steps": step, "max_seconds": seconds, "patience": stale_epochs}
    return next((key for key, value in spent.items() if value >= (getattr(settings, key) or math.inf)), "")


def in_seconds(time: str | float) -> float:
    """Convert a number of seconds, or a text such as 30s, 5m or 1h, to seconds."""
    return float(time[:-1]) * UNITS[time[-1]] if isinstance(time, str) else float(time)


def every(interval: int | str) -> Callable[[int], bool]:
    """Return a function of the step that is true once per interval: of steps, or of time such as 30s."""
    if isinstance(interval, int):
        return lambda step: step % interval == 0
    longest = in_seconds(interval)
    # The first is due soon, then intervals double, so that a run that is killed early again and again makes progress.
    seconds = min(0.5, longest)
    last = time.monotonic()

    def is_due(_: int) -> bool:
        nonlocal last, seconds
        now = time.monotonic()
        if now - last < seconds:
            return False
        last, seconds = now, min(2 * seconds, longest)
        return True

    return is_due
