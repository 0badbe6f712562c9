"""One step of training: forward, backward, update. Knows tensors; knows no loop, no files, no config.

A step whose loss is NaN or infinite must change nothing. That is decided on the device: nobody waits for a GPU to tell.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor, nn

from dltrain.runtime import Runtime

if TYPE_CHECKING:
    from torch.nn.parallel import DistributedDataParallel

OnNonfinite = Literal["stop", "skip"]
Shape = tuple[int, ...]


class Task(Protocol):
    """Loss and figures of a task; `sums` are added over batches and divided once, in `metrics`."""

    def loss(self, outputs: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of a batch, to be minimised."""

    def sums(self, loss: Tensor, outputs: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """Float64 sums (S,) over a batch on its device; the first is the number of examples."""

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """Figures from added-up sums; the first is `loss`."""

    def score(self, metrics: dict[str, float]) -> tuple[float, ...]:
        """Greater is better: what chooses the best checkpoint."""

    def mismatch(self, targets: Tensor, input_shape: Shape, output_shape: Shape, classes: int) -> str:
        """Why the data or the network's output (without the batch) do not fit this task; empty if they do."""


@dataclass
class State:
    """All that training changes; `sums` are the figures since the last record, `faults` the steps without an update.

    `parallel` computes the outputs where several processes train, see distributed.py; `averages` are those of the
    weights, see averages.py.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    sums: Tensor | None = None
    faults: Tensor | None = None
    parallel: "DistributedDataParallel | None" = None
    averages: dict[str, Tensor] | None = None

    def evaluated(self) -> dict[str, Tensor]:
        """The weights that are validated, tested and kept as the best."""
        return self.averages or self.model.state_dict()


class Diverged(Exception):
    """The loss of `step` was NaN or infinite; the weights are still those before it."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss is not finite at step {step}")
        self.step = step


def train_step(
    state: State,
    inputs: Tensor,
    targets: Tensor,
    task: Task,
    runtime: Runtime,
    *,
    accumulate: int,
    clip_norm: float | None,
    on_nonfinite: OnNonfinite,
    weight: float = 1.0,
) -> Tensor:
    """One update on a batch, in `accumulate` parts that need less memory; returns the task's sums on the device.

    Of several processes each has a part of the batch, which counts `weight` in the mean over all of them.
    """
    # Norms take in what a batch does to them in the forward pass, before anything can be known of its loss.
    buffers = [buffer.clone() for buffer in state.model.buffers()] if on_nonfinite == "skip" else []
    total: Tensor | None = None
    watched: Tensor | None = None  # not finite if any loss, or the norm of the gradient, is not
    parallel, done = state.parallel, 0
    for part_inputs, part_targets in zip(parts_of(inputs, accumulate), parts_of(targets, accumulate), strict=True):
        done += len(part_inputs)
        if parallel is not None:
            parallel.require_backward_grad_sync = done == len(inputs)  # gradients are exchanged once
        with runtime.autocast():
            outputs = (parallel or state.model)(part_inputs)
            loss = task.loss(outputs, part_inputs, part_targets)
        # The mean over the whole batch, also where the last part is smaller.
        share = len(part_inputs) / len(inputs)
        if parallel is not None:
            parallel.module.known_to_all(loss, weight * share).backward()
        else:
            (loss * share if accumulate > 1 else loss).backward()
        sums = task.sums(loss, outputs, part_inputs, part_targets)
        total = sums if total is None else total + sums
        watched = loss.detach() if watched is None else watched + loss.detach()
    assert total is not None and watched is not None
    if parallel is not None:
        watched = parallel.module.mean_loss()
    if clip_norm is not None:
        watched = watched + torch.nn.utils.clip_grad_norm_(state.model.parameters(), clip_norm)
    fault = _count_fault(state, watched, sticky=on_nonfinite == "stop")
    _update(state.optimizer, fault)
    _clear_gradients(state.optimizer)
    if on_nonfinite == "skip":
        is_fault = fault.bool()
        total.masked_fill_(is_fault, 0)
        for buffer, before in zip(state.model.buffers(), buffers, strict=True):
            buffer.copy_(torch.where(is_fault, before, buffer))
    return total


def parts_of(batch: Tensor, accumulate: int) -> tuple[Tensor, ...]:
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


def _count_fault(state: State, watched: Tensor, *, sticky: bool) -> Tensor:
    """1 for a step that must change nothing, else 0; counted in `state.faults`. Sticky: after one fault all are."""
    if state.faults is None:
        state.faults = torch.zeros((), device=watched.device)
    # NaN where what is watched is not finite: three operations where isfinite takes four and its sum two more.
    suspect = torch.add(state.faults, watched, alpha=0) if sticky else watched * 0
    fault = torch.ne(suspect, 0, out=torch.empty_like(state.faults))
    state.faults.add_(fault)
    return fault


def _update(optimizer: torch.optim.Optimizer, fault: Tensor) -> None:
    """A step of the optimizer, unless `fault` is 1."""
    # Of SGD's first step a masked kernel would leave unwritten memory as momentum.
    begins = not optimizer.state and any(group.get("momentum") for group in optimizer.param_groups)
    if getattr(optimizer, "_step_supports_amp_scaling", False) and not begins:
        # Where torch.amp.GradScaler would put it: fused kernels read it on the device and leave everything as it is.
        optimizer.found_inf = fault  # type: ignore[attr-defined]
        optimizer.step()
    elif not fault:  # others know no such thing: on a GPU a host read for each step
        optimizer.step()


def interval_metrics(state: State, task: Task, on_nonfinite: OnNonfinite) -> dict[str, float]:
    """Figures since the last record, by the one host read of the interval. Raises Diverged."""
    assert state.sums is not None
    assert state.faults is not None
    *sums, faults = torch.cat([state.sums, state.faults.double().view(1)]).tolist()
    if faults and on_nonfinite == "stop":
        raise Diverged(state.step - int(faults) + 1)
    state.sums, state.faults = None, None
    skipped = {"skipped_steps": int(faults)} if faults else {}
    # Where every step was skipped there is nothing to divide by.
    return (task.metrics(sums) if sums[0] else {"loss": math.nan}) | skipped


def require_finite(state: State, on_nonfinite: OnNonfinite) -> None:
    """Raise Diverged where a step since the last record, or a weight, is not finite; for before a checkpoint."""
    faults = 0 if state.faults is None or on_nonfinite == "skip" else int(state.faults)
    if faults or (state.step and not all(bool(torch.isfinite(each).all()) for each in state.model.parameters())):
        raise Diverged(state.step - max(faults, 1) + 1)
