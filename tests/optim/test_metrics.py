"""The metrics that `metric=` adds are scikit-learn's, exact however they are summed, and score a run's weights."""

import math
import warnings
from typing import Any

import numpy
import pytest
import torch
from sklearn import metrics as reference
from torch import Tensor, nn

from dltrain.engine import evaluate
from dltrain.optim.metrics import SUMMED, WithMetric, auroc
from dltrain.optim.step import StepOutput, Task, accumulate
from dltrain.optim.tasks import Classification, Regression
from dltrain.runtime.devices import Runtime
from dltrain.runtime.errors import ConfigError
from dltrain.training import build

PLAIN = Classification(label_smoothing=0.0)
CPU = Runtime(torch.device("cpu"), "fp32", 1)


def by(name: str, classes: int = 7, task: Task = PLAIN) -> WithMetric:
    return WithMetric(task, name, name in ("loss", "mae"), classes)


def drawn(count: int, classes: int, seed: int, absent: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    """Logits with many ties, half of them of the right class, and labels without the classes `absent`."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.tensor([label for label in range(classes) if label not in absent])
    labels = kept[torch.randint(len(kept), (count,), generator=generator)]
    logits = torch.randint(-3, 4, (count, classes), generator=generator) / 2.0
    logits[torch.arange(0, count, 2), labels[::2]] += 2
    return logits, labels


def computed(task: Task, batches: list[tuple[Tensor, Tensor]], at_once: int = 1) -> dict[str, float]:
    parts = [StepOutput(task.loss(outputs, outputs, labels), outputs, labels) for outputs, labels in batches]
    total = None
    for first in range(0, len(parts), at_once):
        total = accumulate(total, parts[first : first + at_once], task)
    assert total is not None
    return task.metrics(total.tolist())


def sure(labels: list[int], classes: int) -> Tensor:
    return nn.functional.one_hot(torch.tensor(labels), classes).float()


# --- against scikit-learn


@pytest.mark.parametrize("absent", [(), (2,), (0, 6)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_metrics_of_counts_are_those_of_scikit_learn(seed: int, absent: tuple[int, ...]) -> None:
    batches = [drawn(count, 7, 10 * seed + place, absent) for place, count in enumerate((30, 30, 11))]
    logits, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    predicted = logits.argmax(dim=1)
    assert computed(by("f1_macro"), batches)["f1_macro"] == pytest.approx(
        reference.f1_score(labels, predicted, average="macro"), abs=1e-12
    )
    with warnings.catch_warnings():  # of predicted classes without examples, which it leaves out too
        warnings.simplefilter("ignore", UserWarning)
        expected = reference.balanced_accuracy_score(labels, predicted)
    assert computed(by("balanced_accuracy"), batches)["balanced_accuracy"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("classes", [6, 20])
def test_top5_accuracy_is_that_of_scikit_learn(classes: int) -> None:
    batches = [drawn(40, classes, seed) for seed in range(3)]
    batches = [(logits + torch.rand(logits.shape) / 10, labels) for logits, labels in batches]  # without ties
    logits, labels = (torch.cat(parts).numpy() for parts in zip(*batches, strict=True))
    expected = reference.top_k_accuracy_score(labels, logits, k=5, labels=range(classes))
    assert computed(by("top5_accuracy", classes), batches)["top5_accuracy"] == pytest.approx(expected, abs=1e-12)


def test_a_class_that_is_neither_there_nor_predicted_is_left_out_and_one_that_is_only_predicted_counts_for_f1() -> None:
    outputs, labels = sure([0, 0, 1, 2], 5), torch.tensor([0, 0, 1, 1])
    assert computed(by("f1_macro", 5), [(outputs, labels)])["f1_macro"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert computed(by("balanced_accuracy", 5), [(outputs, labels)])["balanced_accuracy"] == 0.75


@pytest.mark.parametrize("seed", range(3))
def test_the_auroc_of_two_classes_is_that_of_scikit_learn(seed: int) -> None:
    logits, labels = drawn(101, 2, seed)
    expected = reference.roc_auc_score(labels, logits.double().softmax(dim=1)[:, 1])
    assert auroc(logits, labels) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_auroc_of_more_classes_is_the_macro_average_of_scikit_learn(seed: int) -> None:
    logits, labels = drawn(101, 5, seed)
    expected = reference.roc_auc_score(labels, logits.double().softmax(dim=1), multi_class="ovr")
    assert auroc(logits, labels) == pytest.approx(expected, abs=1e-12)


def test_the_auroc_leaves_out_classes_without_examples_for_which_scikit_learn_warns() -> None:
    logits, labels = drawn(101, 5, 0, absent=(1, 4))
    scores = logits.double().softmax(dim=1).numpy()
    kept = [reference.roc_auc_score(labels == k, scores[:, k]) for k in (0, 2, 3)]
    assert auroc(logits, labels) == pytest.approx(numpy.mean(kept), abs=1e-12)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_auroc_of_a_single_class_or_of_nan_is_nan(classes: int) -> None:
    logits, labels = drawn(20, classes, 0)
    assert math.isnan(auroc(logits, torch.zeros_like(labels)))
    logits[3, 1] = math.nan
    assert math.isnan(auroc(logits, labels))


def test_the_auroc_does_not_depend_on_the_order_of_the_examples() -> None:
    logits, labels = drawn(300, 4, 1)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    assert auroc(logits[order], labels[order]) == auroc(logits, labels)


# --- sums


@pytest.mark.parametrize("name", SUMMED)
@pytest.mark.parametrize("at_once", [2, 4])
def test_metrics_are_the_same_to_the_bit_however_many_batches_are_added_at_once(name: str, at_once: int) -> None:
    batches = [drawn(count, 7, seed) for seed, count in enumerate((12, 12, 12, 5))]
    assert computed(by(name), batches, at_once) == computed(by(name), batches)


@pytest.mark.parametrize("name", SUMMED)
def test_the_main_class_of_a_mixed_image_counts(name: str) -> None:
    logits, labels = drawn(40, 7, 0)
    mixed = 0.7 * sure(labels.tolist(), 7) + 0.3 * sure([0] * 40, 7)
    assert computed(by(name), [(logits, mixed)])[name] == computed(by(name), [(logits, labels)])[name]


@pytest.mark.parametrize("name", SUMMED)
def test_a_skipped_step_does_not_count(name: str) -> None:
    task = by(name)
    (logits, labels), (other, wrong) = drawn(40, 7, 0), drawn(40, 7, 1)
    parts = [
        StepOutput(torch.tensor(1.0), logits, labels),
        StepOutput(torch.tensor(math.nan), other, wrong, torch.tensor(True)),
    ]
    total = accumulate(None, parts, task)
    assert total is not None
    assert task.metrics(total.tolist())[name] == computed(task, [(logits, labels)])[name]


@pytest.mark.parametrize("name", SUMMED)
def test_the_sums_need_no_value_of_the_device(name: str) -> None:
    outputs, labels = torch.rand(2, 12, 7, device="meta"), torch.zeros(2, 12, dtype=torch.int64, device="meta")
    found = by(name).sums(torch.rand(2, device="meta"), outputs, labels)
    assert (found.shape, found.dtype, found.is_meta) == ((2, 3 + 3 * 7), torch.float64, True)


@pytest.mark.parametrize("name", ["loss", "accuracy", "auroc"])
def test_a_metric_of_the_task_itself_adds_no_sums(name: str) -> None:
    logits, labels = (part.unsqueeze(0) for part in drawn(12, 7, 0))
    assert by(name).sums(torch.ones(1), logits, labels).equal(PLAIN.sums(torch.ones(1), logits, labels))


def test_without_a_metric_the_task_is_the_plain_one() -> None:
    node = {"name": "classification", "label_smoothing": 0.0}
    assert build.task({"task": node, "metric": None}, 7, None) == PLAIN
    assert build.task({"task": node, "metric": "loss"}, 7, None) == WithMetric(PLAIN, "loss", True, 7)


class Batches:
    """Batches of inputs that the network returns as they are."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def in_order(self, first: int = 0, every: int = 1) -> Any:
        return iter(self.batches[first::every])


def test_the_auroc_of_a_split_is_that_of_all_its_batches() -> None:
    batches = [drawn(count, 7, seed) for seed, count in enumerate((12, 12, 5))]
    loader: Any = Batches(batches)
    metrics = evaluate(nn.Identity(), loader, by("auroc"), CPU)
    logits, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert list(metrics) == ["loss", "accuracy", "auroc"]
    assert metrics["auroc"] == auroc(logits, labels)
    assert list(evaluate(nn.Identity(), loader, PLAIN, CPU)) == ["loss", "accuracy"]


# --- score


def test_a_greater_score_is_a_greater_metric_a_smaller_loss_or_error_and_of_equals_the_one_with_the_smaller_loss() -> (
    None
):
    one = {"loss": 1.0, "accuracy": 0.9, "f1_macro": 0.5, "mae": 0.3}
    other = {"loss": 2.0, "accuracy": 0.8, "f1_macro": 0.6, "mae": 0.3}
    assert by("f1_macro").score(other) > by("f1_macro").score(one)
    assert by("accuracy").score(one) > by("accuracy").score(other)
    assert by("loss").score(one) > by("loss").score(other)
    assert by("mae", 1, Regression()).score(one) > by("mae", 1, Regression()).score(other)


@pytest.mark.parametrize("name", ["accuracy", "loss"])
def test_the_usual_metric_of_a_task_scores_as_the_task_does(name: str) -> None:
    task: Task = PLAIN if name == "accuracy" else Regression()
    one, other = {"loss": 1.0, "accuracy": 0.9}, {"loss": 0.9, "accuracy": 0.9}
    assert (by(name, 7, task).score(one) < by(name, 7, task).score(other)) == (task.score(one) < task.score(other))


class Kappa(Classification):
    """A task of a user, with a metric of its own and its own F1."""

    def metrics(self, sums: list[float]) -> dict[str, float]:
        return super().metrics(sums) | {"kappa": 0.25, "f1_macro": 0.125}


def test_a_users_task_may_compute_any_metric_and_its_own_comes_first() -> None:
    task, batches = Kappa(label_smoothing=0.0), [drawn(12, 7, 0)]
    assert computed(by("kappa", 7, task), batches)["kappa"] == 0.25
    assert computed(by("f1_macro", 7, task), batches)["f1_macro"] == 0.125
    assert computed(by("balanced_accuracy", 7, task), batches)["kappa"] == 0.25
    with pytest.raises(ConfigError, match="metric=kapa: the task computes no such metric, only loss, accuracy, kappa"):
        computed(by("kapa", 7, task), batches)


@pytest.mark.parametrize(
    ("name", "output_shape", "classes", "message"),
    [
        ("f1_macro", (7,), 7, ""),
        ("accuracy", (7,), 7, ""),
        ("auroc", (1, 8, 8), 7, "this model returns images"),
        ("top5_accuracy", (6,), 6, ""),
        ("top5_accuracy", (5,), 5, "needs more than 5 classes: with the 5 of this data it is always 1"),
    ],
)
def test_a_metric_that_does_not_fit_the_data_is_a_mismatch(
    name: str, output_shape: tuple[int, ...], classes: int, message: str
) -> None:
    found = by(name, classes).mismatch(torch.zeros(3, dtype=torch.int64), (1, 8, 8), output_shape, classes)
    assert message in found
    assert bool(found) == bool(message)


def test_a_metric_of_classes_does_not_fit_numbers() -> None:
    found = by("auroc", 2, Regression()).mismatch(torch.zeros(3, 2), (1, 1, 1), (2,), 2)
    assert found == "metric=auroc needs data with classes, and a model with an output for each of them"
