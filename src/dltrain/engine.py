"""The loop: tensors in, records out. Knows no files, no console, no config.

`fit` is a generator. It yields after every chunk of work (one step, with the validation that follows the last step of
an epoch), so that the caller's `for` body takes the place of callbacks: it logs, saves, and stops by `break`. Between
two chunks `State` is all there is to save.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from dltrain.runtime import Runtime

Schedule = Callable[[int, int], float]
OnNonfinite = Literal["stop", "skip"]
Shape = tuple[int, ...]


class Batches(Protocol):
    """Batches as a pure function of the epoch: nothing to save, nothing to lose."""

    def __len__(self) -> int:
        """Steps in an epoch."""

    def epoch(self, epoch: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs (B, C, H, W) and targets (B, ...) of training, from step `first` of the epoch on."""

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The same without shuffling and augmentation, for evaluation."""


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
    """All that training changes; `sums` are the figures since the last record, `faults` the steps without an update."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    sums: Tensor | None = None
    faults: Tensor | None = None


class Diverged(Exception):
    """The loss of `step` was NaN or infinite; the weights are still those before it."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss is not finite at step {step}")
        self.step = step


@dataclass(frozen=True)
class Record:
    """What one interval of training or one evaluation found; `seconds` leaves out everything the caller did."""

    split: str
    step: int
    epoch: float
    values: dict[str, float]
    examples: int = field(default=0, compare=False)
    seconds: float = field(default=0.0, compare=False)


def fit(
    state: State,
    train: Batches,
    val: Batches | None,
    task: Task,
    schedule: Schedule,
    runtime: Runtime,
    *,
    epochs: int,
    log_every: int,
    accumulate: int,
    clip_norm: float | None,
    on_nonfinite: OnNonfinite,
) -> Iterator[list[Record]]:
    """Train `state` in place up to `epochs`; yield the records of each chunk, mostly none.

    A step whose loss is NaN or infinite makes no update. With `stop` none after it does either, and Diverged is raised
    at the end of the interval; with `skip` the record tells how many there were.
    """
    steps = len(train)
    total = steps * epochs
    update = partial(train_step, accumulate=accumulate, clip_norm=clip_norm, on_nonfinite=on_nonfinite)
    seconds, examples = 0.0, 0
    while state.step < total:
        epoch, first = divmod(state.step, steps)
        state.model.train()
        started = perf_counter()
        for inputs, targets in train.epoch(epoch, first):
            lr = set_lr(state.optimizer, schedule(state.step, total))
            sums = update(state, inputs, targets, task, runtime)
            state.sums = sums if state.sums is None else state.sums.add_(sums)
            state.step += 1
            examples += len(inputs)
            records = []
            epoch_ends = state.step % steps == 0
            if epoch_ends or state.step % log_every == 0:
                metrics = interval_metrics(state, task, on_nonfinite)
                seconds += perf_counter() - started
                values = metrics | {"lr": lr, "examples_per_second": examples / seconds}
                records.append(Record("train", state.step, state.step / steps, values, examples, seconds))
                seconds, examples = 0.0, 0
                started = perf_counter()
            if epoch_ends and val is not None:
                metrics = evaluate(state.model, val, task, runtime)
                records.append(Record("val", state.step, state.step / steps, metrics))
                started = perf_counter()
            seconds += perf_counter() - started
            yield records
            started = perf_counter()


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
) -> Tensor:
    """One update on a batch, in `accumulate` parts that need less memory; returns the task's sums on the device."""
    # Norms take in what a batch does to them in the forward pass, before anything can be known of its loss.
    buffers = [buffer.clone() for buffer in state.model.buffers()] if on_nonfinite == "skip" else []
    total: Tensor | None = None
    watched: Tensor | None = None  # not finite if any loss, or the norm of the gradient, is not
    for part_inputs, part_targets in zip(parts_of(inputs, accumulate), parts_of(targets, accumulate), strict=True):
        with runtime.autocast():
            outputs = state.model(part_inputs)
            loss = task.loss(outputs, part_inputs, part_targets)
        # The mean over the whole batch, also where the last part is smaller.
        (loss * (len(part_inputs) / len(inputs)) if accumulate > 1 else loss).backward()
        sums = task.sums(loss, outputs, part_inputs, part_targets)
        total = sums if total is None else total + sums
        watched = loss.detach() if watched is None else watched + loss.detach()
    assert total is not None
    assert watched is not None
    if clip_norm is not None:
        watched = watched + torch.nn.utils.clip_grad_norm_(state.model.parameters(), clip_norm)
    fault = torch.isfinite(watched).logical_not_().float()  # 1 for a step that must change nothing
    if on_nonfinite == "stop" and state.faults is not None:
        fault = torch.maximum(fault, state.faults.clamp(max=1))
    state.faults = fault if state.faults is None else state.faults + fault
    _update(state.optimizer, fault)
    state.optimizer.zero_grad()
    if on_nonfinite == "skip":
        is_fault = fault.bool()
        total.masked_fill_(is_fault, 0)
        for buffer, before in zip(state.model.buffers(), buffers, strict=True):
            buffer.copy_(torch.where(is_fault, before, buffer))
    return total


def parts_of(batch: Tensor, accumulate: int) -> tuple[Tensor, ...]:
    """A batch in equal parts, the last of which may be smaller."""
    return batch.split(-(-len(batch) // accumulate))


def _update(optimizer: torch.optim.Optimizer, fault: Tensor) -> None:
    """A step of the optimizer, unless `fault` is 1."""
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        # Where torch.amp.GradScaler would put it: fused kernels read it on the device and leave everything as it is.
        optimizer.found_inf = fault  # type: ignore[attr-defined]
        optimizer.step()
    elif not fault:  # other optimizers know no such thing: on a GPU a host read for each step
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
    """Raise Diverged where a step since the last record was not finite; a host read, for before a checkpoint."""
    if on_nonfinite == "stop" and state.faults is not None and (faults := int(state.faults)):
        raise Diverged(state.step - faults + 1)


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches, task: Task, runtime: Runtime) -> dict[str, float]:
    """Figures over all batches. Returns, never yields: a generator would leak no_grad into its caller."""
    was_training = model.training
    model.eval()
    total: Tensor | None = None
    for inputs, targets in batches.in_order():
        with runtime.autocast():
            outputs = model(inputs)
            loss = task.loss(outputs, inputs, targets)
        sums = task.sums(loss, outputs, inputs, targets)
        total = sums if total is None else total.add_(sums)
    model.train(was_training)
    assert total is not None
    return task.metrics(total.tolist())


@torch.no_grad()
def predict(model: nn.Module, batches: Batches, runtime: Runtime) -> Tensor:
    """The network's outputs (N, ...) in float32 on the CPU, in the order of the examples."""
    model.eval()
    outputs = []
    for inputs, _ in batches.in_order():
        with runtime.autocast():
            outputs.append(model(inputs).float().cpu())
    return torch.cat(outputs)


def set_lr(optimizer: torch.optim.Optimizer, multiplier: float) -> float:
    """Set every group's rate to its own initial rate times `multiplier`; returns the first group's."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * multiplier
    return float(optimizer.param_groups[0]["lr"])
