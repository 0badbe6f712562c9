"""Optimizers without torch's compiler: the same bits, and torch's own way as soon as somebody imports it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dltrain.runtime import no_dynamo

# Trains small networks without the compiler, imports it, trains them again; then lets it compile such a step.
BOTH_WAYS = """
import copy, functools, io, sys
import torch
from torch import nn
from dltrain.runtime import no_dynamo
from dltrain.training import build

NODES = [
    {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01, "decay_biases": False},
    {"name": "adam", "lr": 0.1, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.01, "decay_biases": True},
    {"name": "adamw", "lr": 0.1, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.01, "decay_biases": True},
    {"name": "rmsprop", "lr": 0.1, "alpha": 0.9, "momentum": 0.5, "weight_decay": 0.01, "decay_biases": True},
]

def trained(node):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    optimizer = build.optimizer(node, network)
    for turn in range(6):
        network(torch.randn(8, 5)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if turn == 2:
            kept = copy.deepcopy(optimizer.state_dict())
            optimizer = build.optimizer(node, network)
            optimizer.load_state_dict(kept)
    assert torch.is_grad_enabled()
    return torch.cat([each.detach().flatten() for each in network.parameters()])

without = [trained(node) for node in NODES]
assert "torch._dynamo" not in sys.modules
import torch._dynamo
with_it = [trained(node) for node in NODES]
print(all(torch.equal(a, b) for a, b in zip(without, with_it)))
method = torch.optim.Optimizer.zero_grad.__wrapped__
print(getattr(method, no_dynamo.REPLACEMENT).__module__.startswith("torch._dynamo"))

torch.manual_seed(0)
network = nn.Linear(5, 4)
optimizer = build.optimizer(NODES[0], network)
twin = copy.deepcopy(network)
other = build.optimizer(NODES[0], twin)
step = torch.compile(optimizer.step, backend="eager")
for _ in range(3):
    images = torch.randn(8, 5)
    network(images).square().mean().backward(); step(); optimizer.zero_grad()
    twin(images).square().mean().backward(); other.step(); other.zero_grad()
print(torch.allclose(network.weight, twin.weight))

called = []
network = nn.Linear(5, 4)
optimizer = build.optimizer(NODES[0], network)
optimizer.register_step_post_hook(lambda *given: called.append(1))
for turn in range(3):
    network(torch.randn(8, 5)).square().mean().backward()
    optimizer.step()
print(len(called) == 3)
from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(lambda *given: called.append(2))
optimizer.step()
print(called.count(2) == 1)
"""


@pytest.mark.slow
def test_optimizers_give_the_same_bits_with_and_without_the_compiler() -> None:
    command = [sys.executable, "-c", BOTH_WAYS]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True"] * 5


def test_an_unknown_torch_implementation_is_not_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        def add_param_group(self) -> None: ...
        def zero_grad(self) -> None: ...
        def state_dict(self) -> None: ...
        def load_state_dict(self) -> None: ...

    class Own(Other):
        def step(self) -> None: ...

    step = Own.step
    monkeypatch.setattr(no_dynamo, "Optimizer", Other)
    monkeypatch.setattr(no_dynamo, "_is_imported", lambda: False)
    no_dynamo.skip_dynamo_import()
    assert Own.step is step
    assert not any(hasattr(getattr(Other, name), no_dynamo.REPLACEMENT) for name in no_dynamo.DISABLED)


def test_nothing_is_patched_if_the_compiler_is_already_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(no_dynamo, "_is_imported", lambda: True)
    steps = {kind: kind.step for kind in torch.optim.Optimizer.__subclasses__()}
    no_dynamo.skip_dynamo_import()
    assert all(kind.step is step for kind, step in steps.items())
