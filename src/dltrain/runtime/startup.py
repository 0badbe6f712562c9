"""How a process gets torch: without waiting for more than the import, and with threads that let others compute, too."""

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Iterator

from dltrain.runtime.signals import recorded_signals

# What libgomp, torch's OpenMP on Linux, reads when it is loaded: how often a thread that waits for others looks before
# it sleeps. By itself it looks 300,000 times, for milliseconds, which takes the core from the very thread that it waits
# for as soon as anybody else computes here. This many last from one operation of a small network to the next; with less
# the threads would sleep, and have to be woken, in between (docs/LOG.md).
SPINS = {"GOMP_SPINCOUNT": "30000"}
USER_SET = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@contextlib.contextmanager
def gc_paused() -> Iterator[None]:
    """Collect no garbage while a process starts, up to `import_torch`: hardly anything of a start is garbage.

    Saves a tenth of the time up to there: composing a config makes many objects.
    """
    was_enabled = gc.isenabled()
    if "torch" not in sys.modules:  # else nobody would end it
        gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def import_torch() -> None:
    """Import torch where it is not there yet, and leave what there is by then out of every collection of garbage.

    A signal waits for its end: raised within, it would be lost, or end the process as no exception of C++'s may.

    Nothing of it is ever garbage: to look through its half a million objects again and again takes a sixth of the time
    of the import, and half a second at the end of the process. Forked processes share it, too, as long as nobody looks.
    """
    if "torch" in sys.modules:
        gc.enable()
        return
    if not any(name in os.environ for name in USER_SET):
        os.environ.update(SPINS)  # processes that this one starts have it as well
    gc.disable()
    try:
        with recorded_signals() as signals:
            import torch  # noqa: F401
    finally:
        gc.enable()
    gc.freeze()
    if signals:
        signal.raise_signal(signals[0])  # for whoever handles it now: a sweep notes it
