"""Where and how tensors are computed: device, precision, threads, seeds. Decided once, before the first tensor."""

import contextlib
import os
import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy
import torch
from annotated_types import Interval
from torch import nn

from dltrain.runtime import torchrun
from dltrain.runtime.errors import DeviceError, UserError, first_line

Generators = dict[str, Any]  # states of random generators, by name

# In plain RuntimeErrors of torch's: of the host, of the driver, of CUDA's libraries.
NO_MEMORY = "can't allocate memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED"


@dataclass(frozen=True)
class Runtime:
    """What was decided, `precision` auto until the network is known; `processes` are those that train together."""

    device: torch.device
    precision: str
    threads: int
    reason: str = ""  # why the precision is what auto stands for
    processes: torchrun.Processes = torchrun.SINGLE_PROCESS

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Mixed precision around a forward pass; bf16 has the range of fp32 and needs no loss scaling."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def describe(self) -> str:
        """One line for a person: device, precision and why, threads, processes."""
        precision = self.precision + (f" (auto: {self.reason})" if self.reason else "")
        together = f", {self.processes.world_size} processes" if self.processes.world_size > 1 else ""
        if self.device.type == "cuda":
            return f"{torch.cuda.get_device_name(self.device)} (cuda), {precision}{together}"
        return f"cpu, {self.threads} thread{'s' * (self.threads > 1)}, {precision}{together}"


def device(
    *,
    name: Literal["auto", "cpu", "cuda"],
    precision: Literal["auto", "fp32", "bf16"] | None,
    threads: Annotated[int, Interval(ge=1, le=1024)] | None,
    deterministic: bool,
) -> Runtime:
    """Decide where to compute, and set torch's threads and determinism for this process.

    Args:
        name: `auto` takes CUDA where there is one, else the CPU
        precision: `auto` is bf16 for classification where the hardware has it, on a CPU only for networks that it makes
            faster; null is fp32 on the CPU and `auto` on a GPU
        threads: CPU threads; null leaves torch's own choice
        deterministic: refuse operations that may differ from run to run on a GPU

    Raises DeviceError where CUDA is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        why = "no usable GPU was found" if torch.version.cuda else "this PyTorch was built without CUDA"
        raise DeviceError(f"device=cuda: {why}. Set device=cpu, or device=auto to take what there is")
    use_cuda = name != "cpu" and torch.cuda.is_available()
    place = torch.device("cuda" if use_cuda else "cpu")
    if use_cuda and torchrun.processes().world_size > 1:  # each on a GPU of its own
        place = torch.device("cuda", torchrun.processes().local)
        if place.index >= (count := torch.cuda.device_count()):
            raise DeviceError(
                f"device={name}: process {place.index + 1} of this machine finds {count} GPUs. "
                "Start fewer, or set device=cpu"
            )
        torch.cuda.set_device(place)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # must be set before cuBLAS starts
    if deterministic != torch.are_deterministic_algorithms_enabled():  # to set it imports a compiler, two seconds
        torch.use_deterministic_algorithms(deterministic)
    if threads is not None:
        torch.set_num_threads(threads)
    return Runtime(place, precision or ("auto" if use_cuda else "fp32"), torch.get_num_threads())


def restored_device(node: dict[str, Any], before: dict[str, Any], typed: Collection[str]) -> Runtime:
    """`device`, with the threads and the precision of before where none are typed: others would round differently."""
    kept = {key: value for key, value in before.items() if not {"device", f"device.{key}"} & set(typed)}
    return device(**(node | kept))


def seed_everything(seed: int) -> None:
    """Seed every generator that a model's or a user's code may draw from."""
    torch.manual_seed(seed)  # every CUDA device too
    random.seed(seed)
    numpy.random.seed(seed % 2**32)


def generator_states() -> Generators:
    """States of the generators that `seed_everything` seeds, as tensors and plain data, for a checkpoint."""
    version, words, gauss = random.getstate()
    name, key, *rest = numpy.random.get_state(legacy=True)
    states: Generators = {
        "cpu": torch.get_rng_state(),
        "python": [version, torch.tensor(words), gauss],
        "numpy": [name, torch.from_numpy(numpy.asarray(key, numpy.int64)), *rest],
    }
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_generators(states: Generators) -> None:
    """Set the generators to saved states; a CUDA state is only used where CUDA is."""
    torch.set_rng_state(states["cpu"])
    if "python" in states:
        version, words, gauss = states["python"]
        random.setstate((version, tuple(words.tolist()), gauss))
    if "numpy" in states:
        name, key, *rest = states["numpy"]
        if key.dtype != torch.int64 or not 0 <= rest[0] <= 624:  # numpy believes it, and reads that word
            raise ValueError("a state of numpy's generator that cannot be")
        numpy.random.set_state((name, key.numpy().astype(numpy.uint32), *rest))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


@contextlib.contextmanager
def preserved_state(network: nn.Module) -> Iterator[None]:
    """Undo what trial passes do: generators and buffers as before, one mode for all of the network, no gradients."""
    was_training, states = network.training, generator_states()
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in network.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        restore_generators(states)
        network.train(was_training)
        network.zero_grad()
        for module, name, buffer, before in buffers:
            setattr(module, name, buffer)  # a pass may have put another in its place
            # One that is expanded cannot be written to. Versions do not tell: batch norm's statistics keep theirs.
            if buffer.layout is not torch.strided or not torch.equal(buffer, before):
                with torch.no_grad():
                    buffer.copy_(before)


@contextlib.contextmanager
def memory_errors(advice: str) -> Iterator[None]:
    """Turn running out of memory, on the GPU or the host, into a UserError in two lines."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        plain = any(words in str(error) for words in NO_MEMORY)
        if not (plain or isinstance(error, (torch.OutOfMemoryError, MemoryError))):
            raise
        raise UserError(f"out of memory: {first_line(error)}\n{advice}") from error
