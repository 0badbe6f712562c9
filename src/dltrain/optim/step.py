"""One step of training: forward, backward, update. Knows tensors; knows no loop, no files, no config.

A step whose loss is NaN or infinite must change nothing. That is decided on the device: nobody waits for a GPU to tell.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from dltrain.runtime.devices import Runtime

if TYPE_CHECKING:
    from torch.nn.parallel import DistributedDataParallel

OnNonfinite = Literal["stop", "skip"]
# Numbers in outputs that wait for their figures. Of so few torch adds up each batch in the same order, however many.
MAX_PENDING_OUTPUTS = 1 << 15
Shape = tuple[int, ...]


class Task(Protocol):
    """Loss and figures of a task; rows of `sums` are added over batches and divided once, in `metrics`."""

    def loss(self, outputs: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of a batch, to be minimised."""

    def sums(self, losses: Tensor, outputs: Tensor, targets: Tensor) -> Tensor:
        """Float64 sums (N, S) over each of N batches (N, B, ...) on their device; the first is a batch's examples."""

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """Figures from added-up sums; the first is `loss`."""

    def score(self, metrics: dict[str, float]) -> tuple[float, ...]:
        """Greater is better: what chooses the best checkpoint."""

    def mismatch(self, targets: Tensor, input_shape: Shape, output_shape: Shape, classes: int) -> str:
        """Why the data or the network's output (without the batch) do not fit this task; empty if they do."""


class StepOutput(NamedTuple):
    """What a forward pass has found for a batch, or a part of one; a batch without an update is `skipped`."""

    loss: Tensor
    outputs: Tensor
    targets: Tensor
    skipped: Tensor | bool = False


@dataclass
class TrainState:
    """All that training changes; `sums` are the figures since the last record, `faults` the steps without an update.

    `pending` holds the outputs of the latest steps until `accumulate_metrics` adds them to the sums, many at once.
    `parallel` wraps the model where several processes train, see distributed.py; `ema_weights` is the moving average of
    the weights, see ema.py.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    sums: Tensor | None = None
    faults: Tensor | None = None
    parallel: "DistributedDataParallel | None" = None
    ema_weights: dict[str, Tensor] | None = None
    pending: list[StepOutput] = field(default_factory=list)

    def eval_weights(self) -> dict[str, Tensor]:
        """The weights that are validated, tested and kept as the best."""
        return self.ema_weights or self.model.state_dict()


class NonFiniteLoss(Exception):
    """The loss of `step` was NaN or infinite; the weights are still those before it."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss is not finite at step {step}")
        self.step = step


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
    """One update on a batch, in `accumulate` parts that need less memory; returns what they have found.

    Of several processes each has a part of the batch, which counts `weight` in the mean over all of them.
    """
    # Norms take in what a batch does to them in the forward pass, before anything can be known of its loss.
    buffers = [buffer.clone() for buffer in state.model.buffers()] if on_nonfinite == "skip" else []
    found: list[StepOutput] = []
    watched: Tensor | None = None  # not finite if any loss, or the norm of the gradient, is not
    parallel, done = state.parallel, 0
    for part_inputs, part_targets in zip(
        micro_batches(inputs, accumulate), micro_batches(targets, accumulate), strict=True
    ):
        if parallel is not None:
            done += len(part_inputs)
            parallel.require_backward_grad_sync = done == len(inputs)  # gradients are exchanged once
        with runtime.autocast():
            outputs = (parallel or state.model)(part_inputs)
            loss = task.loss(outputs, part_inputs, part_targets)
        # The mean over the whole batch, also where the last part is smaller.
        share = len(part_inputs) / len(inputs) if accumulate > 1 else 1.0
        if parallel is not None:
            parallel.module.global_loss(loss, weight * share).backward()
        else:
            (loss * share if accumulate > 1 else loss).backward()
        # A view, or a weight itself, may change with the update before anybody looks at it.
        is_own = outputs._base is None and not outputs.is_leaf
        found.append(StepOutput(loss.detach(), outputs.detach() if is_own else outputs.detach().clone(), part_targets))
        watched = found[-1].loss if watched is None else watched + found[-1].loss
    assert watched is not None
    if parallel is not None:
        watched = parallel.module.mean_loss()
    if clip_norm is not None:
        watched = watched + torch.nn.utils.clip_grad_norm_(state.model.parameters(), clip_norm)
    fault = _count_fault(state, watched, sticky=on_nonfinite == "stop")
    _update(state.optimizer, fault)
    _clear_gradients(state.optimizer)
    if on_nonfinite == "skip":
        is_fault = torch.as_tensor(fault).bool()
        found = [part._replace(skipped=is_fault) for part in found]
        for buffer, before in zip(state.model.buffers(), buffers, strict=True):
            buffer.copy_(torch.where(is_fault, before, buffer))
    return found


def accumulate_metrics(state: TrainState, task: Task) -> None:
    """Add the latest steps to `state.sums`; to be done before anybody looks at these."""
    state.sums = accumulate(state.sums, state.pending, task)
    state.pending.clear()


def accumulate(total: Tensor | None, found: Iterable[StepOutput], task: Task) -> Tensor | None:
    """A task's sums (S,) with those of some batches: in their order, so to the bit the same however many there are."""
    for _, same in itertools.groupby(found, lambda it: (it.outputs.shape, it.targets.shape)):
        losses, outputs, targets, skipped = zip(*same, strict=True)
        rows = task.sums(_stack(losses), _stack(outputs), _stack(targets))
        if any(it is not False for it in skipped):
            rows.masked_fill_(_stack([torch.as_tensor(it, device=rows.device) for it in skipped]).unsqueeze(1), 0)
        for row in rows:
            total = row.clone() if total is None else total + row
    return total


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(tuple(tensors)) if len(tensors) > 1 else tensors[0].unsqueeze(0)


def micro_batches(batch: Tensor, accumulate: int) -> tuple[Tensor, ...]:
    """A batch in equal parts, the last of which may be smaller."""
    return batch.split(-(-len(batch) // accumulate)) if accumulate > 1 else (batch,)


def _clear_gradients(optimizer: torch.optim.Optimizer) -> None:
    """zero_grad, without what it tells a profiler: a hundredth of a small network's step."""
    if type(optimizer).zero_grad is not torch.optim.Optimizer.zero_grad:
        optimizer.zero_grad()
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def _count_fault(state: TrainState, watched: Tensor, *, sticky: bool) -> Tensor | bool:
    """1 for a step that must change nothing, else 0; counted in `state.faults`. Sticky: after one fault all are."""
    if watched.is_cpu:  # reading it needs no device sync
        is_fault = not math.isfinite(watched.item()) or (sticky and bool(state.faults))
        if is_fault:
            state.faults = torch.ones(()) if state.faults is None else state.faults + 1
        return is_fault
    if state.faults is None:
        state.faults = torch.zeros((), device=watched.device)
    # NaN where what is watched is not finite: three operations where isfinite takes four and its sum two more.
    suspect = torch.add(state.faults, watched, alpha=0) if sticky else watched * 0
    fault = torch.ne(suspect, 0, out=torch.empty_like(state.faults))
    state.faults.add_(fault)
    return fault


def _update(optimizer: torch.optim.Optimizer, fault: Tensor | bool) -> None:
    """A step of the optimizer, unless `fault` is 1."""
    if fault is False:
        optimizer.step()
        return
    # Of SGD's first step a masked kernel would leave unwritten memory as momentum.
    begins = not optimizer.state and any(group.get("momentum") for group in optimizer.param_groups)
    if isinstance(fault, Tensor) and getattr(optimizer, "_step_supports_amp_scaling", False) and not begins:
        # Where torch.amp.GradScaler would put it: fused kernels read it on the device and leave everything as it is.
        optimizer.found_inf = fault  # type: ignore[attr-defined]
        optimizer.step()
    elif not fault:  # others know no such thing: on a GPU a host read for each step
        optimizer.step()


def interval_metrics(state: TrainState, task: Task, on_nonfinite: OnNonfinite) -> dict[str, float]:
    """Figures since the last record, by the one host read of the interval. Raises Diverged."""
    assert state.sums is not None
    counted = state.sums.new_zeros(1) if state.faults is None else state.faults.double().view(1)
    *sums, faults = torch.cat([state.sums, counted]).tolist()
    if faults and on_nonfinite == "stop":
        raise NonFiniteLoss(state.step - int(faults) + 1)
    state.sums, state.faults = None, None
    skipped = {"skipped_steps": int(faults)} if faults else {}
    # Where every step was skipped there is nothing to divide by.
    return (task.metrics(sums) if sums[0] else {"loss": math.nan}) | skipped


def require_finite(state: TrainState, on_nonfinite: OnNonfinite) -> None:
    """Raise Diverged where a step since the last record, or a weight, is not finite; for before a checkpoint."""
    faults = 0 if state.faults is None or on_nonfinite == "skip" else int(state.faults)
    if faults or (state.step and not all(bool(torch.isfinite(each).all()) for each in state.model.parameters())):
        raise NonFiniteLoss(state.step - max(faults, 1) + 1)
