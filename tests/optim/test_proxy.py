"""A proxy picks the examples that a step trains on, and learns itself: as in the loop that people would write."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dltrain.data.augmentation import Augmentation
from dltrain.data.loader import TensorLoader
from dltrain.data.splits import Examples
from dltrain.engine import Record, fit
from dltrain.optim import schedules
from dltrain.optim.proxy import UPDATED_EVERY, count_hardest, pick_hardest
from dltrain.optim.step import TrainState
from dltrain.optim.tasks import Classification, Regression
from dltrain.runtime.devices import Runtime
from dltrain.runtime.errors import UserError

CPU = Runtime(torch.device("cpu"), "fp32", 1)
COUNT, SIZE, EPOCHS, FRACTION, RATE = 90, 20, 3, 0.3, 0.05  # batches of 20 and one of 10
MEAN, STD = (0.5,), (0.25,)
STEP: dict[str, Any] = {"accumulate": 1, "clip_norm": None}


def network(width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Linear(width, 3))


def state_of(model: nn.Module) -> TrainState:
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    optimizer.param_groups[0]["initial_lr"] = RATE
    return TrainState(model, optimizer)


def states() -> TrainState:
    state = state_of(network(16, 1))
    state.proxy = state_of(network(4, 2))
    return state


def batches(**augmentation: Any) -> TensorLoader:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (COUNT, 1, 3, 4), generator=generator, dtype=torch.uint8)
    examples = Examples(images, torch.randint(0, 3, (COUNT,), generator=generator), ("a", "b", "c"))
    options = {"batch_size": SIZE, "statistics": (MEAN, STD), "seed": 3}
    return TensorLoader(examples, CPU.device, augmentation=Augmentation(**augmentation), **options)  # type: ignore[arg-type]


def run(state: TrainState, train: TensorLoader, **options: Any) -> list[Record]:
    loop: dict[str, Any] = {
        "epochs": EPOCHS,
        "log_every": 2,
        "hardest": FRACTION,
        "on_nonfinite": "stop",
        **STEP,
    } | options
    schedule = partial(schedules.linear, warmup=0.0, final=0.1)
    task = Classification(0.1)
    return [record for chunk in fit(state, train, None, task, schedule, CPU, **loop) for record in chunk]


def by_hand(train: TensorLoader) -> list[dict[str, Tensor]]:
    models = network(16, 1), network(4, 2)
    optimizers = [torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9) for model in models]
    model, proxy = models
    total, step = EPOCHS * len(train), 0
    for epoch in range(EPOCHS):
        for images, labels in train.epoch(epoch, 0):
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = RATE * schedules.linear(step, total, warmup=0.0, final=0.1)
            with torch.no_grad():
                losses = F.cross_entropy(proxy(images), labels, reduction="none", label_smoothing=0.1)
            order = losses.argsort(descending=True)
            kept = order[: len(images) * 3 // 10].sort().values
            if step % 4 == 0:
                optimizers[1].zero_grad()
                F.cross_entropy(proxy(images[kept]), labels[kept], label_smoothing=0.1).backward()
                optimizers[1].step()
            optimizers[0].zero_grad()
            F.cross_entropy(model(images[kept]), labels[kept], label_smoothing=0.1).backward()
            optimizers[0].step()
            step += 1
    return [model.state_dict(), proxy.state_dict()]


def test_a_run_with_a_proxy_is_the_loop_that_people_would_write() -> None:
    state = states()
    records = run(state, batches())
    assert state.proxy is not None
    for ours, theirs in zip((state.model, state.proxy.model), by_hand(batches()), strict=True):
        torch.testing.assert_close(ours.state_dict(), theirs, rtol=1e-4, atol=1e-5)
    assert records[0].examples == 2 * SIZE  # all that were looked at


def test_the_proxy_learns_from_every_fourth_batch_alone() -> None:
    state = state_of(network(4, 2))
    inputs, targets = next(batches().epoch(0, 0))
    learned = []
    for _ in range(2 * UPDATED_EVERY):
        before = state.model[1].weight.clone()  # type: ignore[index, union-attr]
        pick_hardest(state, inputs, targets, Classification(0.0), CPU, fraction=0.5, **STEP)
        learned.append(not torch.equal(before, state.model[1].weight))  # type: ignore[index, union-attr, arg-type]
    assert learned == 2 * [True, False, False, False]


@pytest.mark.parametrize(("examples", "fraction", "count"), [(10, 0.5, 5), (100, 0.07, 7), (1, 0.01, 1), (7, None, 7)])
def test_at_least_one_example_is_trained_on(examples: int, fraction: float | None, count: int) -> None:
    assert count_hardest(examples, fraction) == count


def test_mixed_images_and_accumulated_batches_are_picked_from_too() -> None:
    state = states()
    last = run(state, batches(mixup=0.4), hardest=0.4, accumulate=2, clip_norm=1.0)[-1]
    assert last.values["loss"] > 0


def test_numbers_to_predict_are_picked_by_their_error() -> None:
    proxy = state_of(nn.Sequential(nn.Flatten(), nn.Linear(12, 1, bias=False)))
    nn.init.zeros_(proxy.model[1].weight)  # type: ignore[index, arg-type, union-attr]
    targets = torch.tensor([[1.0], [-5.0], [2.0], [3.0]])
    _, kept = pick_hardest(proxy, torch.ones(4, 1, 3, 4), targets, Regression(), CPU, fraction=0.5, **STEP)
    assert kept.tolist() == [[-5.0], [3.0]]


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
def test_a_proxy_whose_loss_is_not_finite_ends_the_run_with_its_weights_as_they_were(on_nonfinite: str) -> None:
    state = states()
    assert state.proxy is not None
    state.proxy.model.register_forward_hook(lambda module, inputs, outputs: outputs * torch.nan)
    before = {key: value.clone() for key, value in state.proxy.model.named_parameters()}
    with pytest.raises(UserError, match="the loss or a weight of the proxy became NaN or infinite"):
        run(state, batches(), on_nonfinite=on_nonfinite)
    assert all(torch.equal(value, before[key]) for key, value in state.proxy.model.named_parameters())


def test_a_proxy_that_freezes_its_norms_keeps_them_frozen() -> None:
    class Frozen(nn.Sequential):
        def train(self, mode: bool = True) -> "Frozen":
            super().train(mode)
            self[2].eval()
            return self

    state = states()
    assert state.proxy is not None
    state.proxy = state_of(Frozen(*state.proxy.model))  # type: ignore[misc, arg-type]
    run(state, batches())
    assert state.proxy.model[2].running_mean.count_nonzero() == 0  # type: ignore[index, union-attr, operator]
