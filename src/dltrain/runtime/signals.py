"""Signals and exit codes: raised at once, or noted so that a run can save first. Imports no torch."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from dltrain.runtime import terminal
from dltrain.runtime.errors import UserError, system_error_message

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


def as_user_error(error: BaseException) -> UserError | KeyboardInterrupt | None:
    """What is told of an error: the signal behind it, a mistake, what the system refused; None for a fault of ours."""
    if (stop := _stop_behind(error)) is not None:
        return stop
    if isinstance(error, UserError | KeyboardInterrupt):
        return error
    # A path that is no name, a disk that fails.
    return system_error_message(error) if isinstance(error, OSError) and error.filename is not None else None


def _outlive_terminal(number: int) -> None:
    """After SIGHUP: print nowhere if the terminal is gone, and take no notice of a second one.

    A shell that ends sends one to its jobs, the system then another; neither is a person who is out of patience.
    """
    if number == signal.SIGHUP:
        signal.signal(number, signal.SIG_IGN)
        terminal.detach_if_closed()


@contextlib.contextmanager
def _handling(handler: Callable[[int, object], None]) -> Iterator[Callable[[], None]]:
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
def signals_as_exceptions() -> Iterator[None]:
    """Let signals raise Stop, so that what a start has begun is cleaned up."""

    def stop(number: int, _: object) -> None:
        _outlive_terminal(number)
        raise Stop(number)

    with _handling(stop):
        yield


@contextlib.contextmanager
def recorded_signals(*, patient: bool = False) -> Iterator[list[int]]:
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

    with _handling(note) as restore:
        yield noted
