"""One training step: forward, backward, update. Knows tensors; knows no loop, no files, no config.

A step whose loss is NaN or infinite must change nothing. The device decides that, so the CPU never waits for the GPU.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from dltrain.runtime.devices import Runtime
from dltrain.runtime.errors import UserError, first_line

if TYPE_CHECKING:
    from torch.nn.parallel import DistributedDataParallel

OnNonfinite = Literal["stop", "skip"]
# Most output values that wait to be added to the sums. Up to this many, torch sums stacked batches as it sums each one.
MAX_PENDING_OUTPUTS = 1 << 15
Shape = tuple[int, ...]


class Task(Protocol):
    """The loss and the metrics of a task; rows of `sums` are added over batches and divided once, in `metrics`."""

    def loss(self, outputs: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss () of a batch (B, ...), with a gradient: no detach(), no_grad() here or in the model."""

    def sums(self, losses: Tensor, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return float64 sums (N, S), a row for each of N batches (N, B, ...); its first number counts the examples."""

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """Return metrics by name, a dict of floats, from added-up sums (S); the first one is `loss`."""

    def score(self, metrics: dict[str, float]) -> tuple[float, ...]:
        """Return a tuple of finite floats that chooses the best checkpoint; greater is better."""

    def mismatch(self, targets: Tensor, input_shape: Shape, output_shape: Shape, classes: int) -> str:
        """Return why data or output do not fit this task, or an empty text; shapes are without the batch dimension."""


@runtime_checkable
class OutputTask(Task, Protocol):
    """A task that may compute metrics from all outputs of a split, which no sums give."""

    @property
    def needs_outputs(self) -> bool:
        """Whether all outputs of a split are kept for `output_metrics`."""

    def output_metrics(self, outputs: Tensor, labels: Tensor) -> dict[str, float]:
        """Return metrics by name from all outputs (N, K) and labels (N,) of a split, on the CPU."""


class StepOutput(NamedTuple):
    """The loss () and outputs (B, ...) of a batch or micro-batch, with its targets; `skipped` if it made no update."""

    loss: Tensor
    outputs: Tensor
    targets: Tensor
    skipped: Tensor | bool = False


@dataclass
class TrainState:
    """Everything that training changes.

    `sums` (S,) are the task's sums since the last record, `faults` () counts the steps without an update since then.
    `pending` holds outputs of the latest steps until `accumulate_metrics` adds them to the sums, many at once.
    `proxy` is a smaller network that picks the examples to train on (proxy.py).
    `parallel` wraps the model in DDP for several ranks, `ema_weights` is the moving average of the weights (ema.py).
    `rates` () are the learning rates of the optimizer's groups, None on a CPU: see `keep_on_device`.
    `flush` computes the latest steps if they wait to be computed as one graph.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    sums: Tensor | None = None
    faults: Tensor | None = None
    proxy: "TrainState | None" = None
    parallel: "DistributedDataParallel | None" = None
    ema_weights: dict[str, Tensor] | None = None
    rates: list[Tensor] | None = None
    pending: list[StepOutput] = field(default_factory=list)
    flush: Callable[[], object] = list

    def eval_weights(self) -> dict[str, Tensor]:
        """Return the weights that are validated, tested and saved as the best: the EMA, else the model's."""
        return self.ema_weights or self.model.state_dict()


def keep_on_device(state: TrainState, device: torch.device) -> None:
    """Keep in tensors what steps read and count, so that no step waits for the device and a graph can repeat it.

    Rates only for optimizers that take tensors: as floats they would round differently, and be constants of a graph.
    """
    optimizer, known = state.optimizer, ("torch.optim.", "dltrain.optim.")
    takes_tensors = _masks_itself(optimizer) and type(optimizer).__module__.startswith(known)
    state.rates = [torch.zeros((), device=device) for _ in optimizer.param_groups if takes_tensors]


def copy_rates(state: TrainState) -> None:
    """Copy the learning rates to the device, into new tensors, each by a kernel that has it as an argument."""
    pairs = zip(state.rates or (), state.optimizer.param_groups, strict=True)
    state.rates = [torch.full_like(rate, group["lr"]) for rate, group in pairs]


class NonFiniteLoss(Exception):
    """The loss of step number `step` is NaN or infinite; the weights are those before that step."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss is not finite at step {step}")
        self.step = step


def require_result(task: Task, method: str, found: object, fits: bool) -> None:
    """Raise UserError with what the docstring of `Task` says, unless the result of a method fits."""
    if not fits:
        kind, rule, shown = type(getattr(task, "task", task)), getattr(Task, method).__doc__, first_line(repr(found))
        if isinstance(found, Tensor):
            shown = f"a tensor {tuple(found.shape)} with grad_fn={found.grad_fn}"
        raise UserError(f"task={kind.__module__}:{kind.__name__}: {method} returned {shown}\nIt must r{rule[1:]}")


def train_step(
    state: TrainState,
    inputs: Tensor,
    targets: Tensor,
    task: Task,
    runtime: Runtime,
    *,
    accumulate: int,
    clip_norm: float | None,
    on_nonfinite: OnNonfinite,
    weight: float = 1.0,
) -> list[StepOutput]:
    """Make one update from a batch, computed in `accumulate` micro-batches to save memory; return their outputs.

    `weight` is the weight of this rank's part of the batch in the mean over ranks. If the loss, or the gradient's norm
    with `clip_norm`, is not finite, weights and optimizer stay as they are, and with "skip" the buffers too.
    """
    # Batch norms update their statistics in the forward pass, before the loss is known.
    before = flattened(state.model.buffers()) if on_nonfinite == "skip" else {}
    parts: list[StepOutput] = []
    parallel, done = state.parallel, 0
    for part_inputs, part_targets in zip(*(micro_batches(it, accumulate) for it in (inputs, targets)), strict=True):
        if parallel is not None:
            done += len(part_inputs)
            parallel.require_backward_grad_sync = done == len(inputs)  # one all-reduce per step
        with runtime.autocast():
            outputs = (parallel or state.model)(part_inputs)
            loss = task.loss(outputs, part_inputs, part_targets)
        require_result(task, "loss", loss, isinstance(loss, Tensor) and loss.ndim == 0 and loss.grad_fn is not None)
        # So that the gradient is that of the mean over the batch, even if the last part is smaller.
        fraction = len(part_inputs) / len(inputs) if accumulate > 1 else 1.0
        if parallel is not None:
            parallel.module.global_loss(loss, weight * fraction).backward()
        else:
            (loss * fraction if accumulate > 1 else loss).backward()
        # A weight, or a view of one, would change with the update before its metrics are computed.
        outputs = outputs.detach() if outputs._base is None and not outputs.is_leaf else outputs.detach().clone()
        parts.append(StepOutput(loss.detach(), outputs, part_targets))
    # Not finite if any loss, or the norm of the gradient, is not.
    losses = (part.loss for part in parts)
    watched = parallel.module.mean_loss() if parallel is not None else functools.reduce(torch.add, losses)
    if clip_norm is not None:
        watched = watched + torch.nn.utils.clip_grad_norm_(state.model.parameters(), clip_norm)
    fault = count_fault(state, watched, sticky=on_nonfinite == "stop")
    update_weights(state, fault)
    clear_gradients(state.optimizer)
    if on_nonfinite == "skip":
        is_fault = torch.as_tensor(fault).bool()
        parts = [part._replace(skipped=is_fault) for part in parts]
        for kind, (after, buffers) in flattened(state.model.buffers() if fault is not False else []).items():
            copy_flat(torch.where(is_fault, before[kind][0], after), buffers)
    return parts


def flattened(tensors: Iterable[Tensor]) -> dict[torch.dtype, tuple[Tensor, list[Tensor]]]:
    """Return a copy of the numbers of tensors as one (N,) of each type, and the tensors: a few kernels on a GPU."""
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault(tensor.dtype, []).append(tensor)
    return {kind: (torch.cat([each.reshape(-1) for each in same]), same) for kind, same in kinds.items()}


def copy_flat(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Copy the numbers (N,) of tensors that were flattened back into them."""
    parts = flat.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)])


def accumulate_metrics(state: TrainState, task: Task) -> None:
    """Compute the steps that wait, and add the pending outputs to `state.sums`; call it before reading the state."""
    state.flush()
    state.sums = accumulate(state.sums, state.pending, task)
    state.pending.clear()


def accumulate(total: Tensor | None, parts: Iterable[StepOutput], task: Task) -> Tensor | None:
    """Return sums (S,) with those of some batches added one by one, so that grouping them changes no bit."""
    for _, same in itertools.groupby(parts, lambda part: (part.outputs.shape, part.targets.shape)):
        losses, outputs, targets, skipped = zip(*same, strict=True)
        rows = task.sums(_stack(losses), _stack(outputs), _stack(targets))
        fits = isinstance(rows, Tensor) and rows.ndim == 2 and len(rows) == len(losses) and rows.dtype == torch.float64
        require_result(task, "sums", rows, fits)
        if any(flag is not False for flag in skipped):
            rows.masked_fill_(_stack([torch.as_tensor(flag, device=rows.device) for flag in skipped]).unsqueeze(1), 0)
        for row in rows:
            total = row.clone() if total is None else total.add_(row)
    return total


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(tuple(tensors)) if len(tensors) > 1 else tensors[0].unsqueeze(0)


def micro_batches(batch: Tensor, accumulate: int) -> tuple[Tensor, ...]:
    """Split a batch (B, ...) into at most `accumulate` equal parts, of which the last may be smaller."""
    return batch.split(-(-len(batch) // accumulate)) if accumulate > 1 else (batch,)


def clear_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Set gradients to None as zero_grad does, without its profiler hooks: 1 % of a small network's step."""
    if type(optimizer).zero_grad is not torch.optim.Optimizer.zero_grad:
        optimizer.zero_grad()
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def count_fault(state: TrainState, watched: Tensor, *, sticky: bool) -> Tensor | bool:
    """Return 1, counted in `state.faults`, if `watched` is not finite, else 0; if sticky, also after any such step."""
    if watched.is_cpu and state.rates is None:  # reading it needs no device sync
        if is_fault := not math.isfinite(watched.item()) or (sticky and bool(state.faults)):
            state.faults = torch.ones(()) if state.faults is None else state.faults + 1
        return is_fault
    if state.faults is None:
        state.faults = torch.zeros((), device=watched.device)
    # NaN (never equal to 0) if `watched` is not finite: three kernels, where isfinite takes four and its sum two more.
    suspect = torch.add(state.faults, watched, alpha=0) if sticky else watched * 0
    fault = torch.ne(suspect, 0, out=torch.empty_like(state.faults))
    state.faults.add_(fault)
    return fault


def _masks_itself(optimizer: torch.optim.Optimizer) -> bool:
    """True if the optimizer reads on the device whether it must change nothing, as fused kernels do."""
    return getattr(optimizer, "_step_supports_amp_scaling", False)


def update_weights(state: TrainState, fault: Tensor | bool) -> None:
    """Make a step of the optimizer, unless `fault` is 1."""
    optimizer = state.optimizer
    if not isinstance(fault, Tensor) or not _masks_itself(optimizer):
        if not fault:  # on the GPU this waits for it at each step
            optimizer.step()
        return
    if isinstance(optimizer, torch.optim.SGD) and not optimizer.state:
        # Masked in its first step, the kernel would leave new momentum buffers uninitialised.
        for group in optimizer.param_groups:
            for parameter in group["params"] if group["momentum"] else []:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    optimizer.found_inf = fault  # type: ignore[attr-defined]  # as torch.amp.GradScaler sets it
    groups = optimizer.param_groups if state.rates else []
    numbers = [group["lr"] for group in groups]
    for group, rate in zip(groups, state.rates or [], strict=False):
        group["lr"] = rate
        if "capturable" in group:  # Adam requires it in a graph, and warns of it elsewhere
            group["capturable"] = rate.is_cuda and torch.cuda.is_current_stream_capturing()
    optimizer.step()
    for group, number in zip(groups, numbers, strict=True):
        group["lr"] = number  # as checkpoints have it


def interval_metrics(state: TrainState, task: Task, on_nonfinite: OnNonfinite) -> dict[str, float]:
    """Return the metrics since the last record: the only read of the GPU in an interval. Raises NonFiniteLoss."""
    assert state.sums is not None
    fault_count = state.sums.new_zeros(1) if state.faults is None else state.faults.double().view(1)
    *sums, faults = torch.cat([state.sums, fault_count]).tolist()
    if faults and on_nonfinite == "stop":
        raise NonFiniteLoss(state.step - int(faults) + 1)
    if state.rates is None:
        state.sums, state.faults = None, None
    else:  # a graph writes to these
        torch._foreach_zero_([each for each in (state.sums, state.faults) if each is not None])
    # If every step was skipped, there are no examples to divide by.
    metrics = task.metrics(sums) if sums[0] else {"loss": math.nan}
    fits = isinstance(metrics, dict) and "loss" in metrics and {*map(type, metrics.values())} <= {int, float}
    require_result(task, "metrics", metrics, fits)
    return metrics | ({"skipped_steps": int(faults)} if faults else {})


def require_finite(state: TrainState, on_nonfinite: OnNonfinite) -> None:
    """Raise NonFiniteLoss if a step since the last record, or a weight, is not finite; call it before saving."""
    faults = 0 if state.faults is None or on_nonfinite == "skip" else int(state.faults)
    finite = [torch.isfinite(weight).all() for weight in state.model.parameters()] if state.step else []
    if faults or (finite and not torch.stack(finite).all()):  # read at once
        raise NonFiniteLoss(state.step - max(faults, 1) + 1)
