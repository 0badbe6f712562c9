"""Keep what a run sets for its process as the caller found it: threads, generators, signals, warnings, logging …"""

import contextlib
import gc
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator

import torch

from dltrain.runtime import devices
from dltrain.runtime.errors import UserError
from dltrain.runtime.signals import SIGNALS

_BUSY = threading.RLock()  # the thread that holds it may call again, as from a `watch`


@contextlib.contextmanager
def preserved(wait_seconds: float = 0) -> Iterator[None]:
    """Run the `with` block as in a new process, without a closed standard output, and restore what it changes.

    Raises UserError if another thread is in such a block: most of this belongs to the process, not to a thread.
    """
    if not _BUSY.acquire(timeout=wait_seconds):
        raise UserError(
            "another thread of this process is training: both would set the same random generators and threads\n"
            "Wait for it, or start a process for each run, as dltrain.sweep does"
        )
    with contextlib.ExitStack() as stack:
        restore, enter, logger = stack.callback, stack.enter_context, logging.getLogger("dltrain")
        restore(_BUSY.release)
        enter(warnings.catch_warnings())
        restore(gc.enable if gc.isenabled() else gc.disable)
        restore(_set_environment, dict(os.environ))
        restore(logger.setLevel, logger.level)
        restore(setattr, logger, "propagate", logger.propagate)
        for values in (sys.path, logger.handlers):
            restore(values.__setitem__, slice(None), values[:])  # type: ignore[arg-type]
        for number in SIGNALS if threading.current_thread() is threading.main_thread() else ():
            if (handler := signal.getsignal(number)) is not None:  # None if C code has set it
                restore(signal.signal, number, handler)
        for name in ("stdout", "stderr", "__stdout__", "__stderr__"):
            if (stream := getattr(sys, name)) is None or getattr(stream, "closed", False):
                restore(setattr, sys, name, stream)
                setattr(sys, name, enter(open(os.devnull, "w", encoding="utf-8")))  # noqa: PTH123, SIM115
        # The caller's modes come before its generators: a default device would hold their states, too.
        enter(torch.inference_mode(False))
        enter(torch.enable_grad())
        for kind in filter(torch.is_autocast_enabled, ("cpu", "cuda")):
            enter(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            enter(torch.device("cpu"))  # only then: it makes every operation slower
        restore(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        restore(torch.set_num_threads, torch.get_num_threads())
        restore(_set_determinism, torch.get_deterministic_debug_mode())
        with contextlib.suppress(RuntimeError):  # its parts differ, as set by a newer interface
            restore(_set_tf32, torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision())
        if torch.cuda.is_initialized():
            restore(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
        else:  # as the caller's manual_seed did: the seed waits until CUDA starts
            restore(torch.cuda.manual_seed_all, torch.initial_seed())
        restore(devices.restore_generators, devices.generator_states())
        yield


def _set_environment(before: dict[str, str]) -> None:
    for key in os.environ.keys() - before.keys():
        del os.environ[key]
    os.environ.update({key: value for key, value in before.items() if os.environ.get(key) != value})


def _set_determinism(mode: int) -> None:
    if torch.get_deterministic_debug_mode() != mode:  # setting it imports a compiler: two seconds
        torch.set_deterministic_debug_mode(mode)


def _set_tf32(convolutions: bool, products: str) -> None:
    with contextlib.suppress(RuntimeError):
        if (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == (convolutions, products):
            return
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.set_float32_matmul_precision(products)
