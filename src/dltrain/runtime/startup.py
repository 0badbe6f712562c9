"""Import torch fast: with garbage collection paused, and with threads that do not spin for long."""

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from dltrain.runtime.signals import recorded_signals

# Read by libgomp, torch's OpenMP on Linux, when it is loaded: how often a waiting thread polls before it sleeps. The
# default of 300,000 takes milliseconds, and on a busy machine it takes the core from the very thread that is waited
# for. The values of `spin_count` were measured on three CPUs (docs/LOG.md): an idle step takes at most a sixth longer
# than with 4,000 polls on those with AVX-512, a tenth longer than with 30,000 on the one without.
# With it set to 1, torch.cuda.is_available() asks the driver less and does not start CUDA, which survives no fork.
NO_CUDA_START = "PYTORCH_NVML_BASED_CUDA_CHECK"
USER_SET = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@contextlib.contextmanager
def gc_paused() -> Iterator[None]:
    """Pause garbage collection until `import_torch`: composing makes many objects, hardly any of them garbage."""
    was_enabled = gc.isenabled()
    if "torch" not in sys.modules:  # else import_torch would not enable it again
        gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def spin_count(cpus: Path = Path("/proc/cpuinfo")) -> str:
    """Return the value of GOMP_SPINCOUNT for this CPU."""
    flags = ""
    with contextlib.suppress(OSError), cpus.open("rb") as file:
        flags = file.read(8192).decode(errors="replace")  # the first core's
    return "2000" if "avx512f" in flags else "4000"


def import_torch() -> None:
    """Import torch if it is not imported yet, and exclude all objects that exist by then from garbage collection.

    None of them is ever garbage: scanning its half a million objects takes a sixth of the import time and half a second
    when the process ends. Unscanned, they also stay shared with forked processes. A signal is raised after the import:
    within it the exception would be lost, or abort the process in C++.
    """
    if "torch" in sys.modules:
        gc.enable()
        return
    if not any(name in os.environ for name in USER_SET):
        os.environ["GOMP_SPINCOUNT"] = spin_count()  # inherited by child processes
    gc.disable()
    try:
        with recorded_signals() as signals:
            import torch  # noqa: F401
    finally:
        gc.enable()
    gc.freeze()
    if signals:
        signal.raise_signal(signals[0])  # for the handlers in place now: a sweep records it
