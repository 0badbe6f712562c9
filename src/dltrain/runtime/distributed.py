"""Several processes that train one network: their group, what they add up and hand to each other.

With one process nothing here does anything. What is handed around is bytes of texts and checkpoints, no pickles:
whoever reaches a port of the group must not run code.
"""

import contextlib
import gc
import hashlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy
import torch
from torch import Tensor, distributed, nn

from dltrain.runtime.devices import Runtime, preserved_state, seed_everything
from dltrain.runtime.errors import ConfigError, UserError
from dltrain.runtime.torchrun import Processes

if TYPE_CHECKING:  # some builds of torch are without it
    from torch.distributed import TCPStore  # type: ignore[attr-defined]
    from torch.nn.parallel import DistributedDataParallel

# One may read a data set or draw a page while the others wait; one that dies is noticed by its connections.
TIMEOUT = timedelta(hours=1)
JOIN_TIMEOUT = timedelta(minutes=10)
SECONDS_IN_SILENCE = 10.0  # of joining
_begun = 0  # runs of this process


@contextlib.contextmanager
def process_group(processes: Processes) -> Iterator[None]:
    """Be in the group of all processes. Raises UserError where another one of them has gone."""
    if processes.world_size == 1:
        yield
        return
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    words = (
        f"process {processes.rank} of {processes.world_size} waits at {where} for the others, {JOIN_TIMEOUT} at most"
    )
    patience = threading.Timer(SECONDS_IN_SILENCE, print, [words], {"file": sys.stderr, "flush": True})
    patience.daemon = True
    patience.start()
    try:
        _join(processes)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the {processes.world_size} processes did not meet at {where}: {_reason(error)}") from error
    finally:
        patience.cancel()
    try:
        yield
        # What still holds the group keeps its threads, which fall over the interpreter while that comes to its end.
        gc.collect()
        distributed.destroy_process_group()
    except RuntimeError as error:
        if not (isinstance(error, distributed.DistError) or "gloo" in str(error).lower()):
            raise
        raise UserError(
            f"another process of this run has ended or cannot be reached; what was saved is kept\n{_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    """The first sentence of an error of the library's, without the place in its source; NCCL's stands at the end."""
    told = str(error).rpartition("Last error:")[2]
    return " ".join(told.split("] ", 1)[-1].split()).partition(". ")[0][:160]


def _join(processes: Processes) -> None:
    # In C++ no signal is heard of: while it waits for others that may never come, one simply ends the process.
    numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    try:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        store = _store(processes, is_master=processes.rank == 0)
        # torchrun starts processes again with the store of the first time: addresses of dead ones are still in it.
        attempt = f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)} of {processes.world_size}"
        kept = PrefixStore(f"{_name()}/{attempt}", store)
        distributed.init_process_group(
            backend, store=kept, rank=processes.rank, world_size=processes.world_size, timeout=TIMEOUT
        )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _name() -> str:
    """Of the run, in the store; one script may do several commands, a program of a person's own several runs."""
    words = hashlib.sha256("\0".join(sys.argv).encode(errors="surrogateescape")).hexdigest()
    return f"dltrain/{os.environ.get('TORCHELASTIC_RUN_ID', '')}/{words}/{_begun}"


def _has_agent() -> bool:
    """Whether an agent of torchrun's has the store, and so outlives its processes."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _store(processes: Processes, *, is_master: bool) -> "TCPStore":
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        return TCPStore(
            address,
            port,
            processes.world_size,
            is_master=is_master and not _has_agent(),
            timeout=JOIN_TIMEOUT,
            wait_for_workers=False,
        )
    except RuntimeError as error:
        raise UserError(
            f"{address}:{port}, where processes find each other, did not answer: {_reason(error)}"
        ) from error


def remember_folder(folder: str, processes: Processes) -> None:
    """Let processes that torchrun starts in the place of these know the folder of the run."""
    if _has_agent() and processes.rank == 0:
        _store(processes, is_master=False).set(f"{_name()}/folder", folder)


def begin_run(processes: Processes, *, recall: bool) -> str | None:
    """Begin a run, before joining; returns its folder where torchrun has ended processes that had begun it."""
    global _begun
    _begun += 1
    if not (recall and _has_agent()):
        return None
    store, key = _store(processes, is_master=False), f"{_name()}/folder"
    return store.get(key).decode() if store.check([key]) else None


def all_reduce_sum(tensor: Tensor, processes: Processes) -> Tensor:
    """The sum of a tensor over all processes, in its place."""
    if processes.world_size > 1:
        distributed.all_reduce(tensor)
    return tensor


def reduce_to_first(tensor: Tensor | None, processes: Processes) -> None:
    """Give the sum of a tensor over all processes to the first one, and zeros to the others."""
    if tensor is not None and processes.world_size > 1:
        distributed.all_reduce(tensor)
        if processes.rank:
            tensor.zero_()


def broadcast_bytes(content: bytes, processes: Processes, source: int = 0) -> bytes:
    """What one process has, for all."""
    if processes.world_size == 1:
        return content
    is_source = processes.rank == source
    size = torch.tensor([len(content) if is_source else 0])
    distributed.all_reduce(size)
    buffer = torch.zeros(int(size), dtype=torch.uint8)
    if is_source and content:
        buffer = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    if len(buffer):
        distributed.broadcast(buffer, source)
    return buffer.numpy().tobytes()


def all_gather_text(text: str, processes: Processes) -> list[str]:
    """What each process has, for all."""
    return [broadcast_bytes(text.encode(), processes, source).decode() for source in range(processes.world_size)]


def broadcast_buffers(model: nn.Module, processes: Processes) -> None:
    """Give a network the buffers that it has in the first process, such as running statistics of norms."""
    if processes.world_size > 1:
        for buffer in model.buffers():
            distributed.broadcast(buffer, 0)


def seed_rank(processes: Processes, seed: int, step: int) -> None:
    """Let others than the first process draw as (seed, process, step) say: nothing of theirs has to be saved."""
    if processes.rank:
        word = numpy.random.SeedSequence([seed, processes.rank, step]).generate_state(1)[0]
        seed_everything(int(word))


class Replica(nn.Module):
    """A network as each process has it; the gradient of `watched` is the mean of all their losses.

    So a loss that is not finite in one of them is known to all, without a word more than the gradients.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.model = model
        self.watched = nn.Parameter(torch.zeros((), device=device))

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.model(inputs)
        return output

    def global_loss(self, loss: Tensor, weight: float) -> Tensor:
        """What to differentiate for a loss that counts `weight` in the mean over all processes."""
        return loss * weight + self.watched * loss.detach()

    def mean_loss(self) -> Tensor:
        """Of all processes, once gradients are there; not finite where one is not."""
        gradient, self.watched.grad = self.watched.grad, None
        assert gradient is not None
        return gradient


def wrap_ddp(model: nn.Module, shape: tuple[int, ...], runtime: Runtime) -> "DistributedDataParallel | None":
    """What computes a network's outputs so that the gradients are those of all processes; None with one process.

    All get the weights of the first one. Raises ConfigError for a weight that no gradient reaches.
    """
    if runtime.processes.world_size == 1:
        return None
    device = runtime.device
    devices = [device] if device.type == "cuda" else None
    from torch.nn.parallel import DistributedDataParallel

    parallel = DistributedDataParallel(Replica(model, device), device_ids=devices)
    # After its first pass it lays the gradients out anew, and with them the order in which three and more processes
    # add. That is done now, so that a run that is resumed adds as one that was not.
    with preserved_state(model):
        model.train()
        with runtime.autocast():
            outputs = parallel(torch.zeros(2, *shape, device=device))
        parallel.module.global_loss(outputs.float().mean(), 1.0).backward()
        unreached = [name for name, each in model.named_parameters() if each.requires_grad and each.grad is None]
        parallel.module.mean_loss()
    if unreached:
        raise ConfigError(
            f"the model has weights that no gradient reaches: {', '.join(unreached[:3])}\n"
            "Several processes would wait for them. Leave them out, or set requires_grad=False for them"
        )
    return parallel


class SignalSync:
    """What all processes must find in the same step: signals, which any may get, and the clock of the first one.

    To ask all costs half a millisecond: it is done about every 20 ms, after each step where steps take longer.
    """

    SECONDS, MOST_STEPS = 0.02, 64

    def __init__(self, processes: Processes, noted: list[int]) -> None:
        self.processes, self.noted = processes, noted
        self.signals = noted if processes.world_size == 1 else []  # those that all know of
        self.due = False
        self.steps, self.interval, self.met = 0, 1, time.perf_counter()

    def __call__(self, seconds: float = 0.0, due: bool = False, *, at_once: bool = False) -> tuple[float, bool]:
        """Seconds since the start, and whether to save, as the first process has them.

        After steps where it is not asked, nothing is due and no time has passed.
        """
        if self.processes.world_size == 1:
            return seconds, due
        self.steps += 1
        self.due |= due
        if self.steps < self.interval and not at_once:
            return 0.0, False
        now = time.perf_counter()
        pace = self.steps * self.SECONDS / max(now - self.met, 1e-6)
        own = [float(self.noted[0]) if self.noted else 0.0, 0.0, 0.0, 0.0]
        if self.processes.rank == 0:
            own[1:] = [seconds, float(self.due), max(1.0, min(pace, self.MOST_STEPS))]
        told = torch.tensor(own, dtype=torch.float64)
        distributed.all_reduce(told, distributed.ReduceOp.MAX)
        number, seconds, save, interval = told.tolist()
        if number and not self.signals:
            self.signals.append(int(number))
        self.due, self.steps, self.interval, self.met = False, 0, int(interval), time.perf_counter()
        return seconds, bool(save)
