"""What torchrun, or another launcher, tells a process by its environment: which of how many it is. Imports no torch."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from dltrain.runtime.errors import ConfigError, Interrupted

SECONDS_FOR_THE_FIRST = 3.0  # torchrun looks after its processes ten times a second


@dataclass(frozen=True)
class Processes:
    """The processes that do one run: `rank` of `world`, of those on this machine number `local`."""

    rank: int = 0
    world_size: int = 1
    local: int = 0


SINGLE_PROCESS = Processes()


def processes() -> Processes:
    """Those that this process was started with. Raises ConfigError for an environment that makes no sense."""
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        return SINGLE_PROCESS
    words = {name: os.environ.get(name, "0") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    told = "the environment says " + ", ".join(f"{name}={word[:20]}" for name, word in words.items())
    if not all(word.isdecimal() for word in words.values()):
        raise ConfigError(f"{told}: must be numbers, as torchrun sets them")
    found = Processes(*(int(word) for word in words.values()))
    if found.rank >= found.world_size:
        raise ConfigError(f"{told}: RANK must be below WORLD_SIZE, as torchrun sets them")
    if found.world_size > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise ConfigError(f"{told}, but not MASTER_ADDR and MASTER_PORT. Start it with torchrun")
    return found


def require_single_process(words: str) -> None:
    """Raise ConfigError where several processes were started for what one does."""
    if (world := processes().world_size) > 1:
        raise ConfigError(f"{words}: starts processes itself. Run it without torchrun (these are {world} processes)")


@contextlib.contextmanager
def rank_zero_stdout(command: str) -> Iterator[bool]:
    """Let the first process alone print; gives whether this one takes part: in training, else only the first does."""
    rank = processes().rank
    if not rank:
        yield True
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):  # noqa: PTH123
        yield command == "train"


def should_report(error: BaseException) -> bool:
    """Whether this process tells of an error, once it is its turn.

    What the first one has met too it tells itself, at once, and torchrun ends the others; so they wait before they do.
    """
    try:
        rank = processes().rank
    except ConfigError:
        return True
    if rank and isinstance(error, KeyboardInterrupt):
        return False
    if rank:
        time.sleep(SECONDS_FOR_THE_FIRST)
        if isinstance(error, Interrupted):  # that is of all
            return False
        print(f"process {rank}:", file=sys.stderr, end=" ", flush=True)
    return True
