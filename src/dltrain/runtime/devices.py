"""Choose device, precision and threads, seed and save random generators. Done once, before the first tensor."""

import contextlib
import logging
import os
import random
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy
import torch
from annotated_types import Interval
from torch import nn

from dltrain.runtime import graphs, torchrun
from dltrain.runtime import threads as thread_rule
from dltrain.runtime.errors import DeviceError, UserError, first_line

log = logging.getLogger(__name__)

Generators = dict[str, Any]  # states of random generators by name

# Plain RuntimeErrors that mean out of memory: of the host, the CUDA driver, CUDA libraries.
OUT_OF_MEMORY = "can't allocate memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INIT"
NATIVE_BF16 = ("avx512_bf16", "amx_bf16", "bf16")  # of x86 and ARM
FASTER_IN_BF16 = (nn.Linear, nn.Conv2d, nn.RNNBase, nn.BatchNorm1d, nn.BatchNorm2d)
GPU_PRODUCTS = 1 << 28  # of a forward pass; with fewer, launches of conversions cost more than bf16 saves (an estimate)


@dataclass(frozen=True)
class Runtime:
    """Where to compute and how. `precision` is auto until the network is known; `processes` train together.

    `graph` makes what records steps, see graphs.py; None if they are not recorded.
    """

    device: torch.device
    precision: str
    threads: int
    reason: str = ""  # for the precision that auto was resolved to
    auto_threads: bool = False  # a rule chooses the threads when the network is known
    threads_reason: str = ""  # for the number that it chose
    processes: torchrun.Processes = torchrun.SINGLE_PROCESS
    graph: Callable[[], graphs.Graph] | None = None
    compile: bool = False  # the training step, see compiled_step.py

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the mixed-precision context of a forward pass. bf16 has the range of fp32: no loss scaling needed."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def describe(self) -> str:
        """Describe device, precision and its reason, threads and processes in one line."""
        precision = self.precision + (f" (auto: {self.reason})" if self.reason else "")
        processes = f", {self.processes.world_size} processes" if self.processes.world_size > 1 else ""
        if self.device.type == "cuda":
            graph = ", recorded steps" if self.graph else ""
            return f"{torch.cuda.get_device_name(self.device)} (cuda), {precision}{processes}{graph}"
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        threads += f" (auto: {self.threads_reason})" if self.threads_reason else ""
        return f"cpu, {threads}, {precision}{processes}{', compiled' if self.compile else ''}"


def device(
    *,
    name: Literal["auto", "cpu", "cuda"],
    precision: Literal["auto", "fp32", "tf32", "bf16"] | None,
    threads: Annotated[int, Interval(ge=1, le=1024)] | None,
    deterministic: bool,
    graph: bool | Literal["auto"] = "auto",
    compile: bool = False,
) -> Runtime:
    """Choose where to compute, and set torch's threads and determinism for this process.

    Args:
        name: `auto` takes a CUDA GPU if there is one, else the CPU
        precision: `auto` is bf16 for classification on hardware that has it, for networks that it speeds up; `tf32` has
            the range of fp32 and the digits of fp16, on a GPU; null is fp32 on a CPU and `auto` on a GPU
        threads: CPU threads; null is a fixed rule: one for small steps, more for more work, at most one for each core
        deterministic: refuse operations that are not deterministic on a GPU
        graph: record the steps of training and validation on a GPU and repeat them as a whole, which saves time in
            small networks; `auto` is false until this has been measured
        compile: compile the training step on a CPU, which takes up to a minute and makes steps of mlp and attention
            faster; needs a C++ compiler

    Raises DeviceError if CUDA is requested but not available.
    """
    chosen = _choose(name)
    use_cuda = chosen.type == "cuda"
    if precision == "tf32" and not (use_cuda and torch.cuda.get_device_capability(chosen) >= (8, 0)):
        raise DeviceError(
            "device.precision=tf32: needs a GPU of compute capability 8.0 or higher. Set device.precision=fp32 or bf16"
        )
    if graph is True and not use_cuda:
        raise DeviceError("device.graph=true: needs a GPU. Set device.graph=auto")
    if chosen.index is not None:
        torch.cuda.set_device(chosen)
    if use_cuda or deterministic:  # read when cuBLAS starts, which another job of this process may do
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if use_cuda:  # by the older of two interfaces: once the newer one is used, reading the older raises an error
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    if deterministic != torch.are_deterministic_algorithms_enabled():  # setting it imports a compiler: two seconds
        torch.use_deterministic_algorithms(deterministic)
    if threads is not None:
        torch.set_num_threads(threads)
    recorded = graphs.CudaGraph if graph is True or (graph == "auto" and use_cuda and graphs.BY_DEFAULT) else None
    precision = precision or ("auto" if use_cuda else "fp32")
    return Runtime(
        chosen, precision, torch.get_num_threads(), auto_threads=threads is None, graph=recorded, compile=compile
    )


def _choose(name: str) -> torch.device:
    """Return the CPU or the GPU of this process. Raises DeviceError if `cuda` is not usable."""
    gpu, is_there = torch.device("cuda"), name != "cpu" and torch.cuda.is_available()
    if is_there and torchrun.processes().world_size > 1:  # one GPU per process
        gpu = torch.device("cuda", _own_gpu(name, torchrun.processes().local_rank))
    is_built = torch.version.cuda or torch.version.hip
    why = "no usable GPU was found" if is_built else "this PyTorch was built without CUDA or ROCm"
    if is_there and not (why := _missing_code(gpu)):
        return gpu
    if name == "cuda":
        raise DeviceError(f"device=cuda: {why}. Set device=cpu, or device=auto to use what is available")
    if is_there:
        log.warning("computing on the CPU: %s", why)
    return torch.device("cpu")


def _own_gpu(name: str, local_rank: int) -> int:
    """Return the index of the GPU of a process on this machine. Raises DeviceError if there are too few."""
    count = torch.cuda.device_count()
    if count == 1 and not {*torchrun.VISIBLE_GPUS, "SLURM_JOB_ID"}.isdisjoint(os.environ):
        return 0  # each process sees only its own, as with srun --gpus-per-task=1
    if local_rank >= count:
        problem = f"local rank {local_rank} has no GPU, this machine has {count} GPU{'s' * (count != 1)}"
        raise DeviceError(f"device={name}: {problem}. Start fewer processes, or set device=cpu")
    return local_rank


def _missing_code(gpu: torch.device) -> str:
    """Return why this PyTorch cannot compute on a GPU; empty if it can. Names of AMD's architectures are not read."""
    archs = re.findall(r"(sm|compute)_(\d+)(\d)", " ".join(torch.cuda.get_arch_list()))
    own = torch.cuda.get_device_capability(gpu)
    # sm_75 is code for 7.5 up to 7.9; compute_75 is compiled when it is loaded, for all later ones.
    if not archs or any((int(a), int(b)) <= own and (kind == "compute" or int(a) == own[0]) for kind, a, b in archs):
        return ""
    known = ", ".join(f"{major}.{minor}" for _, major, minor in archs)
    return f"{torch.cuda.get_device_name(gpu)} is of capability {own[0]}.{own[1]}, this PyTorch has code for {known}"


def restored_device(node: dict[str, Any], before: dict[str, Any], typed: Collection[str]) -> Runtime:
    """Call `device` with the former threads and precision unless the user set them or it is another kind of device."""
    kind = _choose(node["name"]).type
    names = ("precision", "threads") if before.get("device", "cpu") == kind else ()
    kept = {key: before[key] for key in names if key in before and not {"device", f"device.{key}"} & set(typed)}
    return device(**(node | kept | {"name": kind}))


def resolve_precision(runtime: Runtime, network: nn.Module, batch_size: int, task: str) -> Runtime:
    """Resolve precision `auto`. A rule, so that a command always gets the same precision on the same machine.

    Raises DeviceError for bf16 on a CPU that cannot compute the network in it.
    """
    if runtime.precision == "bf16" and lacks_bf16(runtime.device, network):
        raise DeviceError("device.precision=bf16: this CPU cannot compute an LSTM in bf16. Set device.precision=fp32")
    if runtime.precision != "auto":
        return runtime
    if reason := _reason_against_bf16(runtime.device, network, batch_size, task):
        return replace(runtime, precision="fp32", reason=reason)
    return replace(runtime, precision="bf16", reason="faster for this network on this hardware")


def resolve_threads(runtime: Runtime, network: nn.Module, shape: Sequence[int], batch_size: int) -> Runtime:
    """Set the number of threads by a rule, so that a command always gets the same number on the same machine."""
    if runtime.device.type != "cpu" or not runtime.auto_threads:
        return runtime
    most, flops = thread_rule.available(), thread_rule.step_flops(network, shape, batch_size)
    number = thread_rule.choose(flops, most)
    torch.set_num_threads(number)
    reason = f"about {flops / 1e6:,.0f} MFLOP a step, {most} core{'s' * (most > 1)}"
    return replace(runtime, threads=number, threads_reason=reason)


def lacks_bf16(device: torch.device, network: nn.Module) -> bool:
    """True for an LSTM on a CPU without AVX-512: oneDNN, which computes it there, has none in bf16."""
    # One with projections is torch's own.
    has_lstm = any(isinstance(module, nn.LSTM) and not module.proj_size for module in network.modules())
    if device.type != "cpu" or not has_lstm:
        return False
    return torch.backends.mkldnn.is_available() and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _reason_against_bf16(device: torch.device, network: nn.Module, batch_size: int, task: str) -> str:
    """Return why bf16 would do harm or not be faster, else an empty string. Measured in docs/LOG.md."""
    if task != "classification":  # bf16 rounds by more than the errors that remain
        return f"{task} needs more digits than bf16 has"
    layers = [module for module in network.modules() if any(True for _ in module.parameters(recurse=False))]
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) < (8, 0):  # native from there on
            return "this GPU has no bf16"
        # Filters are used at each place, weights of recurrent layers and transformers at each row: roughly so often.
        is_plain = all(isinstance(layer, FASTER_IN_BF16) and not isinstance(layer, nn.RNNBase) for layer in layers)
        uses = {2: 1 if is_plain else 16, 4: 256}
        enough = GPU_PRODUCTS // max(1, sum(part.numel() * uses.get(part.ndim, 0) for part in network.parameters()))
        return "" if batch_size >= enough else f"only faster from batch size {enough} on"
    cpu: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # missing in the oldest supported torch
    if not torch.backends.mkldnn.is_available() or not any(cpu.get(name) for name in NATIVE_BF16):
        return "this CPU has no bf16"
    if "Intel" in cpu.get("cpu_name", "") and not cpu.get("amx_bf16"):
        return "slower than fp32 on Intel CPUs without AMX"
    others = sorted({type(layer).__name__ for layer in layers if not isinstance(layer, FASTER_IN_BF16)})
    if others and not getattr(network, "faster_in_bf16", False):
        return f"not faster with {', '.join(others[:3])}"
    is_wide = any(isinstance(layer, nn.RNNBase) or getattr(layer, "out_channels", 0) >= 32 for layer in layers)
    enough = 16 if is_wide else 128  # small matrix products cost less than their conversion
    return "" if batch_size >= enough else f"only faster from batch size {enough} on"


def seed_everything(seed: int, *, each_step: bool = False) -> None:
    """Seed every random generator that a model or user code may draw from; at each step those of devices in use."""
    if each_step:  # to queue the seeds of other devices takes a hundred times as long
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(seed)
    else:
        torch.manual_seed(seed)  # CUDA devices too
    random.seed(seed)
    numpy.random.seed(seed % 2**32)


def generator_states() -> Generators:
    """Return the states of the generators that `seed_everything` seeds, as tensors and plain data for a checkpoint."""
    version, integers, gauss = random.getstate()
    name, key, *rest = numpy.random.get_state(legacy=True)
    states: Generators = {
        "cpu": torch.get_rng_state(),
        "python": [version, torch.tensor(integers), gauss],
        "numpy": [name, torch.from_numpy(numpy.asarray(key, numpy.int64)), *rest],
    }
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_generators(states: Generators) -> None:
    """Restore saved generator states; a CUDA state only if CUDA is available."""
    torch.set_rng_state(states["cpu"])
    if "python" in states:
        version, integers, gauss = states["python"]
        random.setstate((version, tuple(integers.tolist()), gauss))
    if "numpy" in states:
        name, key, *rest = states["numpy"]
        if key.dtype != torch.int64 or not 0 <= rest[0] <= 624:  # NumPy would read out of bounds
            raise ValueError("invalid state of the NumPy generator")
        numpy.random.set_state((name, key.numpy().astype(numpy.uint32), *rest))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


@contextlib.contextmanager
def preserved_state(network: nn.Module) -> Iterator[None]:
    """Undo the effects of trial passes: restore generators, buffers and training mode, drop gradients."""
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
            setattr(module, name, buffer)  # a pass may have replaced it
            # Only if it changed: an expanded buffer cannot be written to. Tensor versions miss batch norm's updates.
            if buffer.layout is not torch.strided or not torch.equal(buffer, before):
                with torch.no_grad():
                    buffer.copy_(before)


@contextlib.contextmanager
def memory_errors(advice: str) -> Iterator[None]:
    """Convert running out of memory, on the GPU or the host, into a UserError of two lines."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        is_plain = any(text in str(error) for text in OUT_OF_MEMORY)
        if not (is_plain or isinstance(error, (torch.OutOfMemoryError, MemoryError))):
            raise
        raise UserError(f"out of memory: {first_line(error)}\n{advice}") from error
