"""Injected faults of the operating system: a call fails, does half its work, or is the last one before SIGKILL.

`Child` runs an action in a fork, which a fault may kill, and keeps what it printed.
"""

import contextlib
import ctypes
import errno
import os
import resource
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import pytest
import torch

# The calls that write checkpoints and their folder; Path.replace and Path.unlink call the functions of os.
CALLS = [(os, name) for name in ("open", "write", "fsync", "close", "replace", "link", "unlink")] + [
    (shutil, "copyfile")
]
ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES)


@dataclass(frozen=True)
class Fault:
    """What happens at a call: an errno, or 0 for SIGKILL; before the call, after half of its work, or after it."""

    number: int
    moment: str = "before"

    def strike(self) -> NoReturn:
        if not self.number:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(self.number, os.strerror(self.number))


KILLS = [Fault(0, moment) for moment in ("before", "half", "after")]
FAILURES = [Fault(number, moment) for number in ERRORS for moment in ("before", "half")]


@contextlib.contextmanager
def at_call(at: int | None = None, fault: Fault | None = None, *, links: bool = True) -> Iterator[list[str]]:
    """Strike call number `at` with a fault, and yield the names of the calls made; `links=False` forbids hard links."""
    made: list[str] = []
    reals = {name: getattr(module, name) for module, name in CALLS}

    def by_half(name: str, *arguments: Any) -> None:
        if name == "write":
            reals["write"](arguments[0], arguments[1][: len(arguments[1]) // 2])
        elif name == "copyfile":
            reals["copyfile"](*arguments)
            os.truncate(arguments[1], os.path.getsize(arguments[1]) // 2)  # noqa: PTH202
        elif name == "close":
            reals["close"](*arguments)

    def shim(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **settings: Any) -> Any:
            struck = fault if len(made) == at else None
            made.append(name)
            if struck is not None and struck.moment != "after":
                if struck.moment == "half":
                    by_half(name, *arguments)
                elif name == "close":
                    real(*arguments)  # Linux closes the file even if it reports an error
                struck.strike()
            try:
                if name == "link" and not links and os.path.exists(arguments[0]):  # noqa: PTH110
                    raise OSError(errno.EPERM, os.strerror(errno.EPERM))
                return real(*arguments, **settings)
            finally:
                if struck is not None:
                    struck.strike()

        return call

    with pytest.MonkeyPatch.context() as patch:
        for module, name in CALLS:
            patch.setattr(module, name, shim(name, reals[name]))
        yield made


@contextlib.contextmanager
def file_limit(size: int) -> Iterator[None]:
    """Limit files of this process to `size` bytes, as on a full disk. Python ignores SIGXFSZ."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def limited(patch: pytest.MonkeyPatch, owner: object, function: str, *, at: int, name: str = "") -> None:
    """Simulate a full disk during the `at`-th call of a function; with `name`, only calls with such a path count."""
    real, calls = getattr(owner, function), 0

    def call(*arguments: Any, **settings: Any) -> Any:
        nonlocal calls
        calls += not name or arguments[0].name == name
        with file_limit(10) if calls == at else contextlib.nullcontext():
            return real(*arguments, **settings)

    patch.setattr(owner, function, call)


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, or minus the signal number, and what it printed."""

    code: int
    out: str
    err: str


class Child:
    """A fork that runs one action and exits with the code it returns, or prints the traceback and exits with 1.

    Its output goes through pipes, which limits on files do not affect.
    """

    def __init__(self, action: Callable[[], int | None]) -> None:
        pipes = [os.pipe() for _ in range(2)]
        sys.stdout.flush()
        with warnings.catch_warnings():
            # The warning is about threads of numpy's libraries, which the child does not use.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.number = os.fork()
        if not self.number:
            _live(action, [writing for _, writing in pipes])
        self.readers = [open(reading, encoding="utf-8") for reading, _ in pipes]  # noqa: PTH123, SIM115
        for _, writing in pipes:
            os.close(writing)

    def kill(self) -> None:
        os.kill(self.number, signal.SIGKILL)

    def wait(self) -> Ended:
        out, err = (reader.read() for reader in self.readers)
        for reader in self.readers:
            reader.close()
        return Ended(os.waitstatus_to_exitcode(os.waitpid(self.number, 0)[1]), out, err)


def forked(action: Callable[[], int | None]) -> Ended:
    """Run an action in a fork and wait until it ends."""
    return Child(action).wait()


def obey_permissions() -> None:
    """Drop root's right to bypass file permissions in this process; other users have no such right."""
    if os.getuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of the call, this process
        sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then those above 31
        assert libc.capget(header, sets) == 0
        sets[0] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
        assert libc.capset(header, sets) == 0


def _live(action: Callable[[], int | None], outputs: list[int]) -> NoReturn:
    """Run the action in the fork and exit; a fork must not return into pytest."""
    code = 1
    try:
        for number, output in enumerate(outputs, start=1):
            os.dup2(output, number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8") for number in (1, 2))
        torch.cuda.is_available = lambda: False  # CUDA does not survive a fork
        code = action() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
