"""The loop: tensors in, records out. Knows no files, no console, no config.

`fit` is a generator. It yields after every chunk of work (one step, with the validation that follows the last step of
an epoch), so that the caller's `for` body takes the place of callbacks: it logs, saves, and stops by `break`. Between
two chunks `State` is all there is to save.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

import torch
from torch import Tensor, nn

from dltrain.runtime import Runtime

Schedule = Callable[[int, int], float]
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
    """All that training changes; `sums` are the figures since the last record."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    sums: Tensor | None = None


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
) -> Iterator[list[Record]]:
    """Train `state` in place up to `epochs`; yield the records of each chunk, mostly none."""
    steps = len(train)
    total = steps * epochs
    seconds, examples = 0.0, 0
    while state.step < total:
        epoch, first = divmod(state.step, steps)
        state.model.train()
        started = perf_counter()
        for inputs, targets in train.epoch(epoch, first):
            lr = set_lr(state.optimizer, schedule(state.step, total))
            sums = train_step(state, inputs, targets, task, runtime, accumulate=accumulate, clip_norm=clip_norm)
            state.sums = sums if state.sums is None else state.sums.add_(sums)
            state.step += 1
            examples += len(inputs)
            records = []
            epoch_ends = state.step % steps == 0
            if epoch_ends or state.step % log_every == 0:
                metrics = task.metrics(state.sums.tolist())  # the one host read of the interval
                state.sums = None
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
) -> Tensor:
    """One update on a batch, in `accumulate` parts that need less memory; returns the task's sums on the device."""
    size = -(-len(inputs) // accumulate)
    total: Tensor | None = None
    for part_inputs, part_targets in zip(inputs.split(size), targets.split(size), strict=True):
        with runtime.autocast():
            outputs = state.model(part_inputs)
            loss = task.loss(outputs, part_inputs, part_targets)
        # The mean over the whole batch, also where the last part is smaller.
        (loss * (len(part_inputs) / len(inputs)) if accumulate > 1 else loss).backward()
        sums = task.sums(loss, outputs, part_inputs, part_targets)
        total = sums if total is None else total + sums
    if clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), clip_norm)
    state.optimizer.step()
    state.optimizer.zero_grad()
    assert total is not None
    return total


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
