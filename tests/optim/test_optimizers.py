"""Optimizers are torch's own under config keys; decay can spare biases and norms; a resume keeps moments, not rates."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from dltrain import engine
from dltrain.optim import optimizers
from dltrain.runtime.errors import ConfigError
from dltrain.training import build, snapshot


def tiny(seed: int = 0) -> nn.Sequential:
    """Weights, biases and a norm."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 1) -> None:
    """A few steps on random numbers."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        inputs, targets = torch.randn(8, 3, generator=generator), torch.randn(8, 2, generator=generator)
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()


Reference = Callable[[Any], torch.optim.Optimizer]
PAIRS: dict[str, tuple[dict[str, Any], Reference]] = {
    "plain sgd": (
        {"name": "sgd", "lr": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0},
        lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    ),
    "sgd": (
        {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    ),
    "adam": (
        {"name": "adam", "lr": 0.01, "beta1": 0.8, "beta2": 0.95, "weight_decay": 0.01},
        lambda parameters: torch.optim.Adam(parameters, lr=0.01, betas=(0.8, 0.95), weight_decay=0.01),
    ),
    "adamw": (
        {"name": "adamw", "lr": 0.01, "beta1": 0.8, "beta2": 0.95, "weight_decay": 0.1},
        lambda parameters: torch.optim.AdamW(parameters, lr=0.01, betas=(0.8, 0.95), weight_decay=0.1),
    ),
    "rmsprop": (
        {"name": "rmsprop", "lr": 0.01, "alpha": 0.9, "momentum": 0.5, "weight_decay": 0.01},
        lambda parameters: torch.optim.RMSprop(parameters, lr=0.01, alpha=0.9, momentum=0.5, weight_decay=0.01),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_five_steps_equal_torch_with_the_same_settings(name: str) -> None:
    node, reference = PAIRS[name]
    ours, theirs = tiny(), tiny()
    train(ours, build.optimizer(node | {"decay_biases": True}, ours), steps=5)
    train(theirs, reference(theirs.parameters()), steps=5)
    for found, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", PAIRS)
def test_five_steps_change_every_parameter(name: str) -> None:
    model = tiny()
    train(model, build.optimizer(PAIRS[name][0] | {"decay_biases": False}, model), steps=5)
    assert all(not torch.equal(*pair) for pair in zip(model.parameters(), tiny().parameters(), strict=True))


@pytest.mark.parametrize("decay_biases", [True, False])
@pytest.mark.parametrize("name", [name for name in PAIRS if name != "plain sgd"])
def test_factors_on_rates_equal_torch_with_a_group_for_each_rate(name: str, decay_biases: bool) -> None:
    node, reference = PAIRS[name]
    ours, theirs = tiny(), tiny()
    factors = {"head_factor": 3.0, "bias_factor": 2.0, "norm_factor": 0.5}
    train(ours, build.optimizer(node | factors | {"decay_biases": decay_biases}, ours), steps=5)
    first, norm, _, head = theirs
    rates = {first.weight: 1.0, first.bias: 2.0, norm.weight: 0.5, norm.bias: 2.0, head.weight: 3.0, head.bias: 6.0}
    spared = {} if decay_biases else {"weight_decay": 0.0}
    train(
        theirs,
        reference(
            [
                {"params": [each], "lr": node["lr"] * factor, **(spared if each.ndim <= 1 else {})}
                for each, factor in rates.items()
            ]
        ),
        steps=5,
    )
    for found, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_recorded_lr_is_the_base_lr_and_a_schedule_scales_all_groups() -> None:
    optimizer = build.optimizer(
        PAIRS["sgd"][0] | {"decay_biases": False, "bias_factor": 0.5, "head_factor": 10.0}, tiny()
    )
    assert engine.set_lr(optimizer, 0.5) == pytest.approx(0.05)
    assert sorted(group["lr"] for group in optimizer.param_groups) == pytest.approx([0.025, 0.05, 0.05, 0.25, 0.5])


def test_without_factors_the_groups_are_the_optimizers_own() -> None:
    optimizer = build.optimizer(PAIRS["adamw"][0] | {"decay_biases": False}, tiny())
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 4]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_decay_biases_false_leaves_biases_and_norms_undecayed(name: str) -> None:
    model = tiny()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    optimizer = build.optimizer(PAIRS[name][0] | {"decay_biases": False}, model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # without a gradient there is nothing but the decay
    still = [key for key, parameter in model.named_parameters() if torch.equal(parameter, torch.ones_like(parameter))]
    assert still == ["0.bias", "1.weight", "1.bias", "3.bias"]


def test_decay_biases_true_decays_every_parameter_alike() -> None:
    model = tiny()
    optimizer = build.optimizer(PAIRS["adamw"][0] | {"decay_biases": True}, model)
    assert [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups] == [(6, 0.1)]


def test_without_decay_there_is_one_group() -> None:
    model = tiny()
    optimizer = build.optimizer(PAIRS["plain sgd"][0] | {"decay_biases": False}, model)
    assert [len(group["params"]) for group in optimizer.param_groups] == [6]


def test_frozen_parameters_are_left_out() -> None:
    model = tiny()
    model[0].weight.requires_grad_(False)
    optimizer = build.optimizer(PAIRS["sgd"][0] | {"decay_biases": False}, model)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


@pytest.mark.parametrize("name", PAIRS)
def test_build_notes_the_initial_rate_of_each_group(name: str) -> None:
    node = PAIRS[name][0]
    optimizer = build.optimizer(node | {"decay_biases": False}, tiny())
    assert {group["initial_lr"] for group in optimizer.param_groups} == {node["lr"]}


def test_groups_keep_their_learning_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    def two_rates(named_parameters: optimizers.Parameters, *, lr: float) -> torch.optim.Optimizer:
        first, *rest = [parameter for _, parameter in named_parameters]
        return torch.optim.SGD([{"params": [first], "lr": lr / 10}, {"params": rest}], lr=lr)

    monkeypatch.setattr(optimizers, "two_rates", two_rates, raising=False)
    optimizer = build.optimizer({"name": "dltrain.optim.optimizers:two_rates", "lr": 1.0}, tiny())
    assert [group["initial_lr"] for group in optimizer.param_groups] == [0.1, 1.0]


def test_nesterov_without_momentum_is_a_config_error() -> None:
    node = {"name": "sgd", "lr": 0.1, "momentum": 0.0, "nesterov": True, "weight_decay": 0.0, "decay_biases": True}
    with pytest.raises(ConfigError, match=r"^optim=sgd: Nesterov momentum requires a momentum"):
        build.optimizer(node, tiny())


@pytest.fixture
def saved() -> dict[str, Any]:
    """The state of an Adam after three steps at rate 0.01, in a schedule at half of it."""
    model = tiny()
    optimizer = build.optimizer(PAIRS["adam"][0] | {"decay_biases": True}, model)
    train(model, optimizer, steps=3)
    optimizer.param_groups[0]["lr"] = 0.005
    return copy.deepcopy(optimizer.state_dict())


def restored(saved: dict[str, Any], **changes: Any) -> torch.optim.Optimizer:
    optimizer = build.optimizer(PAIRS["adam"][0] | {"decay_biases": True} | changes, tiny())
    snapshot.restore_optimizer(optimizer, saved)
    return optimizer


def test_a_restored_optimizer_keeps_the_new_settings(saved: dict[str, Any]) -> None:
    group = restored(saved, lr=0.5, beta1=0.7, weight_decay=0.0).param_groups[0]
    kept = {key: group[key] for key in ("lr", "initial_lr", "betas", "weight_decay")}
    assert kept == {"lr": 0.5, "initial_lr": 0.5, "betas": (0.7, 0.95), "weight_decay": 0.0}


def test_a_restored_optimizer_keeps_the_old_moments(saved: dict[str, Any]) -> None:
    found = restored(saved, lr=0.5).state_dict()["state"]
    assert found.keys() == saved["state"].keys()
    for index, moments in saved["state"].items():
        assert all(torch.equal(found[index][key], moments[key]) for key in ("step", "exp_avg", "exp_avg_sq"))


def test_a_restored_optimizer_continues_like_the_saved_one(saved: dict[str, Any]) -> None:
    unbroken, broken = tiny(), tiny()
    first = build.optimizer(PAIRS["adam"][0] | {"decay_biases": True}, unbroken)
    first.load_state_dict(copy.deepcopy(saved))
    first.param_groups[0]["lr"] = 0.01
    second = build.optimizer(PAIRS["adam"][0] | {"decay_biases": True}, broken)
    snapshot.restore_optimizer(second, saved)
    train(unbroken, first, steps=3)
    train(broken, second, steps=3)
    assert all(torch.equal(*pair) for pair in zip(unbroken.parameters(), broken.parameters(), strict=True))


def test_another_number_of_groups_is_refused(saved: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"weight_decay cannot change from or to 0.*Start a new run with init="):
        restored(saved, decay_biases=False)
