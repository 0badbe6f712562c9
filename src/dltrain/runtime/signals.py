"""Turn signals into exceptions or record them so that a run can save first; exit codes. Imports no torch."""

import contextlib
import errno
import signal
import threading
from collections.abc import Callable, Iterator

from dltrain.runtime.errors import TRACEBACK, InputError, OutputError, UserError, typed_line, user_line

# Exit codes. A scheduler such as Slurm sends SIGTERM or SIGUSR1 before it takes the machine away, SIGUSR2 if a sweep
# asks it to; SIGHUP arrives when the terminal of a run is closed.
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143, signal.SIGUSR2: 143, signal.SIGHUP: 129}
Shown = UserError | KeyboardInterrupt  # what a user sees of an exception


class SignalInterrupt(KeyboardInterrupt):
    """Raised by a signal when there is nothing to save yet, or no time to save it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = SIGNALS[signal.Signals(number)]


def exit_code(error: Shown) -> int:
    return getattr(error, "exit_code", SIGNALS[signal.SIGINT])  # a plain KeyboardInterrupt has none


def as_user_error(error: BaseException, own: str = "") -> Shown | None:
    """Map an exception to what the user should see; None for a bug of ours, if no code is his `own`."""
    cause: BaseException | None = error
    while cause is not None:  # an interrupted library may fail again while it cleans up
        if isinstance(cause, SignalInterrupt):
            return cause
        cause = cause.__context__
    if isinstance(error, Shown):
        return error
    if isinstance(error, OSError) and error.filename is not None:
        # One that nothing else handled, such as a file missing in user code or a failing disk.
        is_missing = isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError)
        shown: UserError = (InputError if is_missing else OutputError)(f"{str(error.filename)[:200]}: {error.strerror}")
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EPIPE, errno.EIO):  # a stream
        shown = OutputError(f"standard output, or a file: could not be written ({error.strerror})")
    elif user_line(error):
        shown = UserError(typed_line(error))
    elif own:
        shown = UserError(f"{typed_line(error)}\nCheck your code: {own}  ({TRACEBACK}=1 shows the traceback)")
    else:
        return None
    shown.__cause__ = error
    return shown


def _outlive_terminal(number: int) -> None:
    """Ignore further SIGHUPs: a closing shell sends one to its jobs, and the system another."""
    if number == signal.SIGHUP:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def _handling(handler: Callable[[int, object], None]) -> Iterator[Callable[[], None]]:
    """Install a signal handler. Yields a function that restores the old ones, as the end of the block does."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield lambda: None
        return

    def restore() -> None:
        for number, old in before.items():
            signal.signal(number, old)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    if before[signal.SIGHUP] == signal.SIG_IGN:  # nohup: the run must outlive its terminal
        del before[signal.SIGHUP]
    try:
        for number in before:
            signal.signal(number, handler)
        yield restore
    finally:
        restore()


@contextlib.contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Raise SignalInterrupt on a signal, so that context managers clean up."""

    def stop(number: int, _: object) -> None:
        _outlive_terminal(number)
        raise SignalInterrupt(number)

    with _handling(stop):
        yield


@contextlib.contextmanager
def recorded_signals(*, ignore_repeats: bool = False) -> Iterator[list[int]]:
    """Collect signals in a list, so that the run can save first. The first one restores the old handlers.

    With `ignore_repeats` it does not: torchrun passes on signals that its processes may have received already, and
    kills them itself if they take too long.
    """
    received: list[int] = []

    def record(number: int, _: object) -> None:
        received.append(number)
        if not ignore_repeats:
            restore()
        _outlive_terminal(number)

    with _handling(record) as restore:
        yield received
