"""Finds the first tensor that made a loss NaN or infinite. Costs nothing until that happens."""

import math
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn

from dltrain.engine import Loader, Record
from dltrain.optim.step import Task, TrainState, micro_batches
from dltrain.runtime.devices import Generators, Runtime, restore_generators
from dltrain.runtime.errors import UserError

NOT_FOUND = "not found when the step was computed again"
ADVICE = "Lower optim.lr or set clip_norm; earlier checkpoints are kept"
Position = tuple[int, Generators]  # a step, and the states of the generators after it


def name_tensor(
    state: TrainState, train: Loader, task: Task, runtime: Runtime, *, step: int, since: Position, accumulate: int
) -> str:
    """Compute `step` (counted from 1) again and name the first tensor in it that is not finite.

    The updates from that step on were masked, so the weights are still those before it. `since` is an earlier step of
    the same epoch, whose generator states let dropout repeat its masks.
    """
    if named := _first(dict(state.model.named_parameters())):
        return f"parameter {named}"
    done, generators = since
    restore_generators(generators)
    state.model.train()
    state.optimizer.zero_grad()
    epoch, first = divmod(done, len(train))
    *before, (inputs, targets) = islice(train.epoch(epoch, first), step - done)
    with torch.no_grad():  # to advance the generators
        for earlier, _ in before:
            for part in micro_batches(earlier, accumulate):
                with runtime.autocast():
                    state.model(part)
    if not _is_finite(inputs) or (targets.is_floating_point() and not _is_finite(targets)):
        return "its batch of data"
    for part, part_targets in zip(micro_batches(inputs, accumulate), micro_batches(targets, accumulate), strict=True):
        if named := _in_part(state.model, part, part_targets, task, runtime):
            return named
    return NOT_FOUND


def _in_part(model: nn.Module, inputs: Tensor, targets: Tensor, task: Task, runtime: Runtime) -> str:
    """Name the first tensor of a forward and backward pass that is not finite; empty if all are."""
    names: list[str] = []

    def check(name: str, module: nn.Module, _: object, output: object) -> None:
        tensors = output if isinstance(output, (tuple, list)) else [output]
        if not all(_is_finite(tensor) for tensor in tensors if isinstance(tensor, Tensor)):
            names.append(f"the output of {name or 'the model'} ({type(module).__name__})")

    hooks = [module.register_forward_hook(partial(check, name)) for name, module in model.named_modules()]
    with runtime.autocast():
        loss = task.loss(model(inputs), inputs, targets)
    for hook in hooks:
        hook.remove()
    if not _is_finite(loss):
        names.append("the loss")
    loss.backward()
    # The gradient nearest to the loss is the first.
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    if named := _first(dict(reversed(gradients.items()))):
        names.append(f"the gradient of {named}")
    return names[0] if names else ""


def _first(tensors: dict[str, Tensor]) -> str:
    return next((name for name, tensor in tensors.items() if not _is_finite(tensor)), "")


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


class NonFiniteMetric(UserError):
    """A metric is NaN or infinite."""


def require_finite_metrics(record: Record) -> None:
    """Raise NonFiniteMetric if a metric, such as the validation loss, is NaN or infinite."""
    for key, value in record.values.items():
        if not math.isfinite(value):
            raise NonFiniteMetric(f"{record.split} {key} is {value} at step {record.step}: training diverged\n{ADVICE}")
