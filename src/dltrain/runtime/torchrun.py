"""Read rank and world size from the environment that torchrun, or another launcher, sets. Imports no torch."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from dltrain.runtime.errors import ConfigError, Interrupted

VISIBLE_GPUS = "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"  # where both are set, ROCm reads the first
RANK_ZERO_SECONDS = 3.0  # ample: torchrun checks its processes ten times a second


@dataclass(frozen=True)
class Processes:
    """This process among those of one run: its rank, how many there are, its rank on this machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


SINGLE_PROCESS = Processes()


def processes() -> Processes:
    """Read the processes of this run from the environment. Raises ConfigError if it is inconsistent."""
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        return SINGLE_PROCESS
    values = {name: os.environ.get(name, "0") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    message = "the environment has " + ", ".join(f"{name}={value[:20]}" for name, value in values.items())
    if not all(value.isdecimal() for value in values.values()):
        raise ConfigError(f"{message}: must be numbers, as torchrun sets them")
    processes = Processes(*map(int, values.values()))
    if processes.rank >= processes.world_size:
        raise ConfigError(f"{message}: RANK must be below WORLD_SIZE, as torchrun sets them")
    if processes.world_size > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise ConfigError(f"{message}, but no MASTER_ADDR and MASTER_PORT. Start it with torchrun")
    return processes


def require_single_process(option: str) -> None:
    """Raise ConfigError if several processes were started with an option that starts processes itself."""
    if (world_size := processes().world_size) > 1:
        raise ConfigError(f"{option} starts processes itself. Run it without torchrun, which started {world_size}")


@contextlib.contextmanager
def rank_zero_stdout(command: str) -> Iterator[bool]:
    """Let only rank 0 print. Yields whether this process takes part: all do in training, else only rank 0."""
    if not processes().rank:
        yield True
        return
    with open(os.devnull, "w", encoding="utf-8") as devnull, contextlib.redirect_stdout(devnull):  # noqa: PTH123
        yield command == "train"


def should_report(error: BaseException) -> bool:
    """True if this process should report an error. All but the first on each machine wait first.

    If the first has met the same error it reports it at once, and torchrun ends the others while they wait.
    """
    try:
        rank, local_rank = processes().rank, processes().local_rank
    except ConfigError:
        return True
    if rank and isinstance(error, KeyboardInterrupt):
        return False
    if rank:
        time.sleep(RANK_ZERO_SECONDS * bool(local_rank))
        if isinstance(error, Interrupted):  # every rank has it
            return False
        print(f"rank {rank}:", file=sys.stderr, end=" ", flush=True)
    return True
