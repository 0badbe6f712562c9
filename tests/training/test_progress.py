"""What a run remembers of its records: the best so far with its weights, patience, speed, the latest figures."""

import copy
import math
import random

import pytest
import torch
from torch import nn

from dltrain.engine import Record
from dltrain.optim.step import Task, TrainState
from dltrain.optim.tasks import Classification, Regression
from dltrain.training.progress import Progress

TASK = Classification(label_smoothing=0.0)


def val(epoch: int, **figures: float) -> Record:
    return Record("val", 5 * epoch, float(epoch), figures)


def train(epoch: float, examples: int = 10, seconds: float = 1.0) -> Record:
    return Record("train", int(5 * epoch), epoch, {"loss": 1.0}, examples, seconds)


def weighing(value: float) -> TrainState:
    """Of a model with one weight."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1))


def noted(records: list[Record], task: Task = TASK) -> Progress:
    """Progress after records; the model's weight at each is its place in the list."""
    progress = Progress()
    for place, record in enumerate(records):
        progress.note(record, task, weighing(place))
    return progress


@pytest.mark.parametrize(
    ("accuracies", "losses", "best"),
    [
        ([0.5, 0.7, 0.6], [1.0, 1.0, 1.0], 1),
        ([0.5, 0.5, 0.5], [1.0, 0.8, 0.9], 1),
        ([0.5, 0.7, 0.6], [0.1, 9.0, 0.1], 1),
        ([0.5, 0.5, 0.5], [1.0, 1.0, 1.0], 0),
    ],
    ids=["accuracy", "loss where accuracies are equal", "accuracy before loss", "the first of equals"],
)
def test_the_best_is_chosen_by_accuracy_then_by_loss(accuracies: list[float], losses: list[float], best: int) -> None:
    figures = zip(accuracies, losses, strict=True)
    progress = noted([val(epoch, accuracy=a, loss=b) for epoch, (a, b) in enumerate(figures)])
    assert progress.best == {
        "split": "val",
        "step": 5 * best,
        "epoch": float(best),
        "accuracy": accuracies[best],
        "loss": losses[best],
    }
    assert float(progress.best_weights["weight"]) == best


def test_regression_is_better_with_a_smaller_loss() -> None:
    progress = noted([val(epoch, loss=loss) for epoch, loss in enumerate([3.0, 1.0, 2.0])], Regression())
    assert progress.best["loss"] == 1.0


def test_patience_counts_epochs_since_the_best() -> None:
    progress, counts = Progress(), []
    for epoch, accuracy in enumerate([0.5, 0.4, 0.5, 0.6, 0.1, 0.1, 0.1]):
        progress.note(val(epoch, accuracy=accuracy, loss=1.0), TASK, weighing(0))
        counts.append(progress.stale_epochs)
    assert counts == [0, 1, 2, 0, 1, 2, 3]


def test_scores_are_those_of_each_validation_and_none_where_they_are_not_finite() -> None:
    records = [val(1, accuracy=0.5, loss=2.0), train(2.0), val(2, accuracy=0.4, loss=math.nan)]
    assert noted([*records, val(3, accuracy=0.6, loss=1.0)]).scores == [0.5, None, 0.6]
    assert noted([val(1, loss=2.0), val(2, loss=3.0)], Regression()).scores == [-2.0, -3.0]


def test_the_best_weights_are_a_copy() -> None:
    progress, state = Progress(), weighing(1)
    progress.note(val(1, accuracy=0.5, loss=1.0), TASK, state)
    nn.init.constant_(state.model.weight, 9)
    assert float(progress.best_weights["weight"]) == 1


def test_the_host_waits_once_for_best_weights_from_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[Progress] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(progress))
    progress, state = Progress(), weighing(1)
    state.model = nn.Sequential(nn.Conv2d(3, 2, 3).to(memory_format=torch.channels_last), nn.BatchNorm2d(2))
    progress.note(val(1, accuracy=0.5, loss=1.0), TASK, state)
    progress.note(val(2, accuracy=0.4, loss=1.0), TASK, state)
    assert len(waits) == 1
    weights = state.model.state_dict()
    assert weights.keys() == progress.best_weights.keys()
    for name, kept in progress.best_weights.items():
        torch.testing.assert_close(kept, weights[name], rtol=0, atol=0, check_stride=True)


def test_with_ema_the_averaged_weights_are_kept_as_best() -> None:
    progress, state = Progress(), weighing(1)
    state.ema_weights = {"weight": torch.full((1, 1), 0.25)}
    progress.note(val(1, accuracy=0.5, loss=1.0), TASK, state)
    state.ema_weights["weight"].fill_(9)
    assert float(progress.best_weights["weight"]) == 0.25


def test_training_records_do_not_choose_the_best_if_there_is_validation() -> None:
    progress = noted([train(1.0), val(1, accuracy=0.5, loss=1.0), train(2.0)])
    assert (progress.best["split"], progress.best["step"]) == ("val", 5)


def test_without_validation_the_last_is_the_best_and_keeps_no_weights() -> None:
    progress = noted([train(0.4), train(1.0), train(1.2)])
    assert (progress.best["split"], progress.best["step"], progress.best_weights) == ("train", 6, {})


def test_a_test_record_chooses_nothing() -> None:
    progress = noted([val(1, accuracy=0.5, loss=1.0), Record("test", 5, 1.0, {"accuracy": 1.0, "loss": 0.0})])
    assert (progress.best["split"], progress.stale_epochs) == ("val", 0)


def test_the_latest_metrics_of_each_split_are_kept() -> None:
    progress = noted([train(1.0), val(1, accuracy=0.5, loss=1.0), val(2, accuracy=0.1, loss=2.0)])
    assert progress.latest == {"train": {"loss": 1.0}, "val": {"accuracy": 0.1, "loss": 2.0}}


@pytest.mark.parametrize(
    ("task", "good", "bad"),
    [
        (Regression(), {"loss": 1.0}, {"loss": math.nan}),
        (TASK, {"accuracy": 0.5, "loss": 1.0}, {"accuracy": 0.5, "loss": math.nan}),
        (TASK, {"accuracy": 0.5, "loss": 1.0}, {"accuracy": math.nan, "loss": math.nan}),
    ],
)
def test_nan_never_becomes_better_than_a_number(task: Task, good: dict[str, float], bad: dict[str, float]) -> None:
    progress = noted([val(1, **good), val(2, **bad)], task)
    assert (progress.best["step"], progress.stale_epochs, float(progress.best_weights["weight"])) == (5, 1, 0)


@pytest.mark.parametrize("seed", range(100))
def test_a_nonfinite_metric_never_becomes_best_in_any_sequence(seed: int) -> None:
    generator = random.Random(seed)
    chance = generator.choice((0.1, 0.5, 0.9, 1.0))

    def drawn() -> float:
        return generator.choice((math.nan, math.inf, -math.inf)) if generator.random() < chance else generator.random()

    figures = [{"accuracy": drawn(), "loss": drawn()} for _ in range(20)]
    progress = noted([val(epoch, **each) for epoch, each in enumerate(figures)])
    numbers = [epoch for epoch, each in enumerate(figures) if all(map(math.isfinite, each.values()))]
    if not numbers:
        assert (progress.best, progress.best_weights, progress.stale_epochs) == ({}, {}, 20)
        return
    best = max(numbers, key=lambda epoch: (figures[epoch]["accuracy"], -figures[epoch]["loss"]))
    assert progress.best == {"split": "val", "step": 5 * best, "epoch": float(best), **figures[best]}
    assert float(progress.best_weights["weight"]) == best
    assert progress.stale_epochs == 19 - best


def test_an_interval_of_skipped_steps_alone_is_not_best_without_validation() -> None:
    skipped = Record("train", 10, 2.0, {"loss": math.nan, "skipped_steps": 5}, 10, 1.0)
    assert noted([skipped]).best == {}
    assert noted([train(1.0), skipped]).best["step"] == 5
    assert noted([skipped, train(3.0)]).best["step"] == 15


def test_examples_per_second_is_that_of_the_fastest_epoch() -> None:
    # Epochs of 20 examples in 4, 1 and 2 seconds; the first is in two intervals.
    records = [train(0.5, seconds=3.0), train(1.0, seconds=1.0)]
    records += [train(2.0, examples=20, seconds=1.0), train(3.0, examples=20, seconds=2.0)]
    assert noted(records).examples_per_second == 20.0
    assert noted(records[:2]).examples_per_second == 5.0


def test_an_unfinished_epoch_has_no_speed() -> None:
    assert noted([train(0.5)]).examples_per_second == 0.0


def test_the_speed_of_a_run_is_that_of_its_fastest_epoch_or_of_a_partial_first_one() -> None:
    assert noted([]).rate() is None
    assert noted([train(0.5, seconds=2.5)]).rate() == 4.0
    assert noted([train(1.0, seconds=2.0), train(1.5, seconds=1.0)]).rate() == 5.0


def test_training_seconds_add_up_over_intervals() -> None:
    assert (
        noted([train(0.5, seconds=0.25), val(1, accuracy=0.5, loss=1.0), train(1.0, seconds=0.5)]).train_seconds == 0.75
    )


def test_progress_restored_from_a_checkpoint_continues_identically() -> None:
    records = [
        train(0.5),
        train(1.0),
        val(1, accuracy=0.5, loss=1.0),
        train(1.5),
        train(2.0),
        val(2, accuracy=0.4, loss=1.0),
    ]
    for cut in range(len(records)):
        progress = noted(records[:cut])
        progress = Progress(**copy.deepcopy(dict(vars(progress))))
        for place, record in enumerate(records[cut:], start=cut):
            progress.note(record, TASK, weighing(place))
        expected = noted(records)
        assert torch.equal(progress.best_weights.pop("weight"), expected.best_weights.pop("weight"))
        assert progress == expected
