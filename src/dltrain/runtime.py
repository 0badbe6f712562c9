"""Where and how tensors are computed: device, precision, threads, seeds. Decided once, before the first tensor."""

import contextlib
import ctypes
import functools
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy
import torch
from annotated_types import Interval
from torch import nn

from dltrain.errors import DeviceError, UserError

NATIVE_BF16 = ("avx512_bf16", "amx_bf16", "bf16")  # of x86 and of ARM
FASTER_IN_BF16 = (nn.Linear, nn.Conv2d, nn.RNNBase, nn.BatchNorm1d, nn.BatchNorm2d)
Generators = dict[str, Any]  # states of random generators, by name


@dataclass(frozen=True)
class Runtime:
    """What was decided: precision is fp32, bf16, or auto until the network is known; `reason` says why by auto."""

    device: torch.device
    precision: str
    threads: int
    reason: str = ""

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Mixed precision around a forward pass; bf16 has the range of fp32 and needs no loss scaling."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def describe(self) -> str:
        """One line for a person: device, precision and why, threads."""
        precision = self.precision + (f" (auto: {self.reason})" if self.reason else "")
        if self.device.type == "cuda":
            return f"{torch.cuda.get_device_name(self.device)} (cuda), {precision}"
        return f"cpu, {self.threads} thread{'s' * (self.threads > 1)}, {precision}"


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
        precision: `auto` is bf16 where the hardware has it, on a CPU only for networks that it makes faster; null is
            fp32 on the CPU and `auto` on a GPU
        threads: CPU threads; null leaves torch's own choice
        deterministic: refuse operations that may differ from run to run on a GPU

    Raises DeviceError where CUDA is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        reason = "no usable GPU was found" if torch.version.cuda else "this PyTorch was built without CUDA"
        raise DeviceError(f"device=cuda: {reason}. Set device=cpu, or device=auto to take what there is")
    use_cuda = name != "cpu" and torch.cuda.is_available()
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # must be set before cuBLAS starts
    if deterministic != torch.are_deterministic_algorithms_enabled():  # to set it imports a compiler, two seconds
        torch.use_deterministic_algorithms(deterministic)
    if threads is not None:
        torch.set_num_threads(threads)
    place = torch.device("cuda" if use_cuda else "cpu")
    return Runtime(place, precision or ("auto" if use_cuda else "fp32"), torch.get_num_threads())


def settled(runtime: Runtime, network: nn.Module, batch_size: int) -> Runtime:
    """The precision that `auto` stands for: a rule, so that the same command chooses the same on the same machine."""
    if runtime.precision != "auto":
        return runtime
    reason = _against_bf16(runtime.device, network, batch_size)
    if reason:
        return replace(runtime, precision="fp32", reason=reason)
    return replace(runtime, precision="bf16", reason="faster for this network on this hardware")


def _against_bf16(device: torch.device, network: nn.Module, batch_size: int) -> str:
    """Why bf16 would not be faster; empty where it is. Measured in docs/LOG.md."""
    if device.type == "cuda":  # in hardware from compute capability 8 on
        return "" if torch.cuda.get_device_capability(device) >= (8, 0) else "this GPU has no bf16"
    if not any(torch.cpu.get_capabilities().get(name) for name in NATIVE_BF16):
        return "this CPU has no bf16"
    layers = [each for each in network.modules() if any(True for _ in each.parameters(recurse=False))]
    if others := sorted({type(each).__name__ for each in layers if not isinstance(each, FASTER_IN_BF16)}):
        return f"not faster with {', '.join(others[:3])}"
    is_wide = any(isinstance(each, nn.RNNBase) or getattr(each, "out_channels", 0) >= 32 for each in layers)
    enough = 16 if is_wide else 128  # small products spend their time on being converted
    return "" if batch_size >= enough else f"faster from a batch of {enough} on"


@functools.cache  # once for each process
def keep_freed_memory() -> None:
    """Let glibc keep what a step has freed for the next one; to be called when the data is there.

    It gives large tensors back to the system at once, which zeroes and maps them anew, page by page, in every step: a
    third of the time of a small convolutional network. The peak stays what it is.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None  # of Linux's C library
    if set_option is not None:
        mmap_threshold, trim_threshold = -3, -1
        set_option(mmap_threshold, 1 << 30) or set_option(mmap_threshold, 32 << 20)  # the most that older ones take
        set_option(trim_threshold, 2**31 - 1)


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
def enough_memory(advice: str) -> Iterator[None]:
    """Turn running out of memory, on the GPU or the host, into a UserError in two lines."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        on_host = "can't allocate memory" in reason  # a plain RuntimeError of torch's
        if not (on_host or isinstance(error, (torch.OutOfMemoryError, MemoryError))):
            raise
        raise UserError(f"out of memory: {reason[:160]}\n{advice}") from error
