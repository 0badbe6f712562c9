"""Reasons to end a run early, and the time to save: signals, limits, patience. Imports no torch."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator

from dltrain import terminal
from dltrain.errors import UserError, refused_by_system

UNITS = {"s": 1, "m": 60, "h": 3600}


# Exit codes; SIGUSR1 is what a scheduler such as SLURM sends before it takes the machine away, SIGUSR2 where submitit
# asks it to, as others send SIGTERM. SIGHUP comes when the terminal of a run is closed.
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143, signal.SIGUSR2: 143, signal.SIGHUP: 129}


class Stop(KeyboardInterrupt):
    """Raised by a signal where there is nothing to save yet, or no time to."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = SIGNALS[signal.Signals(number)]


def _stop_behind(error: BaseException | None) -> Stop | None:
    """The signal because of which an error was raised: a library that is cut off may fail at its own cleaning up."""
    while error is not None and not isinstance(error, Stop):
        error = error.__context__
    return error


def exit_code(told: UserError | KeyboardInterrupt) -> int:
    return getattr(told, "exit_code", SIGNALS[signal.SIGINT])  # Python's own KeyboardInterrupt has none


def foreseen(error: BaseException) -> UserError | KeyboardInterrupt | None:
    """What is told of an error: the signal behind it, a mistake, what the system refused; None for a fault of ours."""
    if (stop := _stop_behind(error)) is not None:
        return stop
    if isinstance(error, UserError | KeyboardInterrupt):
        return error
    # A path that is no name, a disk that fails.
    return refused_by_system(error) if isinstance(error, OSError) and error.filename is not None else None


def _outlive_terminal(number: int) -> None:
    """After SIGHUP: print nowhere if the terminal is gone, and take no notice of a second one.

    A shell that ends sends one to its jobs, the system then another; neither is a person who is out of patience.
    """
    if number == signal.SIGHUP:
        signal.signal(number, signal.SIG_IGN)
        terminal.let_go()


@contextlib.contextmanager
def _handled_by(handler: Callable[[int, object], None]) -> Iterator[Callable[[], None]]:
    """Let a function handle the signals until the block ends, or until what it gives is called."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield lambda: None
        return

    def restore() -> None:
        for number, old in before.items():
            signal.signal(number, old)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    if before[signal.SIGHUP] == signal.SIG_IGN:  # by nohup: the run is to outlive its terminal
        del before[signal.SIGHUP]
    try:
        for number in before:
            signal.signal(number, handler)
        yield restore
    finally:
        restore()


@contextlib.contextmanager
def raised_signals() -> Iterator[None]:
    """Let signals raise Stop, so that what a start has begun is cleaned up."""

    def stop(number: int, _: object) -> None:
        _outlive_terminal(number)
        raise Stop(number)

    with _handled_by(stop):
        yield


@contextlib.contextmanager
def noted_signals(*, patient: bool = False) -> Iterator[list[int]]:
    """Note signals in a list instead of ending, so that the run can save; a second one acts as it did before.

    Unless it is `patient`: torchrun passes on a signal that its processes may have got already, and ends them itself
    when they take too long.
    """
    noted: list[int] = []

    def note(number: int, _: object) -> None:
        noted.append(number)
        if not patient:
            restore()
        _outlive_terminal(number)

    with _handled_by(note) as restore:
        yield noted


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


def in_seconds(time: str | float) -> float:
    """A number of seconds, or a text such as 30s, 5m or 1h."""
    return float(time[:-1]) * UNITS[time[-1]] if isinstance(time, str) else float(time)


def every(interval: int | str) -> Callable[[int], bool]:
    """A function of the step that is true once each interval: of steps, or of time such as 30s."""
    if isinstance(interval, int):
        return lambda step: step % interval == 0
    longest = in_seconds(interval)
    # The first is due soon, the next ones at doubling distances: a run that is killed early, again and again, goes on.
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
