"""How a process gets torch: once, without waiting for more than the import, and with threads that wait politely."""

import gc
import os
import sys

# What libgomp, torch's OpenMP on Linux, reads when it is loaded: a thread that waits for others sleeps. By itself it
# spins for milliseconds, which takes the core from the one that is waited for as soon as anybody else computes here.
WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}
OF_A_PERSON = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def import_torch() -> None:
    """Import torch where it is not there yet, and leave what there is by then out of every collection of garbage.

    Nothing of it is ever garbage: to look through its half a million objects again and again takes a sixth of the time
    of the import, and half a second at the end of the process. Forked processes share it, too, as long as nobody looks.
    """
    if "torch" in sys.modules:
        return
    if not any(name in os.environ for name in OF_A_PERSON):
        os.environ.update(WAITING)  # so that processes that this one starts have it as well
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        import torch  # noqa: F401
    finally:
        if was_enabled:
            gc.enable()
    gc.freeze()
