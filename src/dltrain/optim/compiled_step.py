"""A training step compiled as a whole by torch.compile: forward, loss, backward and update as a few fused kernels.

It cannot trace `backward` and `Optimizer.step` as one function. Hence gradients come from torch.func, and updates from
the functions behind torch's optimizers; other optimizers update as they are. Imported only with device.compile=true.
"""

import logging
import os
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch.func import functional_call, grad_and_value
from torch.optim import adam, sgd

from dltrain.optim import muon
from dltrain.optim.step import (
    StepOutput,
    Task,
    TrainState,
    clear_gradients,
    count_fault,
    micro_batches,
    require_result,
    train_step,
    update_weights,
)
from dltrain.runtime.devices import Runtime, preserved_state
from dltrain.runtime.errors import first_line

log = logging.getLogger(__name__)

Tensors = Sequence[Tensor]
Named = dict[str, Tensor]
# Dropout draws the numbers that it draws without the compiler, which starts no processes.
OPTIONS: dict[str, Any] = {"fallback_random": True, "compile_threads": 1}


def _sgd(group: dict[str, Any], rate: Tensor, weights: Tensors, gradients: Tensors, states: Sequence[Named]) -> None:
    keys = ("weight_decay", "momentum", "dampening", "nesterov", "maximize")
    momenta = [state.get("momentum_buffer") for state in states]
    sgd.sgd(list(weights), list(gradients), momenta, foreach=True, lr=rate, **{key: group[key] for key in keys})


def _adam(group: dict[str, Any], rate: Tensor, weights: Tensors, gradients: Tensors, states: Sequence[Named]) -> None:
    first, second, steps = ([state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "step"))
    options: dict[str, Any] = {key: group[key] for key in ("weight_decay", "eps", "maximize", "decoupled_weight_decay")}
    options |= dict(zip(("beta1", "beta2"), group["betas"], strict=True), lr=rate, amsgrad=False)
    options |= {"foreach": True, "capturable": True}
    adam.adam(list(weights), list(gradients), first, second, [], steps, **options)


def _muon(group: dict[str, Any], rate: Tensor, weights: Tensors, gradients: Tensors, states: Sequence[Named]) -> None:
    for weight, gradient, state in zip(weights, gradients, states, strict=True):
        muon.update(weight, gradient, state["momentum_buffer"], group | {"lr": rate})


UPDATES: dict[type, Callable[..., None]] = {
    torch.optim.SGD: _sgd,
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adam,
    muon.Muon: _muon,
}


class CompiledStep:
    """A `train_step` that is compiled for whole batches; it computes others, and what cannot be compiled, as they are.

    The same goes for a first step in which the optimizer makes its state, and for steps after a loss is not finite.
    """

    def __init__(self, size: int) -> None:
        self.size = size  # of a whole batch
        self.step: Callable[..., Any] | None = None
        self.is_off = False

    def __call__(
        self, state: TrainState, inputs: Tensor, targets: Tensor, task: Task, runtime: Runtime, **options: Any
    ) -> list[StepOutput]:
        sticky = options["on_nonfinite"] == "stop"
        optimizer = state.optimizer
        makes_state = type(optimizer) in UPDATES and any(group.get("momentum", 1) for group in optimizer.param_groups)
        has_state = bool(optimizer.state) or not makes_state
        if self.is_off or len(inputs) != self.size or not has_state or (sticky and bool(state.faults)):
            return train_step(state, inputs, targets, task, runtime, **options)
        parts = [*zip(*(micro_batches(it, options["accumulate"]) for it in (inputs, targets)), strict=True)]
        try:
            if self.step is None:
                log.info("device.compile: compiling the training step; this may take a minute")
                step = compiled(state, task, runtime, parts[0], clip_norm=options["clip_norm"])
                losses, outputs, watched, gradients = _first_call(step, parts)
                self.step = step
            else:
                losses, outputs, watched, gradients = self.step(parts)
        except (TorchDynamoException, FailOnRecompileLimitHit, NotImplementedError) as error:
            log.warning("device.compile: the step is computed without it: %s", first_line(error))
            self.is_off = True
            return train_step(state, inputs, targets, task, runtime, **options)
        fault = count_fault(state, watched, sticky=sticky)
        for weight, gradient in gradients:
            # Fused kernels of the optimizer count on a gradient that lies in memory as its weight does.
            weight.grad = torch.empty_like(weight).copy_(gradient) if gradient.stride() != weight.stride() else gradient
        if gradients:
            update_weights(state, fault)
            clear_gradients(state.optimizer)
        skipped = torch.as_tensor(fault).bool() if options["on_nonfinite"] == "skip" else False
        return [StepOutput(*part, skipped) for part in zip(losses, outputs, (it for _, it in parts), strict=True)]


def _first_call(step: Callable[..., Any], parts: object) -> Any:
    """Call a step, which compiles it, or finds what an earlier run of this process with such a network compiled."""
    with warnings.catch_warnings(action="ignore"):  # the compiler's advice about the code of torch and dltrain
        try:
            return step(parts)
        except FailOnRecompileLimitHit:  # earlier runs of this process had other networks
            torch._dynamo.reset()
        except TorchDynamoException as error:  # a killed process may have left a library unfinished in the cache
            broken = re.search(r"ImportError: (.+?\.so): ", str(error))
            if broken is None or not Path(broken[1]).is_relative_to(os.environ["TORCHINDUCTOR_CACHE_DIR"]):
                raise
            Path(broken[1]).unlink(missing_ok=True)
        return step(parts)


def compiled(
    state: TrainState, task: Task, runtime: Runtime, example: tuple[Tensor, Tensor], *, clip_norm: float | None
) -> Callable[..., Any]:
    """Return a compiled function of micro-batches that makes an update, unless the loss is not finite.

    It returns losses, outputs, the sum of losses (plus the norm of the gradient if that is clipped), and pairs of
    weight and gradient if the optimizer is to update them.
    Raises NotImplementedError for a network that no such function can stand for.
    """
    network, optimizer = state.model, state.optimizer
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        raise NotImplementedError("the optimizer has hooks")
    trained = _trained(network, task, runtime, example)
    weights = {name: weight.detach() for name, weight in trained.items()}  # the same memory
    buffers = dict(network.named_buffers())
    by_weight = {weight: name for name, weight in trained.items()}
    # Without the rates, which change: a constant of the function would be compiled anew.
    groups = [
        ({key: value for key, value in group.items() if key not in ("params", "lr", "initial_lr")}, names)
        for group in optimizer.param_groups
        for names in [[by_weight[each] for each in group["params"] if each in by_weight]]
    ]
    is_plain = not any(it.get("amsgrad") for it, _ in groups) and not any(map(torch.is_complex, trained.values()))
    update = UPDATES.get(type(optimizer)) if is_plain else None
    states = {name: optimizer.state.get(weight, {}) for name, weight in trained.items()}
    rates = [torch.zeros((), device=runtime.device) for _ in groups]
    moments = [it for each in states.values() for it in each.values() if isinstance(it, Tensor)]

    def loss(
        weights: Named, buffers: Named, inputs: Tensor, targets: Tensor, fraction: float
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        with runtime.autocast():
            outputs = functional_call(network, (weights, buffers), (inputs,))
            loss = task.loss(outputs, inputs, targets)
        return loss * fraction if fraction < 1 else loss, (loss, outputs)

    def step(parts: Sequence[tuple[Tensor, Tensor]], rates: Tensors) -> Any:
        after = {name: buffer.clone() for name, buffer in buffers.items()}
        losses, outputs = [], []
        gradients: list[Tensor] = []
        count = sum(len(inputs) for inputs, _ in parts)
        for inputs, targets in parts:
            found, (_, (part_loss, part_outputs)) = grad_and_value(loss, has_aux=True)(
                weights, after, inputs, targets, len(inputs) / count
            )
            latest = [found[name] for name in weights]
            gradients = [a + b for a, b in zip(gradients, latest, strict=True)] if gradients else latest
            losses.append(part_loss.detach())
            outputs.append(part_outputs.detach())
        watched = torch.stack(losses).sum()
        if clip_norm is not None:  # as clip_grad_norm_ does
            norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(each) for each in gradients]))
            factor = (clip_norm / (norm + 1e-6)).clamp(max=1)
            gradients, watched = [each * factor for each in gradients], watched + norm
        is_finite = torch.isfinite(watched)
        for name, buffer in buffers.items():
            buffer.copy_(torch.where(is_finite, after[name], buffer))
        if update is None:
            return losses, outputs, watched, gradients
        written = [*weights.values(), *moments]
        before, named = [each.clone() for each in written], dict(zip(weights, gradients, strict=True))
        for (group, names), rate in zip(groups, rates, strict=True):
            update(group, rate, *([it[name] for name in names] for it in (weights, named, states)))
        for each, former in zip(written, before, strict=True):  # fused with the update: costs nothing
            each.copy_(torch.where(is_finite, each, former))
        return losses, outputs, watched, []

    function = torch.compile(step, fullgraph=True, dynamic=False, options=OPTIONS)

    @torch.no_grad()
    def call(parts: Sequence[tuple[Tensor, Tensor]]) -> Any:
        for rate, group in zip(rates, optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        losses, outputs, watched, gradients = function(parts, rates)
        return losses, outputs, watched, [*zip(trained.values(), gradients, strict=False)]

    return call


def _trained(
    network: nn.Module, task: Task, runtime: Runtime, example: tuple[Tensor, Tensor]
) -> dict[str, nn.Parameter]:
    """Return the weights that get a gradient, in a pass of an example that changes nothing.

    Raises NotImplementedError if the pass replaces a buffer, which `functional_call` would not notice.
    """
    inputs, targets = example
    with preserved_state(network):
        before = [id(buffer) for buffer in network.buffers()]
        with runtime.autocast():
            loss = task.loss(network(inputs), inputs, targets)
        require_result(task, "loss", loss, isinstance(loss, Tensor) and loss.ndim == 0 and loss.grad_fn is not None)
        loss.backward()
        if before != [id(buffer) for buffer in network.buffers()]:
            raise NotImplementedError("the network replaces its buffers")
        trained = {name: weight for name, weight in network.named_parameters() if weight.grad is not None}
    if any(weight._backward_hooks or weight._post_accumulate_grad_hooks for weight in trained.values()):
        raise NotImplementedError("a weight has a hook for its gradient")
    return trained
