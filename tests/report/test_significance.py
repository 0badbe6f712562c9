"""Settings are compared over the seeds or folds that they share, by paired t-tests with Holm's correction."""

import math
import random
from pathlib import Path

import pytest
import scipy.stats

from dltrain.report.run_rows import Metric, RunRow, group_by_data
from dltrain.report.significance import Comparison, compare, holm, paired_t_test, sentences

ACCURACY, LOSS = Metric("val_accuracy", smaller_is_better=False), Metric("val_loss", smaller_is_better=True)
STEADY = [0.90, 0.91, 0.92, 0.93, 0.94]


def runs(name: str, settings: dict[str, list[float]], repeat: str = "seed") -> list[RunRow]:
    """A run of each setting with each seed, or each fold, and its value of the metric."""
    return [
        RunRow(Path(f"{lr}-{number}"), "", {"optim.lr": lr, repeat: number}, "done", {name: value}, 1.0)
        for lr, values in settings.items()
        for number, value in enumerate(values)
    ]


def compared(rows: list[RunRow], by: Metric) -> list[Comparison]:
    (group,) = group_by_data(rows, by)
    return compare(group)


def told(rows: list[RunRow], by: Metric = ACCURACY) -> list[str]:
    (group,) = group_by_data(rows, by)
    return sentences(group)


@pytest.mark.parametrize("count", [3, 5, 30])
def test_the_p_of_a_paired_t_test_is_that_of_scipy(count: int) -> None:
    draw = random.Random(count)
    pairs = [(draw.gauss(0.3, 1), draw.gauss(0, 1)) for _ in range(count)]
    assert paired_t_test(pairs) == pytest.approx(scipy.stats.ttest_rel(*zip(*pairs, strict=True)).pvalue)


def test_holm_multiplies_the_smallest_p_by_their_number_and_keeps_the_order() -> None:
    # By hand: 0.01 * 4 = 0.04; 0.03 * 3 = 0.09; 0.02 is before it: 0.02 * 3 = 0.06, 0.03 * 2 = 0.06; 0.5 * 1.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.04, 0.03]) == pytest.approx([0.06, 0.06])  # never smaller than that of a smaller p
    assert holm([0.8, 0.9]) == [1.0, 1.0]
    assert holm([0.02, 0.02]) == [0.04, 0.04]
    found = holm([math.nan, 0.02])
    assert math.isnan(found[0]) and found[1] == 0.02


def test_the_difference_and_its_interval_are_those_of_the_pairs() -> None:
    other = [0.88, 0.90, 0.91, 0.90, 0.93]
    (found,) = compared(runs("val_accuracy", {"0.1": STEADY, "0.01": other}), ACCURACY)
    differences = [one - two for one, two in zip(STEADY, other, strict=True)]
    low, high = scipy.stats.ttest_rel(STEADY, other).confidence_interval(0.95)
    assert (found.best, found.other, found.n, found.wins) == ("optim.lr=0.1", "optim.lr=0.01", 5, 5)
    assert found.difference == pytest.approx(sum(differences) / 5)
    assert found.interval == pytest.approx((high - low) / 2)
    assert found.p == pytest.approx(scipy.stats.ttest_rel(STEADY, other).pvalue)


def test_several_settings_are_compared_with_the_best_in_sentences() -> None:
    rows = runs(
        "val_accuracy",
        {"0.1": STEADY, "0.01": [0.88, 0.90, 0.91, 0.90, 0.93], "1": [0.90, 0.90, 0.93, 0.92, 0.94]},
    )
    assert told(rows) == [
        "val_accuracy, the best setting against each other one (paired t-test over seeds):",
        "optim.lr=0.1 not clearly better than optim.lr=1: in 2 of 5 seeds, "
        "difference 0.2 ± 1.04 points, p = 0.62 (Holm)",
        "optim.lr=0.1 better than optim.lr=0.01: in 5 of 5 seeds, difference 1.6 ± 1.11 points, p = 0.032 (Holm)",
    ]


def test_a_smaller_loss_is_better_and_has_no_points() -> None:
    rows = runs("val_loss", {"0.1": [0.30, 0.31, 0.33], "0.01": [0.40, 0.45, 0.44]}, "data.fold")
    assert told(rows, LOSS) == [
        "val_loss, the best setting against each other one (paired t-test over folds):",
        "optim.lr=0.1 better than optim.lr=0.01: in 3 of 3 folds, difference 0.117 ± 0.0517, p = 0.01",
    ]


def test_only_shared_seeds_count_and_fewer_than_three_give_no_p() -> None:
    rows = runs("val_accuracy", {"0.1": STEADY, "0.01": [0.8, 0.85, 0.7, 0.75]})
    apart = [row for row in rows if row.config["optim.lr"] == "0.1" or row.config["seed"] > 1]
    (found,) = compared(apart, ACCURACY)
    assert (found.n, math.isnan(found.p)) == (2, True)
    assert told(apart)[1] == "optim.lr=0.1 and optim.lr=0.01: a test needs 3 seeds that both have, there are 2"


def test_equal_differences_are_not_tested() -> None:
    rows = runs("val_accuracy", {"0.1": STEADY, "0.01": [value - 0.1 for value in STEADY]})
    assert told(rows)[1] == "optim.lr=0.1 and optim.lr=0.01: no test, as they differ by 10 points in each of 5 seeds"
    assert "differ by 0 points" in told(runs("val_accuracy", {"0.1": STEADY, "0.01": STEADY}))[1]


def test_a_lucky_single_run_is_no_setting_to_compare_with() -> None:
    rows = runs("val_accuracy", {"0.1": STEADY, "0.01": [value - 0.1 for value in STEADY], "5": [0.99]})
    assert [found.best for found in compared(rows, ACCURACY)] == ["optim.lr=0.1"]
    assert told(runs("val_accuracy", {"0.1": STEADY})) == []


def test_pairs_have_the_same_seed_and_the_same_fold() -> None:
    draw = random.Random(0)
    rows = [
        RunRow(
            Path(), "", {"optim.lr": lr, "seed": seed, "data.fold": fold}, "done",
            {"val_accuracy": lr + 0.1 * seed + 0.2 * fold + draw.gauss(0, 0.001)}, 1.0,
        )
        for lr in (0.1, 0.2) for seed in (0, 1) for fold in (0, 1, 2)
    ]  # fmt: skip
    (found,) = compared(rows, ACCURACY)
    assert (found.n, found.wins, found.p < 0.001) == (6, 6, True)
    assert "in 6 of 6 seeds × folds, difference 10" in told(rows)[1]
    assert told(rows)[1].endswith("points, p < 0.001")
