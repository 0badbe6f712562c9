"""The loop: what it yields and when, exact continuation from any step, accumulation, clipping, evaluation, golden."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dltrain.data.augmentation import Augmentation
from dltrain.data.loader import TensorLoader
from dltrain.data.splits import Examples
from dltrain.engine import Record, evaluate, fit, predict, set_lr
from dltrain.optim import schedules
from dltrain.optim.step import TrainState, accumulate_metrics, train_step
from dltrain.optim.tasks import Classification, Regression
from dltrain.runtime.devices import Runtime, generator_states, restore_generators
from dltrain.training import build, snapshot
from support import generated

CPU = Runtime(torch.device("cpu"), "fp32", 1)
TASK = Classification(label_smoothing=0.0)
STATISTICS = ((0.25,), (0.3,))
CONSTANT = partial(schedules.constant, warmup=0.0)
SHAPE = (28, 5)  # the rows of `generated.pictures` tell the class
EPOCHS, STEPS = 2, 5
TOTAL = EPOCHS * STEPS


def examples(count: int, seed: int = 0) -> Examples:
    images, labels = generated.pictures(count, SHAPE, seed)
    return Examples(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels).long(), tuple("0123456789"))


def batches(count: int = 18, batch_size: int = 4, **augmentation: Any) -> TensorLoader:
    """18 examples in batches of 4: five steps, the last of two examples."""
    settings = {"batch_size": batch_size, "statistics": STATISTICS, "seed": 3}
    return TensorLoader(examples(count), CPU.device, augmentation=Augmentation(**augmentation), **settings)


def fresh(dropout: float = 0.0, optimizer: str = "sgd", lr: float = 0.05) -> TrainState:
    """A small seeded perceptron and its optimizer."""
    torch.manual_seed(0)
    node = {"name": "mlp", "hidden": [8], "activation": "relu", "dropout": dropout, "batch_norm": False}
    model = build.model(node, (1, *SHAPE), 10)
    settings: dict[str, dict[str, Any]] = {
        "sgd": {"momentum": 0.9, "nesterov": False, "weight_decay": 0.0, "decay_biases": True},
        "adam": {"beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0, "decay_biases": True},
    }
    return TrainState(model, build.optimizer({"name": optimizer, "lr": lr, **settings[optimizer]}, model))


def run(
    state: TrainState, train: TensorLoader, val: TensorLoader | None = None, **changes: Any
) -> Iterator[list[Record]]:
    loop: dict[str, Any] = {
        "epochs": EPOCHS,
        "log_every": 2,
        "accumulate": 1,
        "clip_norm": None,
        "on_nonfinite": "stop",
    }
    schedule = changes.pop("schedule", CONSTANT)
    return fit(state, train, val, TASK, schedule, CPU, **(loop | changes))


def timeless(record: Record) -> Record:
    """A record without what the clock says."""
    values = {key: value for key, value in record.values.items() if key != "examples_per_second"}
    return replace(record, values=values)


def places(chunks: list[list[Record]]) -> list[tuple[str, int, float]]:
    return [(record.split, record.step, record.epoch) for chunk in chunks for record in chunk]


def test_fit_yields_one_list_for_each_step() -> None:
    state = fresh()
    assert [state.step for _ in run(state, batches())] == list(range(1, TOTAL + 1))


def test_fit_records_at_each_interval_and_at_the_end_of_each_epoch() -> None:
    found = places(list(run(fresh(), batches(), log_every=2)))
    assert found == [("train", step, step / STEPS) for step in (2, 4, 5, 6, 8, 10)]


def test_an_interval_longer_than_an_epoch_ends_with_the_epoch() -> None:
    assert [step for _, step, _ in places(list(run(fresh(), batches(), log_every=100)))] == [5, 10]


def test_validation_follows_the_last_step_of_each_epoch() -> None:
    chunks = list(run(fresh(), batches(), batches(6), log_every=100))
    assert [places([chunk]) for chunk in chunks if chunk] == [
        [("train", 5, 1.0), ("val", 5, 1.0)],
        [("train", 10, 2.0), ("val", 10, 2.0)],
    ]


def test_a_training_record_is_the_mean_over_its_interval() -> None:
    every_step = [record for chunk in run(fresh(), batches(), log_every=1) for record in chunk]
    (whole_epoch, _) = [record for chunk in run(fresh(), batches(), log_every=100) for record in chunk]
    sizes = [4, 4, 4, 4, 2]
    expected = sum(record.values["loss"] * size for record, size in zip(every_step[:5], sizes, strict=True)) / 18
    assert whole_epoch.values["loss"] == pytest.approx(expected, rel=1e-6)
    assert [record.examples for record in (*every_step[:5], whole_epoch)] == [*sizes, 18]


def test_a_training_record_tells_the_rate_of_its_last_step() -> None:
    schedule = partial(schedules.linear, warmup=0.0, final=0.0)
    rates = [chunk[0].values["lr"] for chunk in run(fresh(lr=0.1), batches(), log_every=1, schedule=schedule)]
    assert rates == pytest.approx([0.1 * (1 - step / TOTAL) for step in range(TOTAL)])


def test_a_run_that_is_over_yields_nothing() -> None:
    state = fresh()
    list(run(state, batches()))
    before = copy.deepcopy(state.model.state_dict())
    assert list(run(state, batches())) == []
    assert all(torch.equal(before[key], value) for key, value in state.model.state_dict().items())


def test_more_epochs_continue_a_run_that_is_over() -> None:
    state = fresh()
    list(run(state, batches(), epochs=1))
    assert places(list(run(state, batches(), epochs=2, log_every=100))) == [("train", 10, 2.0)]


AUGMENTED = {"crop": 1, "flip": True}


@pytest.fixture(scope="module")
def unbroken() -> tuple[dict[str, Tensor], list[Record]]:
    """Weights and records of a whole run with everything that draws random numbers."""
    state = fresh(dropout=0.5, optimizer="adam")
    torch.manual_seed(7)
    records = [record for chunk in run(state, batches(**AUGMENTED), batches(6), log_every=3) for record in chunk]
    return state.model.state_dict(), records


@pytest.mark.parametrize("stop", range(1, TOTAL))
def test_a_run_that_stopped_at_any_step_continues_to_the_same_bits(
    stop: int, unbroken: tuple[dict[str, Tensor], list[Record]]
) -> None:
    state = fresh(dropout=0.5, optimizer="adam")
    torch.manual_seed(7)
    records = []
    for chunk in run(state, batches(**AUGMENTED), batches(6), log_every=3):
        records += chunk
        if state.step == stop:
            break
    generators = generator_states()
    restored = fresh(dropout=0.5, optimizer="adam")  # seeds anew, as a new process does
    restored.model.load_state_dict(state.model.state_dict())
    snapshot.restore_optimizer(restored.optimizer, copy.deepcopy(state.optimizer.state_dict()))
    accumulate_metrics(state, TASK)
    restored.step, restored.sums = state.step, state.sums
    restore_generators(generators)
    for chunk in run(restored, batches(**AUGMENTED), batches(6), log_every=3):
        records += chunk
    weights, expected = unbroken
    assert [timeless(record) for record in records] == [timeless(record) for record in expected]
    assert all(torch.equal(weights[key], value) for key, value in restored.model.state_dict().items())


def test_random_numbers_do_matter_to_the_run_that_continues(
    unbroken: tuple[dict[str, Tensor], list[Record]],
) -> None:
    state = fresh(dropout=0.5, optimizer="adam")
    torch.manual_seed(8)
    list(run(state, batches(**AUGMENTED), batches(6), log_every=3))
    assert not all(torch.equal(unbroken[0][key], value) for key, value in state.model.state_dict().items())


@pytest.mark.parametrize(("size", "accumulate"), [(8, 2), (8, 4), (7, 3), (5, 4), (2, 8)])
def test_accumulation_equals_one_large_batch(size: int, accumulate: int) -> None:
    inputs, targets = next(batches(size, batch_size=size).in_order())
    whole, parts = fresh(), fresh()
    for state, count in ((whole, 1), (parts, accumulate)):
        state.pending += train_step(
            state, inputs, targets, TASK, CPU, accumulate=count, clip_norm=None, on_nonfinite="stop"
        )
        accumulate_metrics(state, TASK)
    torch.testing.assert_close(parts.sums, whole.sums, rtol=1e-6, atol=1e-6)
    for one, other in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_accumulation_over_a_run_equals_large_batches() -> None:
    whole, parts = fresh(), fresh()
    list(run(whole, batches(batch_size=8)))
    list(run(parts, batches(batch_size=8), accumulate=4))  # the last batch has 2 examples: fewer parts than asked for
    for one, other in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def update_norm(clip_norm: float | None) -> float:
    """Length of the first update of plain gradient descent with rate 1."""
    state = fresh()
    before = torch.cat([parameter.detach().flatten().clone() for parameter in state.model.parameters()])
    state.optimizer = torch.optim.SGD(state.model.parameters(), lr=1.0)
    train_step(state, *next(batches().in_order()), TASK, CPU, accumulate=1, clip_norm=clip_norm, on_nonfinite="stop")
    after = torch.cat([parameter.detach().flatten() for parameter in state.model.parameters()])
    return float((after - before).norm())


def test_clip_norm_bounds_the_update() -> None:
    assert update_norm(None) > 0.1
    assert update_norm(0.1) == pytest.approx(0.1, rel=1e-4)


def test_clip_norm_above_the_gradient_changes_nothing() -> None:
    assert update_norm(1e6) == update_norm(None)


def test_a_step_leaves_no_gradient_behind() -> None:
    state = fresh()
    train_step(state, *next(batches().in_order()), TASK, CPU, accumulate=2, clip_norm=None, on_nonfinite="stop")
    assert all(parameter.grad is None for parameter in state.model.parameters())


def test_set_lr_keeps_the_ratio_of_the_groups() -> None:
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [one], "lr": lr} for one, lr in zip(parameters, (1.0, 0.1), strict=True)])
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    for multiplier in (0.5, 0.25):
        assert set_lr(optimizer, multiplier) == multiplier
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.25, 0.025])


def test_evaluate_equals_a_plain_loop() -> None:
    model, split = fresh(dropout=0.5).model, batches(11)
    model.eval()
    with torch.no_grad():
        outputs = torch.cat([model(inputs) for inputs, _ in split.in_order()])
    expected_loss = float(nn.functional.cross_entropy(outputs, split.targets))
    expected_accuracy = float((outputs.argmax(dim=1) == split.targets).float().mean())
    found = evaluate(model.train(), split, TASK, CPU)
    assert found == {"loss": pytest.approx(expected_loss), "accuracy": pytest.approx(expected_accuracy)}


def test_evaluate_is_the_same_for_every_batch_size() -> None:
    model = fresh().model
    one, all_at_once = (evaluate(model, batches(11, batch_size=size), TASK, CPU) for size in (1, 11))
    assert one == {key: pytest.approx(value, rel=1e-6) for key, value in all_at_once.items()}


def test_evaluate_and_predict_compute_in_evaluation_without_gradients() -> None:
    model, seen = fresh(dropout=0.5).model, []
    model.register_forward_hook(lambda module, _, output: seen.append((module.training, output.requires_grad)))
    evaluate(model, batches(4), TASK, CPU)
    predict(model, batches(4), CPU)
    assert seen == [(False, False), (False, False)]


@pytest.mark.parametrize("enabled", [True, False])
def test_evaluate_leaves_gradients_switched_as_they_were(enabled: bool) -> None:
    with torch.set_grad_enabled(enabled):
        evaluate(fresh().model, batches(4), TASK, CPU)
        assert torch.is_grad_enabled() == enabled


def test_evaluate_leaves_a_model_in_training_in_training() -> None:
    model = fresh(dropout=0.5).model.train()
    evaluate(model, batches(4), TASK, CPU)
    assert all(module.training for module in model.modules())


def test_evaluate_changes_no_weight_and_no_generator() -> None:
    state = fresh(dropout=0.5)
    before, generators = copy.deepcopy(state.model.state_dict()), torch.get_rng_state()
    evaluate(state.model, batches(4), TASK, CPU)
    assert torch.equal(torch.get_rng_state(), generators)
    assert all(torch.equal(before[key], value) for key, value in state.model.state_dict().items())


def test_the_body_of_the_loop_has_gradients_and_a_model_in_training() -> None:
    state = fresh(dropout=0.5)
    for _ in run(state, batches(), batches(6)):
        assert torch.is_grad_enabled()
        assert state.model.training


def test_an_epoch_begins_in_training_whatever_the_model_was_left_in() -> None:
    state = fresh()
    list(run(state, batches(), epochs=1))
    state.model.eval()
    next(run(state, batches(), epochs=2))
    assert state.model.training


def test_predict_gives_float32_outputs_in_the_order_of_the_examples() -> None:
    model, split = fresh(dropout=0.5).model, batches(11)
    found = predict(model, split, CPU)
    expected = model.eval()(split.normalize(split.images)).detach()
    torch.testing.assert_close(found, expected)
    assert (found.dtype, found.device.type, found.requires_grad) == (torch.float32, "cpu", False)


def test_loss_falls_and_accuracy_rises_on_learnable_data() -> None:
    state = fresh(lr=0.05)
    train = batches(40, batch_size=8)
    before = evaluate(state.model, train, TASK, CPU)
    list(run(state, train, epochs=20))
    after = evaluate(state.model, train, TASK, CPU)
    assert after["loss"] < 0.1 * before["loss"]
    assert after["accuracy"] == 1.0


def test_linear_regression_finds_the_line() -> None:
    x = torch.linspace(-2, 2, 20)
    split = TensorLoader(
        Examples(x.view(-1, 1, 1, 1), 2 * x.view(-1, 1) + 1, ()), CPU.device, batch_size=5, statistics=((0.0,), (1.0,))
    )
    torch.manual_seed(0)
    model = build.model({"name": "linear"}, (1, 1, 1), 1)
    node = {"name": "sgd", "lr": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "decay_biases": True}
    state = TrainState(model, build.optimizer(node, model))
    loop: dict[str, Any] = {"epochs": 50, "log_every": 100, "accumulate": 1, "clip_norm": None, "on_nonfinite": "stop"}
    list(fit(state, split, None, Regression(), CONSTANT, CPU, **loop))
    assert [float(parameter.detach()) for parameter in model.parameters()] == pytest.approx([2.0, 1.0], abs=1e-4)


def test_bf16_trains_with_weights_in_float32() -> None:
    state = fresh()
    runtime = replace(CPU, precision="bf16")
    loop: dict[str, Any] = {"epochs": 1, "log_every": 1, "accumulate": 1, "clip_norm": None, "on_nonfinite": "stop"}
    losses = [chunk[0].values["loss"] for chunk in fit(state, batches(), None, TASK, CONSTANT, runtime, **loop)]
    exact = [chunk[0].values["loss"] for chunk in run(fresh(), batches(), log_every=1, epochs=1)]
    assert losses != exact
    assert losses == pytest.approx(exact, rel=0.02)
    assert {parameter.dtype for parameter in state.model.parameters()} == {torch.float32}


GOLDEN = [
    2.494226,
    2.454686,
    2.362261,
    2.324178,
    2.256815,
    2.136988,
    2.322976,
    2.283177,
    2.037328,
    2.077015,
    1.802048,
    1.625400,
    1.699246,
    1.983524,
    1.637724,
    1.226072,
    2.062590,
    1.262631,
    1.532340,
    1.850920,
]


def test_golden_losses() -> None:
    """Twenty losses of a seeded run with momentum, a schedule, crop and flip; a refactor must not change them."""
    schedule = partial(schedules.onecycle, warmup=0.3, start=0.04, final=0.0)
    found = run(fresh(), batches(**AUGMENTED), epochs=4, log_every=1, schedule=schedule)
    assert [chunk[0].values["loss"] for chunk in found] == pytest.approx(GOLDEN, rel=0, abs=1e-5)


class Shared(nn.Module):
    """Returns views of its weights, as a baseline does that knows no input; or the weights themselves."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.mean, self.count = nn.Parameter(torch.zeros(count, 1)), count

    def forward(self, inputs: Tensor) -> Tensor:
        return self.mean if len(inputs) == self.count else self.mean[:1].expand(len(inputs), 1)


@pytest.mark.parametrize("count", [4, 8])
def test_metrics_are_those_before_the_update_even_if_an_output_is_a_weight(count: int) -> None:
    model, task = Shared(count), Regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = TrainState(model, optimizer)
    targets = torch.ones(4, 1)
    options: dict[str, Any] = {"accumulate": 1, "clip_norm": None, "on_nonfinite": "stop"}
    expected = []
    for _ in range(3):
        expected.append(float(task.loss(model(torch.zeros(4, 1)).detach(), targets, targets)))
        state.pending += train_step(state, torch.zeros(4, 1), targets, task, CPU, **options)
    accumulate_metrics(state, task)
    assert state.sums is not None
    assert task.metrics(state.sums.tolist())["loss"] == pytest.approx(sum(expected) / 3)
    assert expected[0] == 1
    assert expected[2] < expected[1] < expected[0]
