"""The loop: tensors in, records out. Knows no files, no console, no config.

`fit` is a generator. It yields after every chunk of work (one step, with the validation that follows the last step of
an epoch), so that the caller's `for` body takes the place of callbacks: it logs, saves, and stops by `break`. Between
two chunks `TrainState` is all there is to save.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Protocol

import torch
from torch import Tensor, nn

from dltrain.optim.ema import swapped_in_ema, update_ema
from dltrain.optim.step import (
    MAX_PENDING_OUTPUTS,
    OnNonfinite,
    StepOutput,
    Task,
    TrainState,
    accumulate,
    accumulate_metrics,
    interval_metrics,
    train_step,
)
from dltrain.runtime import distributed
from dltrain.runtime.devices import Runtime

Schedule = Callable[[int, int], float]


class Loader(Protocol):
    """Batches as a pure function of the epoch: nothing to save, nothing to lose."""

    def __len__(self) -> int:
        """Steps in an epoch."""

    def epoch(self, epoch: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs (B, C, H, W) and targets (B, ...) of training, from step `first` of the epoch on."""

    def rank_weight(self, index: int) -> tuple[int, float]:
        """Of batch `index` of an epoch: all its examples, and what this process's part counts in the mean over all."""

    def in_order(self, first: int = 0, every: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """The same without shuffling and augmentation, for evaluation; each `every`-th batch from `first` on."""


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
    state: TrainState,
    train: Loader,
    val: Loader | None,
    task: Task,
    schedule: Schedule,
    runtime: Runtime,
    *,
    epochs: int,
    log_every: int,
    accumulate: int,
    clip_norm: float | None,
    on_nonfinite: OnNonfinite,
    ema: float | None = None,
) -> Iterator[list[Record]]:
    """Train `state` in place up to `epochs`; yield the records of each chunk, mostly none.

    A step whose loss is NaN or infinite makes no update. With `stop` none after it does either, and Diverged is raised
    at the end of the interval; with `skip` the record tells how many there were. With `ema` the average of the weights
    over steps, which keeps that share of itself at each, is what is validated.
    """
    steps = len(train)
    total = steps * epochs
    update = partial(train_step, accumulate=accumulate, clip_norm=clip_norm, on_nonfinite=on_nonfinite)
    alone = runtime.processes.world_size == 1
    seconds, examples = 0.0, 0
    while state.step < total:
        epoch, first = divmod(state.step, steps)
        state.model.train()
        started = perf_counter()
        for inputs, targets in train.epoch(epoch, first):
            lr = set_lr(state.optimizer, schedule(state.step, total))
            count, weight = (inputs.shape[0], 1.0) if alone else train.rank_weight(state.step % steps)
            found = update(state, inputs, targets, task, runtime, weight=weight)
            # Without weight others have all the examples of a small batch.
            state.pending += found if weight else [part._replace(skipped=True) for part in found]
            state.step += 1
            if ema is not None:
                update_ema(state, ema)
            examples += count
            records = []
            epoch_ends = state.step % steps == 0
            is_due = epoch_ends or state.step % log_every == 0
            if is_due or len(state.pending) * found[-1].outputs.numel() > MAX_PENDING_OUTPUTS:
                accumulate_metrics(state, task)
            if is_due:
                assert state.sums is not None
                distributed.all_reduce_sum(state.sums, runtime.processes)
                metrics = interval_metrics(state, task, on_nonfinite)
                seconds += perf_counter() - started
                values = metrics | {"lr": lr, "examples_per_second": examples / seconds}
                records.append(Record("train", state.step, state.step / steps, values, examples, seconds))
                seconds, examples = 0.0, 0
                started = perf_counter()
            if epoch_ends and val is not None:
                with swapped_in_ema(state):
                    metrics = evaluate(state.model, val, task, runtime)
                records.append(Record("val", state.step, state.step / steps, metrics))
                started = perf_counter()
            seconds += perf_counter() - started
            yield records
            started = perf_counter()


@torch.no_grad()
def evaluate(model: nn.Module, batches: Loader, task: Task, runtime: Runtime) -> dict[str, float]:
    """Figures over all batches, which several processes share among them, the same in each.

    Returns, never yields: a generator would leak no_grad into its caller.
    """
    was_training = model.training
    model.eval()
    distributed.broadcast_buffers(model, runtime.processes)
    total: Tensor | None = None
    rank, world = runtime.processes.rank, runtime.processes.world_size
    has_own = world == 1 or rank < len(batches)  # who has none takes the first, for its shape alone
    own = batches.in_order() if world == 1 else batches.in_order(rank if has_own else 0, world)
    for inputs, targets in own:
        with runtime.autocast():
            outputs = model(inputs)
            loss = task.loss(outputs, inputs, targets)
        total = accumulate(total, [StepOutput(loss, outputs, targets)], task)
    model.train(was_training)
    assert total is not None
    if not has_own:
        total.zero_()
    return task.metrics(distributed.all_reduce_sum(total, runtime.processes).tolist())


@torch.no_grad()
def predict(model: nn.Module, batches: Loader, runtime: Runtime) -> Tensor:
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
