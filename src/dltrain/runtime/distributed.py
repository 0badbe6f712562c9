"""Train one network in several processes: their process group and its collective operations.

With a single process everything here does nothing. Ranks exchange bytes of texts and checkpoints, never pickles, so
that nobody who reaches a port of the group can run code.
"""

import contextlib
import ctypes
import gc
import hashlib
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Collection, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
import torch
from torch import Tensor, distributed, nn

from dltrain.runtime.devices import Runtime, preserved_state, seed_everything
from dltrain.runtime.errors import ConfigError, UserError
from dltrain.runtime.torchrun import Processes

if TYPE_CHECKING:  # missing in some builds of torch
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
    from torch.nn.parallel import DistributedDataParallel

# Long, because a rank may read a data set or write a report while the others wait. Lost connections reveal a dead rank.
TIMEOUT = timedelta(hours=1)
JOIN_TIMEOUT = timedelta(minutes=10)
SECONDS_BEFORE_NOTICE = 10.0  # of waiting for the other ranks
SILENCE = 60  # seconds without an answer from another machine, after which it counts as dead
DESCRIPTORS = Path("/dev/fd")
_run_count = 0  # runs begun by this process


@contextlib.contextmanager
def process_group(processes: Processes) -> Iterator[None]:
    """Join the group of all processes until the block ends. Raises UserError if another process is lost."""
    if processes.world_size == 1:
        yield
        return
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    rank = f"rank {processes.rank} of {processes.world_size}"
    notice = f"{rank} is waiting for the others at {where}, up to {JOIN_TIMEOUT}"
    timer = threading.Timer(SECONDS_BEFORE_NOTICE, print, [notice], {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        _join(processes)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the {processes.world_size} processes did not meet at {where}: {_reason(error)}") from error
    finally:
        timer.cancel()
    try:
        yield
        # Objects that still hold the group keep its threads alive, which crash while the interpreter shuts down.
        gc.collect()
        distributed.destroy_process_group()
    except RuntimeError as error:
        if not (isinstance(error, distributed.DistError) or "gloo" in str(error).lower()):
            raise
        lost = "another process of this run has ended or cannot be reached. Continue with resume=FOLDER"
        raise UserError(f"{lost}\n{_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return the first sentence of an error from torch without its source location; NCCL puts it at the end."""
    message = str(error).rpartition("Last error:")[2].split("] ", 1)[-1]
    return " ".join(message.split()).partition(". ")[0][:160]


def _join(processes: Processes) -> None:
    # Python handlers do not run while C++ waits for ranks that may never come: let a signal end the process.
    numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    try:
        opened = _descriptors()
        store = PrefixStore(_store_prefix(), _store(processes, is_master=processes.rank == 0 and not _has_agent()))
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=PrefixStore(_attempt(store, processes), store),
            rank=processes.rank,
            world_size=processes.world_size,
            timeout=TIMEOUT,
        )
        _end_if_silent(_descriptors() - opened)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _attempt(store: "PrefixStore", processes: Processes) -> str:
    """Return a name on which all ranks agree, another for each time that they are started.

    torchrun starts processes again with the same store, which still holds the addresses of dead ones, and its agents on
    several machines count differently how often.
    """
    mine = secrets.token_hex(8)
    if processes.rank == 0:
        store.set("first", mine)
        others = [store.get(f"{mine}/{rank}").decode() for rank in range(1, processes.world_size)]
        store.set(f"{mine}/all", " ".join(others))
        return mine
    end = time.monotonic() + JOIN_TIMEOUT.total_seconds()
    while time.monotonic() < end:
        first = store.get("first").decode()  # perhaps of a dead process, which knew nothing of this one
        store.set(f"{first}/{processes.rank}", mine)
        if store.check([f"{first}/all"]) and mine in store.get(f"{first}/all").decode().split():
            return first
        time.sleep(0.02)
    raise RuntimeError(f"rank 0 did not answer within {JOIN_TIMEOUT}")


def _descriptors() -> set[Path]:
    """Return the open descriptors, without the one by which they are listed."""
    return {path for path in [*DESCRIPTORS.glob("*")] if path.exists()}


def _end_if_silent(descriptors: Collection[Path]) -> None:
    """Let the kernel end connections whose other side stops answering: torch would wait for an hour."""
    for path in descriptors:
        with contextlib.suppress(OSError, AttributeError):  # not a connection; macOS lacks some of the options
            connection = socket.socket(fileno=int(path.name))
            try:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENCE // 2)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, SILENCE // 6)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * SILENCE)
            finally:
                connection.detach()  # it stays open


def _store_prefix() -> str:
    """Return the prefix of this run's keys: one script may start several commands, one program several runs."""
    arguments = hashlib.sha256("\0".join(sys.argv).encode(errors="surrogateescape")).hexdigest()
    return f"dltrain/{os.environ.get('TORCHELASTIC_RUN_ID', '')}/{arguments}/{_run_count}"


def _has_agent() -> bool:
    """True if a torchrun agent holds the store, so that it outlives the processes."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _store(processes: Processes, *, is_master: bool) -> "TCPStore":
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    address, port, size = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), processes.world_size
    try:
        return TCPStore(address, port, size, is_master=is_master, timeout=JOIN_TIMEOUT, wait_for_workers=False)
    except RuntimeError as error:
        raise UserError(f"{address}:{port}, where the processes meet, did not answer: {_reason(error)}") from error


def remember_folder(folder: str, processes: Processes) -> None:
    """Store the folder of the run for the processes that torchrun starts if these fail."""
    if _has_agent() and processes.rank == 0:
        _store(processes, is_master=False).set(f"{_store_prefix()}/folder", folder)


def begin_run(processes: Processes, *, recall: bool) -> str | None:
    """Count a run, before joining. Returns its folder if torchrun restarted processes that had begun it."""
    global _run_count
    _run_count += 1
    if _has_agent() and sys.platform == "linux":  # its death is a SIGTERM: nobody else would end this process
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if not (recall and _has_agent()):
        return None
    store, key = _store(processes, is_master=False), f"{_store_prefix()}/folder"
    return store.get(key).decode() if store.check([key]) else None


def all_reduce_sum(tensor: Tensor, processes: Processes) -> Tensor:
    """Sum a tensor over all ranks, in place."""
    if processes.world_size > 1:
        distributed.all_reduce(tensor)
    return tensor


def reduce_to_first(tensor: Tensor | None, processes: Processes) -> None:
    """Sum a tensor over all ranks into rank 0, in place; the others get zeros."""
    if tensor is not None and processes.world_size > 1:
        distributed.all_reduce(tensor)
        if processes.rank:
            tensor.zero_()


def broadcast_bytes(content: bytes, processes: Processes, source: int = 0) -> bytes:
    """Broadcast bytes from rank `source` to all ranks."""
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
    """Return the texts of all ranks, in the order of ranks, on every rank."""
    return [broadcast_bytes(text.encode(), processes, source).decode() for source in range(processes.world_size)]


def all_gather_rows(rows: Tensor, processes: Processes) -> Tensor:
    """Return the rows (N, ...) of all ranks on the CPU, in the order of ranks; each may have another number of them."""
    content = rows.numpy().tobytes()
    parts = [broadcast_bytes(content, processes, source) for source in range(processes.world_size)]
    return torch.frombuffer(bytearray(b"".join(parts)), dtype=rows.dtype).view(-1, *rows.shape[1:])


def broadcast_buffers(model: nn.Module, processes: Processes) -> None:
    """Copy the buffers of a network, such as running statistics, from rank 0 to all ranks."""
    if processes.world_size > 1:
        for buffer in model.buffers():
            distributed.broadcast(buffer, 0)


def seed_rank(processes: Processes, seed: int, step: int) -> None:
    """Seed ranks > 0 from (seed, rank, step), so that their generator states need not be saved."""
    if processes.rank:
        mixed = int(numpy.random.SeedSequence([seed, processes.rank, step]).generate_state(1)[0])
        seed_everything(mixed, each_step=True)


class Replica(nn.Module):
    """The network inside DDP, with a parameter `probe` that receives the mean loss of all ranks as its gradient.

    So every rank learns of a loss that is not finite without any communication beyond the gradients.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.model = model
        self.probe = nn.Parameter(torch.zeros((), device=device))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model(inputs)

    def global_loss(self, loss: Tensor, weight: float) -> Tensor:
        """Return what to differentiate for a loss of the given weight in the mean over all ranks."""
        return loss * weight + self.probe * loss.detach()

    def mean_loss(self) -> Tensor:
        """Return the mean loss of all ranks after a backward pass; it is not finite if any of them is not."""
        gradient, self.probe.grad = self.probe.grad, None
        assert gradient is not None
        return gradient


def wrap_ddp(model: nn.Module, shape: tuple[int, ...], runtime: Runtime) -> "DistributedDataParallel | None":
    """Wrap a network in DDP, with the weights of rank 0; returns None with a single process.

    `shape` is that of one input (C, H, W). Raises ConfigError for weights that get no gradient.
    """
    if runtime.processes.world_size == 1:
        return None
    from torch.nn.parallel import DistributedDataParallel

    device = runtime.device
    parallel = DistributedDataParallel(Replica(model, device), device_ids=[device] if device.type == "cuda" else None)
    # DDP rebuilds its buckets after the first pass, and with them the order in which three or more ranks add. A trial
    # pass does this now, so that a resumed run adds in the same order as an uninterrupted one.
    with preserved_state(model):
        model.train()
        with runtime.autocast():
            outputs = parallel(torch.zeros(2, *shape, device=device))
        parallel.module.global_loss(outputs.float().mean(), 1.0).backward()
        unused = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
        parallel.module.mean_loss()
    if unused:
        raise ConfigError(
            f"the model has weights that get no gradient: {', '.join(unused[:3])}\n"
            "Several processes would wait for it. Remove them, or set requires_grad=False"
        )
    return parallel


class SignalSync:
    """Let all ranks see a signal, which any of them may receive, and the clock of rank 0 in the same step.

    A synchronization costs half a millisecond: it happens about every 20 ms, or after each step if steps take longer.
    """

    SECONDS, MAX_STEPS = 0.02, 64

    def __init__(self, processes: Processes, received: list[int]) -> None:
        self.processes, self.received = processes, received
        self.signals = received if processes.world_size == 1 else []  # known to all ranks
        self.due = False
        self.steps, self.interval, self.last_sync = 0, 1, time.perf_counter()

    def __call__(self, seconds: float = 0.0, due: bool = False, *, at_once: bool = False) -> tuple[float, bool]:
        """Return the seconds since the start and whether to save, as rank 0 has them; 0.0, False without a sync."""
        if self.processes.world_size == 1:
            return seconds, due
        self.steps += 1
        self.due |= due
        if self.steps < self.interval and not at_once:
            return 0.0, False
        pace = self.steps * self.SECONDS / max(time.perf_counter() - self.last_sync, 1e-6)
        state = [float(self.received[0]) if self.received else 0.0, 0.0, 0.0, 0.0]
        if self.processes.rank == 0:
            state[1:] = [seconds, float(self.due), max(1.0, min(pace, self.MAX_STEPS))]
        shared = torch.tensor(state, dtype=torch.float64)
        distributed.all_reduce(shared, distributed.ReduceOp.MAX)
        number, seconds, save, interval = shared.tolist()
        if number and not self.signals:
            self.signals.append(int(number))
        self.due, self.steps, self.interval, self.last_sync = False, 0, int(interval), time.perf_counter()
        return seconds, bool(save)
