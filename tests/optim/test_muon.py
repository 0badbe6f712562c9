"""Muon equals torch's own on matrices, takes filters as matrices, and leaves plain momentum to the rest."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from dltrain.optim import muon
from dltrain.runtime.errors import ConfigError
from dltrain.training import build, snapshot

NODE = {
    "name": "muon",
    "lr": 0.02,
    "momentum": 0.9,
    "iterations": 5,
    "rescale": False,
    "plain_momentum": 0.8,
    "weight_decay": 0.1,
    "decay_biases": False,
}


def tiny(seed: int = 0) -> nn.Sequential:
    """A filter, a norm, a tall matrix, a wide one and a head."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(16, 30),
        nn.Tanh(),
        nn.Linear(30, 6),
        nn.Tanh(),
        nn.Linear(6, 3),
    )


def train(model: nn.Module, optimizers: list[torch.optim.Optimizer], steps: int = 4) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        inputs = torch.randn(64, 1, 4, 4, generator=generator)
        nn.functional.mse_loss(model(inputs), torch.randn(64, 3, generator=generator)).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


@torch.no_grad()
def check_near(found: Tensor, expected: Tensor, start: Tensor) -> None:
    """Equal but for a small part of what training changed: torch scales before it rounds to bf16."""
    assert float((found - expected).norm()) <= 0.1 * float((expected - start).norm())


def test_matrices_follow_the_muon_of_torch_and_the_rest_its_sgd() -> None:
    ours, theirs = tiny(), tiny()
    for model in (ours, theirs):
        model[0].weight.requires_grad_(False)  # torch's takes no filters
    matrices = [theirs[3].weight, theirs[5].weight]
    rest = [each for each in theirs.parameters() if each.requires_grad and not any(each is one for one in matrices)]
    head = theirs[7].weight
    train(ours, [build.optimizer(NODE, ours)])
    train(
        theirs,
        [
            torch.optim.Muon(matrices, lr=0.02, momentum=0.9, weight_decay=0.1),
            torch.optim.SGD([each for each in rest if each is not head], lr=0.02, momentum=0.8, nesterov=True),
            Decoupled([head], lr=0.02, momentum=0.8, decay=0.1),
        ],
    )
    for found, expected, start in zip(ours.parameters(), theirs.parameters(), tiny().parameters(), strict=True):
        if expected.requires_grad:
            check_near(found, expected, start)


class Decoupled(torch.optim.SGD):
    """SGD that pulls weights towards zero before its step and not through the gradient."""

    def __init__(self, parameters: list[nn.Parameter], *, lr: float, momentum: float, decay: float) -> None:
        super().__init__(parameters, lr=lr, momentum=momentum, nesterov=True)
        self.kept = 1 - lr * decay

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            parameter.mul_(self.kept)
        super().step()


@pytest.mark.parametrize("channels_last", [False, True])
def test_filters_go_as_torchs_muon_takes_them_as_matrices(channels_last: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 4, 2))
    matrix = nn.Parameter(model[0].weight.detach().flatten(1).clone())
    start = matrix.detach().clone()
    reference = torch.optim.Muon([matrix], lr=0.02, momentum=0.9, weight_decay=0.1)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = build.optimizer(NODE, model)
    for seed in range(4):
        gradient = torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
        model[0].weight.grad = gradient.clone(memory_format=torch.preserve_format)
        matrix.grad = gradient.flatten(1).clone()
        optimizer.step()
        reference.step()
    check_near(model[0].weight.flatten(1), matrix, start)


def test_muon_steps_equal_the_formula() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10, bias=False), nn.Linear(10, 4))
    optimizer = build.optimizer(NODE, model)
    weight, momentum, gradients = model[0].weight.detach().clone(), torch.zeros(10, 6), torch.randn(4, 10, 6)
    for gradient in gradients:
        model[0].weight.grad = gradient.clone()
        optimizer.step()
        momentum = 0.9 * momentum + gradient
        update = muon.orthogonalize(gradient + 0.9 * momentum, 5) * math.sqrt(10 / 6)
        weight = weight * (1 - 0.02 * 0.1) - 0.02 * update
    torch.testing.assert_close(model[0].weight, weight)


def test_weights_of_zeros_are_left_finite_by_rescaling() -> None:
    model = tiny()
    nn.init.zeros_(model[3].weight)
    train(model, [build.optimizer(NODE | {"rescale": True}, model)], steps=2)
    assert all(bool(each.isfinite().all()) for each in model.parameters())


def test_muon_without_trainable_weights_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"^optim=muon: "):
        build.optimizer(NODE, tiny().requires_grad_(False))


@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (16, 16)])
def test_an_orthogonal_update_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(muon.orthogonalize(matrix, 5))
    assert 0.5 < float(values.min()) <= float(values.max()) < 1.3


def test_a_gradient_of_zeros_changes_nothing() -> None:
    assert muon.orthogonalize(torch.zeros(3, 4), 5).eq(0).all()


def test_rescaled_weights_have_the_norm_of_an_orthogonal_matrix_before_the_update() -> None:
    model = tiny()
    optimizer = build.optimizer(NODE | {"rescale": True, "lr": 1e-9, "weight_decay": 0.0}, model)
    before = copy.deepcopy(model)
    train(model, [optimizer], steps=1)

    def norms(network: nn.Sequential) -> list[Tensor]:
        return [network[place].weight.norm() for place in (0, 3, 5)]

    expected = [math.sqrt(rows) for rows in (4, 30, 6)]
    torch.testing.assert_close(norms(model), [torch.tensor(each) for each in expected], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model[7].weight, before[7].weight)  # the head has plain momentum


def test_restored_moments_get_the_memory_layout_of_the_weights() -> None:
    model = tiny()
    optimizer = build.optimizer(NODE, model)
    train(model, [optimizer])
    saved = copy.deepcopy(optimizer.state_dict())
    again = copy.deepcopy(model).to(memory_format=torch.channels_last)
    other = build.optimizer(NODE | {"lr": 0.5}, again)
    snapshot.restore_optimizer(other, saved)
    assert {group["lr"] for group in other.param_groups} == {0.5}
    for (mine, kept), theirs in zip(other.state.items(), optimizer.state.values(), strict=True):
        assert torch.equal(kept["momentum_buffer"], theirs["momentum_buffer"])
        assert kept["momentum_buffer"].stride() == mine.stride()


def test_moments_of_another_shape_are_refused() -> None:
    model = tiny()
    optimizer = build.optimizer(NODE, model)
    train(model, [optimizer])
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["momentum_buffer"] = torch.zeros(2)
    with pytest.raises(ValueError, match="momentum_buffer"):
        snapshot.restore_optimizer(build.optimizer(NODE, tiny()), saved)
