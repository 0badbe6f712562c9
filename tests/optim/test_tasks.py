"""Losses and figures of each task against plain formulas; sums over batches are those of one large batch."""

import functools
import math
from typing import Any

import pytest
import torch
from sklearn.metrics import r2_score
from torch import Tensor
from torch.nn import functional as F

from dltrain.optim import tasks
from dltrain.optim.step import StepOutput, Task, accumulate
from dltrain.optim.tasks import Classification, Reconstruction, Regression

TASKS: dict[str, Task] = {
    "classification": Classification(label_smoothing=0.1),
    "regression": Regression(),
    "reconstruction": Reconstruction(),
}
Batch = tuple[Tensor, Tensor, Tensor]


def batch(name: str, count: int = 12, seed: int = 0) -> Batch:
    """Outputs, inputs and targets that fit a task."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 1, 3, 3, generator=generator)
    if name == "classification":
        return torch.randn(count, 4, generator=generator), inputs, torch.randint(0, 4, (count,), generator=generator)
    if name == "regression":
        return torch.randn(count, 2, generator=generator), inputs, torch.randn(count, 2, generator=generator)
    return torch.randn(count, 1, 3, 3, generator=generator), inputs, torch.zeros(count)


def sums(task: Task, parts: Batch) -> Tensor:
    outputs, _, targets = parts
    total = accumulate(None, [StepOutput(task.loss(*parts), outputs, targets)], task)
    assert total is not None
    return total


def figures(task: Task, parts: Batch) -> dict[str, float]:
    return task.metrics(sums(task, parts).tolist())


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_classification_loss_is_smoothed_cross_entropy(smoothing: float) -> None:
    outputs, inputs, targets = batch("classification")
    logs = outputs.log_softmax(dim=1)
    expected = -(1 - smoothing) * logs[torch.arange(12), targets] - smoothing * logs.mean(dim=1)
    found = Classification(label_smoothing=smoothing).loss(outputs, inputs, targets)
    torch.testing.assert_close(found, expected.mean())
    torch.testing.assert_close(found, F.cross_entropy(outputs, targets, label_smoothing=smoothing), rtol=0, atol=0)


def test_accuracy_is_the_fraction_of_correct_classes() -> None:
    outputs = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0], [0.0, 1.0]])
    found = figures(Classification(label_smoothing=0.0), (outputs, torch.zeros(4, 1, 1, 1), torch.tensor([0, 1, 1, 0])))
    assert found["accuracy"] == 0.5


def test_the_classification_loss_metric_is_the_mean_loss() -> None:
    parts = batch("classification")
    expected = float(TASKS["classification"].loss(*parts))
    assert figures(TASKS["classification"], parts)["loss"] == pytest.approx(expected, rel=1e-6)


def test_regression_metrics_equal_the_plain_formulas() -> None:
    outputs, inputs, targets = batch("regression")
    found = figures(Regression(), (outputs, inputs, targets))
    error = (outputs - targets).double()
    assert found["loss"] == pytest.approx(float((error**2).mean()))
    assert found["mae"] == pytest.approx(float(error.abs().mean()))
    assert Regression().loss(outputs, inputs, targets) == pytest.approx(found["loss"], rel=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_r2_equals_that_of_scikit_learn(offset: float) -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(30, 1, generator=generator) + offset
    outputs = targets + 0.3 * torch.randn(30, 1, generator=generator)
    found = figures(Regression(), (outputs, outputs, targets))
    assert found["r2"] == pytest.approx(r2_score(targets.double(), outputs.double()), abs=1e-6)


def test_r2_of_equal_targets_is_0() -> None:
    targets = torch.ones(4, 1)
    assert figures(Regression(), (targets + 1, targets, targets))["r2"] == 0.0


def test_r2_of_the_mean_is_0_and_of_the_truth_is_1() -> None:
    targets = torch.tensor([[1.0], [2.0], [3.0]])
    mean = torch.full_like(targets, 2.0)
    assert figures(Regression(), (mean, mean, targets))["r2"] == 0.0
    assert figures(Regression(), (targets, targets, targets))["r2"] == 1.0


def test_reconstruction_compares_outputs_with_inputs() -> None:
    outputs, inputs, targets = batch("reconstruction")
    expected = float(((outputs - inputs) ** 2).mean())
    assert float(Reconstruction().loss(outputs, inputs, targets)) == pytest.approx(expected)
    assert figures(Reconstruction(), (outputs, inputs, targets))["loss"] == pytest.approx(expected)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("cut", [1, 5, 11])
def test_sums_over_two_batches_equal_those_over_the_joined_one(name: str, cut: int) -> None:
    task, parts = TASKS[name], batch(name)
    first, second = tuple(part[:cut] for part in parts), tuple(part[cut:] for part in parts)
    added = sums(task, first) + sums(task, second)
    torch.testing.assert_close(added, sums(task, parts), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", TASKS)
def test_sums_are_float64_begin_with_a_count_and_carry_no_gradient(name: str) -> None:
    outputs, inputs, targets = batch(name)
    found = sums(TASKS[name], (outputs, inputs, targets))
    numbers = targets.numel() if name == "regression" else len(targets)
    assert (found.dtype, found.requires_grad, float(found[0])) == (torch.float64, False, numbers)


@pytest.mark.parametrize("name", TASKS)
def test_the_first_metric_is_the_loss_and_a_smaller_one_scores_higher(name: str) -> None:
    task = TASKS[name]
    found = figures(task, batch(name))
    assert next(iter(found)) == "loss"
    assert task.score(found | {"loss": found["loss"] - 0.1}) > task.score(found)


def test_accuracy_counts_before_the_loss() -> None:
    better, worse = {"accuracy": 0.9, "loss": 5.0}, {"accuracy": 0.8, "loss": 0.1}
    assert TASKS["classification"].score(better) > TASKS["classification"].score(worse)


LABELS, NUMBERS = torch.zeros(3, dtype=torch.int64), torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("classification", (LABELS, (1, 8, 8), (10,), 10), ""),
        ("classification", (NUMBERS, (1, 8, 8), (2,), 2), "needs data with classes; set task=regression"),
        ("classification", (LABELS, (1, 8, 8), (1, 8, 8), 10), "returns images; set task=reconstruction"),
        ("classification", (LABELS, (1, 8, 8), (7,), 10), "the data has 10 classes, the model's output is (7,)"),
        (
            "classification",
            (LABELS, (1, 8, 8), (10, 10), 10),
            "the data has 10 classes, the model's output is (10, 10)",
        ),
        ("regression", (NUMBERS, (1, 1, 1), (2,), 2), ""),
        ("regression", (LABELS, (1, 1, 1), (2,), 2), "this data has classes; set task=classification"),
        ("regression", (NUMBERS, (1, 1, 1), (3,), 2), "the data has targets of (2,), the model's output is (3,)"),
        ("regression", (NUMBERS, (1, 1, 1), (2, 1), 2), "the data has targets of (2,), the model's output is (2, 1)"),
        ("reconstruction", (LABELS, (1, 8, 8), (1, 8, 8), 10), ""),
        ("reconstruction", (LABELS, (1, 8, 8), (10,), 10), "images of (1, 8, 8), this one returns (10,); set model="),
    ],
)
def test_a_mismatch_says_what_does_not_fit_and_what_to_set(name: str, arguments: Any, message: str) -> None:
    found = TASKS[name].mismatch(*arguments)
    assert message in found
    assert bool(found) == bool(message)


def test_r2_of_targets_that_are_equal_but_for_rounding_is_zero() -> None:
    targets = torch.full((1000, 1), 0.1)
    outputs = torch.full((1000, 1), 0.6)
    task = Regression()
    assert figures(task, (outputs, targets, targets))["r2"] == 0.0


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("at_once", [1, 2, 3, 7])
def test_sums_are_the_same_to_the_bit_however_many_batches_are_added_at_once(name: str, at_once: int) -> None:
    task, sizes = TASKS[name], [12, 12, 12, 5, 12, 12, 3]
    found = []
    for seed, size in enumerate(sizes):
        outputs, inputs, targets = batch(name, size, seed)
        left_out = torch.tensor(True) if seed == 1 else seed == 4
        found.append(StepOutput(task.loss(outputs, inputs, targets), outputs, targets, left_out))
    total = None
    for start in range(0, len(found), at_once):
        total = accumulate(total, found[start : start + at_once], task)
    assert total is not None
    expected = [sums(task, batch(name, size, seed)) for seed, size in enumerate(sizes) if seed not in (1, 4)]
    assert total.tolist() == functools.reduce(torch.add, expected).tolist()


# --- weights of classes and the focal loss

WEIGHTS = [0.5, 2.0, 0.0, 3.0]


def fractions(count: int = 12) -> Tensor:
    """Targets of mixed images: the fraction of each class."""
    return torch.rand(count, 4, generator=torch.Generator().manual_seed(5)).softmax(dim=1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_weighted_loss_is_torchs_sum_over_the_number_of_examples(smoothing: float, mixed: bool) -> None:
    outputs, inputs, targets = batch("classification")
    targets = fractions() if mixed else targets
    found = Classification(smoothing, WEIGHTS).loss(outputs, inputs, targets)
    options: Any = {"label_smoothing": smoothing, "reduction": "sum"}
    expected = F.cross_entropy(outputs, targets, torch.tensor(WEIGHTS), **options) / 12
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_weight_is_a_factor_of_the_gradient_of_its_class() -> None:
    outputs, inputs, targets = batch("classification")
    gradients = []
    for task in (Classification(0.0), Classification(0.0, WEIGHTS)):
        leaf = outputs.clone().requires_grad_()
        task.loss(leaf, inputs, targets).backward()
        gradients.append(leaf.grad)
    plain, weighted = gradients
    assert plain is not None
    torch.testing.assert_close(weighted, plain * torch.tensor(WEIGHTS)[targets].unsqueeze(1))


def test_balanced_weights_give_each_class_the_same_part_and_have_mean_1_over_the_training_set() -> None:
    counts = [60, 30, 0, 10]
    weights = Classification(0.0, "balanced", class_counts=counts).weights
    assert weights is not None
    assert [weight * count for weight, count in zip(weights, counts, strict=True)] == pytest.approx(
        [100 / 3, 100 / 3, 0, 100 / 3]
    )
    assert weights[2] == 0
    assert Classification(0.0, "balanced", class_counts=[7] * 3).weights == (1.0, 1.0, 1.0)


def focal(outputs: Tensor, targets: Tensor, gamma: float, weights: list[float]) -> float:
    """Lin et al. (2017), eq. 5, written out; of several classes each by its fraction."""
    total = 0.0
    for row, fraction in zip(outputs.double().softmax(dim=1), targets, strict=True):
        for probability, part, weight in zip(row.tolist(), fraction.tolist(), weights, strict=True):
            total += -weight * part * (1 - probability) ** gamma * math.log(probability)
    return total / len(outputs)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_focal_loss_is_that_of_the_paper(
    gamma: float, smoothing: float, weights: list[float] | None, mixed: bool
) -> None:
    outputs, inputs, targets = batch("classification")
    parts = fractions() if mixed else F.one_hot(targets, 4)
    expected = focal(outputs, parts * (1 - smoothing) + smoothing / 4, gamma, weights or [1.0] * 4)
    found = Classification(smoothing, weights, gamma).loss(outputs, inputs, parts if mixed else targets)
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mixed", [False, True])
def test_a_focal_loss_with_a_tiny_exponent_is_almost_cross_entropy(mixed: bool) -> None:
    outputs, inputs, targets = batch("classification")
    targets = fractions() if mixed else targets
    pair = [Classification(0.1, WEIGHTS, gamma).loss(outputs, inputs, targets) for gamma in (0.0, 1e-6)]
    torch.testing.assert_close(*pair, rtol=1e-5, atol=0)


@pytest.mark.parametrize("gamma", [0.3, 1.0, 2.0])
def test_the_gradient_of_a_focal_loss_is_finite_for_certain_outputs(gamma: float) -> None:
    outputs = torch.tensor([[200.0, 0.0, 0.0, 0.0], [-200.0, 200.0, 0.0, 0.0]], requires_grad=True)
    Classification(0.1, None, gamma).loss(outputs, outputs, torch.tensor([0, 0])).backward()
    assert outputs.grad is not None
    assert outputs.grad.isfinite().all()
    assert float(outputs.grad[1, 0]) < 0


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_weighted_losses_are_computed_in_fp32_under_bf16(gamma: float) -> None:
    outputs, inputs, targets = batch("classification")
    task = Classification(0.1, WEIGHTS, gamma)
    with torch.autocast("cpu", torch.bfloat16):
        found = task.loss(outputs.bfloat16(), inputs, targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, task.loss(outputs.bfloat16().float(), inputs, targets))


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("cut", [1, 5, 11])
def test_weighted_losses_of_parts_make_up_that_of_the_whole_batch(gamma: float, cut: int) -> None:
    task, parts = Classification(0.1, WEIGHTS, gamma), batch("classification")
    added = sum(cut_loss * size for cut_loss, size in (
        (task.loss(*(part[:cut] for part in parts)), cut), (task.loss(*(part[cut:] for part in parts)), 12 - cut)
    ))  # fmt: skip
    torch.testing.assert_close(added / 12, task.loss(*parts))
    assert figures(task, parts)["loss"] == pytest.approx(float(task.loss(*parts)), rel=1e-6)


def test_weights_are_copied_to_the_device_once() -> None:
    tasks._on_device.cache_clear()
    task = Classification(0.0, WEIGHTS, 2.0)
    for seed in range(3):
        task.loss(*batch("classification", seed=seed))
    assert tasks._on_device.cache_info().misses == 1


def test_a_list_of_weights_of_another_length_is_a_mismatch() -> None:
    message = "task.class_weights has 4 numbers, the data has 10 classes; give one for each class"
    assert message in Classification(0.0, WEIGHTS).mismatch(LABELS, (1, 8, 8), (10,), 10)
    assert Classification(0.0, WEIGHTS).mismatch(LABELS, (1, 8, 8), (4,), 4) == ""


def test_weights_that_are_whole_numbers_are_those_that_are_not() -> None:
    parts = batch("classification")
    whole, exact = ([kind(label % 3) for label in range(4)] for kind in (int, float))
    tasks._on_device.cache_clear()
    assert torch.equal(Classification(0.1, whole).loss(*parts), Classification(0.1, exact).loss(*parts))


def test_weights_that_are_all_zero_are_refused() -> None:
    assert "are all 0" in Classification(0.0, [0.0] * 10).mismatch(LABELS, (1, 8, 8), (10,), 10)
