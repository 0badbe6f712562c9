"""The training loop: tensors in, records out. Knows no files, no console, no config.

`fit` is a generator. It yields after every step (after the last step of an epoch and its validation), so that the
body of the caller's `for` loop replaces callbacks: it logs, saves checkpoints, and stops the run with `break`. Between
two yields `TrainState` holds everything that a checkpoint needs, once `accumulate_metrics` has been called.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dltrain.optim.ema import swapped_in_ema, update_ema
from dltrain.optim.proxy import pick_hardest, require_finite_proxy
from dltrain.optim.step import (
    MAX_PENDING_OUTPUTS,
    OnNonfinite,
    OutputTask,
    StepOutput,
    Task,
    TrainState,
    accumulate,
    accumulate_metrics,
    copy_rates,
    interval_metrics,
    keep_on_device,
    train_step,
)
from dltrain.runtime import distributed
from dltrain.runtime.devices import Runtime
from dltrain.runtime.errors import UserError
from dltrain.runtime.fast_layers import with_fast_layers
from dltrain.runtime.graphs import GraphedStep, GraphedSteps

Schedule = Callable[[int, int], float]
Measure = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Loader(Protocol):
    """Batches of one split, a pure function of the epoch: a loader has no state to save."""

    def __len__(self) -> int:
        """Return the number of batches in an epoch, which is the number of steps."""

    def epoch(self, epoch: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this rank's part of each training batch from `first` on: inputs (B, C, H, W), targets (B, ...)."""

    def rank_weight(self, index: int) -> tuple[int, float]:
        """Return the size of batch `index` over all ranks, and this rank's weight in the mean over ranks."""

    def in_order(self, first: int = 0, every: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every `every`-th whole batch from batch `first` on, neither shuffled nor augmented, for evaluation."""


@dataclass(frozen=True)
class Record:
    """The metrics of one training interval or one evaluation; `seconds` excludes the time spent in the caller."""

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
    hardest: float | None = None,
) -> Generator[list[Record], None, None]:
    """Train `state` in place until `epochs` are done; yield the records of each step, usually an empty list.

    A step whose loss is NaN or infinite updates nothing. With `on_nonfinite="stop"` no later step does either, and
    NonFiniteLoss is raised at the end of the interval: the GPU is read once per interval, not once per step. With
    "skip" the record counts such steps. With `ema`, a decay, the moving average of the weights is validated. With
    `hardest`, a fraction, each step trains on those examples of its batch that the proxy of `state` picks.
    """
    steps = len(train)
    total = steps * epochs
    alone = runtime.processes.world_size == 1
    if runtime.compile:
        from dltrain.optim.compiled_step import CompiledStep  # imported only if asked for: it takes seconds

        make_step: Callable[..., list[StepOutput]] = CompiledStep(train.rank_weight(0)[0])
    else:
        make_step = with_fast_layers(train_step, state.model, runtime)
    update = partial(make_step, accumulate=accumulate, clip_norm=clip_norm, on_nonfinite=on_nonfinite)
    pick = partial(pick_hardest, fraction=hardest, accumulate=accumulate, clip_norm=clip_norm)
    proxy = state.proxy

    def step(inputs: Tensor, targets: Tensor, *rates: Tensor, weight: float = 1.0) -> None:
        state.rates = list(rates) if rates else state.rates
        parts = update(state, inputs, targets, task, runtime, weight=weight)
        # With weight 0 this rank has no example of a small batch: the one it repeats must not count.
        state.pending += parts if weight else [part._replace(skipped=True) for part in parts]
        if runtime.graph or len(state.pending) * parts[-1].outputs.numel() > MAX_PENDING_OUTPUTS:
            accumulate_metrics(state, task)

    # The EMA reads the weights of each step.
    graphed = GraphedSteps(step, runtime.graph, wait=ema is None) if runtime.graph else None
    # The EMA is copied into the network's own memory, from which the graph of a validation reads.
    measure = partial(sums_and_outputs, state.model, task, runtime)
    validate = GraphedStep(measure, runtime.graph()) if runtime.graph else measure
    if graphed or runtime.device.type != "cpu":
        keep_on_device(state, runtime.device)
    state.flush = graphed.flush if graphed else state.flush
    seconds, examples = 0.0, 0
    while state.step < total:
        epoch, first = divmod(state.step, steps)
        state.model.train()
        if proxy is not None:
            proxy.model.train()
        started = perf_counter()
        for inputs, targets in train.epoch(epoch, first):
            multiplier = schedule(state.step, total)
            lr = set_lr(state.optimizer, multiplier, getattr(schedule, "func", schedule))
            if state.rates:
                copy_rates(state)
            count, weight = (inputs.shape[0], 1.0) if alone else train.rank_weight(state.step % steps)
            if proxy is not None:
                set_lr(proxy.optimizer, multiplier)
                inputs, targets = pick(proxy, inputs, targets, task, runtime)
            if graphed is not None:
                graphed(inputs, targets, *(state.rates or ()))
            else:
                step(inputs, targets, weight=weight)
            state.step += 1
            if ema is not None:
                update_ema(state, ema)
            examples += count
            records = []
            epoch_ends = state.step % steps == 0
            if epoch_ends or state.step % log_every == 0:
                accumulate_metrics(state, task)
                assert state.sums is not None
                distributed.all_reduce_sum(state.sums, runtime.processes)
                metrics = interval_metrics(state, task, on_nonfinite)
                if proxy is not None:
                    require_finite_proxy(proxy)
                seconds += perf_counter() - started
                values = metrics | {"lr": lr, "examples_per_second": examples / seconds}
                records.append(Record("train", state.step, state.step / steps, values, examples, seconds))
                seconds, examples = 0.0, 0
                started = perf_counter()
            if epoch_ends and val is not None:
                with swapped_in_ema(state):
                    metrics = evaluate(state.model, val, task, runtime, validate)
                records.append(Record("val", state.step, state.step / steps, metrics))
                started = perf_counter()
            seconds += perf_counter() - started
            yield records
            started = perf_counter()


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Loader, task: Task, runtime: Runtime, measure: Measure | None = None
) -> dict[str, float]:
    """Return the metrics over all batches, the same on every rank; ranks divide the batches among them.

    `measure` may be a graph of `sums_and_outputs`. Not a generator: that would leak no_grad into its caller.
    """
    measure = measure or partial(sums_and_outputs, model, task, runtime)
    was_training = model.training
    model.eval()
    distributed.broadcast_buffers(model, runtime.processes)
    total: Tensor | None = None
    rank, world = runtime.processes.rank, runtime.processes.world_size
    has_batch = rank < len(batches)  # a rank without one computes the first, for the shape of the sums alone
    kept: list[tuple[Tensor, Tensor]] = []
    by_outputs = task if isinstance(task, OutputTask) and task.needs_outputs else None
    for inputs, targets in batches.in_order(rank if has_batch else 0, world):
        sums, outputs = measure(inputs, targets)
        total = sums.clone() if total is None else total.add_(sums)
        if by_outputs is not None:
            kept.append((outputs.to("cpu", torch.float32, copy=True), targets.cpu()))
    model.train(was_training)
    assert total is not None
    if not has_batch:
        total.zero_()
    metrics = task.metrics(distributed.all_reduce_sum(total, runtime.processes).tolist())
    if by_outputs is not None:
        own = (torch.cat(parts) if has_batch else parts[0][:0] for parts in zip(*kept, strict=True))
        outputs, targets = (distributed.all_gather_rows(part, runtime.processes) for part in own)
        # A metric of the same name that the task itself computes counts.
        metrics = metrics | by_outputs.output_metrics(outputs, targets) | metrics
    return metrics


def sums_and_outputs(
    model: nn.Module, task: Task, runtime: Runtime, inputs: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the task's sums (S,) over a batch, and the network's outputs (B, ...)."""
    with runtime.autocast():
        outputs = model(inputs)
        loss = task.loss(outputs, inputs, targets)
    sums = accumulate(None, [StepOutput(loss, outputs, targets)], task)
    assert sums is not None
    return sums, outputs


@torch.no_grad()
def predict(model: nn.Module, batches: Loader, runtime: Runtime) -> Tensor:
    """Return the network's outputs (N, ...) for all examples in their order, as float32 on the CPU."""
    model.eval()
    outputs = []
    for inputs, _ in batches.in_order():
        with runtime.autocast():
            outputs.append(model(inputs).float().cpu())
    return torch.cat(outputs)


def set_lr(optimizer: torch.optim.Optimizer, multiplier: float, schedule: Any = None) -> float:
    """Set the learning rate of each group to its initial one times `multiplier`; return that of the first group."""
    if not isinstance(multiplier, int | float) or not 0 <= multiplier < float("inf"):
        raise UserError(f"schedule {schedule.__name__}: {multiplier!r} is no finite number >= 0, a factor on optim.lr")
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * float(multiplier)
    return float(optimizer.param_groups[0]["lr"])
