"""Schedules: their ends, their shape, and the rates of torch's own schedulers where those have the same formula."""

import itertools
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from dltrain.optim import schedules
from dltrain.optim.tasks import Classification, Regression

TOTAL = 40
Factors = Callable[[int, int], float]

ALL: dict[str, Factors] = {
    "constant": partial(schedules.constant, warmup=0.1),
    "step": partial(schedules.step, warmup=0.1, milestones=[0.5, 0.75], gamma=0.1),
    "linear": partial(schedules.linear, warmup=0.1, final=0.1),
    "triangular": partial(schedules.triangular, warmup=0.1, start=0.2, final=0.1),
    "cosine": partial(schedules.cosine, warmup=0.1, final=0.1),
    "onecycle": partial(schedules.onecycle, warmup=0.1, start=0.04, final=0.01),
    "restarts": partial(schedules.restarts, warmup=0.1, cycles=3, growth=2.0, final=0.1),
    "plateau": partial(
        schedules.plateau, scores=[0.5] * 9, warmup=0.1, factor=0.5, patience=4, threshold=0.0, final=0.1
    ),
}


def factors(schedule: Factors, total: int = TOTAL) -> list[float]:
    """The factor at each step, and what would come after the last."""
    return [schedule(step, total) for step in range(total + 1)]


def torch_factors(make: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler], steps: int) -> list[float]:
    """The same from a scheduler of torch on an optimizer with rate 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    found = []
    for step in range(steps):
        found.append(float(scheduler.get_last_lr()[0]))
        optimizer.step()
        if step < steps - 1:
            scheduler.step()
    return found


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("total", [1, 2, 7, TOTAL])
def test_every_factor_is_within_0_and_1(name: str, total: int) -> None:
    assert all(0 <= factor <= 1 for factor in factors(ALL[name], total))


@pytest.mark.parametrize("name", ["constant", "step", "linear", "triangular", "cosine", "onecycle", "restarts"])
def test_the_full_rate_is_reached_at_the_end_of_the_warm_up(name: str) -> None:
    assert ALL[name](4, TOTAL) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", ["constant", "step", "linear", "cosine", "restarts"])
def test_the_warm_up_is_a_straight_line_from_zero(name: str) -> None:
    assert factors(ALL[name])[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])


@pytest.mark.parametrize("name", ["step", "linear", "triangular", "cosine", "onecycle"])
def test_after_the_warm_up_the_rate_never_rises(name: str) -> None:
    falling = factors(ALL[name])[4:]
    assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize("name", ["linear", "triangular", "cosine", "onecycle"])
def test_after_the_warm_up_the_rate_falls_at_each_step(name: str) -> None:
    falling = factors(ALL[name])[4:]
    assert all(later < earlier for earlier, later in itertools.pairwise(falling))


ENDS = [("linear", 0.1), ("triangular", 0.1), ("cosine", 0.1), ("onecycle", 0.01), ("restarts", 0.1)]


@pytest.mark.parametrize(("name", "final"), ENDS)
def test_the_run_ends_at_the_final_factor(name: str, final: float) -> None:
    assert ALL[name](TOTAL, TOTAL) == pytest.approx(final)


def test_triangular_is_two_straight_lines() -> None:
    found = factors(partial(schedules.triangular, warmup=0.25, start=0.2, final=0.4))
    assert found[:11] == pytest.approx([0.2 + 0.08 * step for step in range(11)])
    assert found[10:] == pytest.approx([1 - 0.02 * step for step in range(31)])


def test_constant_without_warm_up_is_1_at_each_step() -> None:
    assert factors(partial(schedules.constant, warmup=0.0)) == [1.0] * (TOTAL + 1)


def test_constant_stays_at_1_after_the_warm_up() -> None:
    assert factors(ALL["constant"])[3:] == [1.0] * (TOTAL - 2)


def test_step_falls_at_its_milestones_and_nowhere_else() -> None:
    found = factors(partial(schedules.step, warmup=0.0, milestones=[0.5, 0.75], gamma=0.1))
    assert found == pytest.approx([1.0] * 20 + [0.1] * 10 + [0.01] * 11)


def test_step_takes_milestones_in_any_order_and_none() -> None:
    ordered = factors(partial(schedules.step, warmup=0.0, milestones=[0.25, 0.5], gamma=0.1))
    assert factors(partial(schedules.step, warmup=0.0, milestones=[0.5, 0.25], gamma=0.1)) == ordered
    assert factors(partial(schedules.step, warmup=0.0, milestones=[], gamma=0.1)) == [1.0] * (TOTAL + 1)


def test_onecycle_begins_at_start_and_peaks_once_at_the_end_of_its_climb() -> None:
    found = factors(partial(schedules.onecycle, warmup=0.3, start=0.04, final=0.0))
    assert found[0] == pytest.approx(0.04)
    assert [step for step, factor in enumerate(found) if factor == pytest.approx(1)] == [12]
    assert found[:13] == sorted(found[:13])


def test_onecycle_without_warm_up_begins_at_its_peak() -> None:
    assert schedules.onecycle(0, TOTAL, warmup=0.0, start=0.04, final=0.0) == 1.0


def test_a_warm_up_shorter_than_a_step_changes_nothing() -> None:
    assert factors(partial(schedules.linear, warmup=0.01, final=0.0))[0] == 1.0


def test_cosine_equals_torch_cosine_annealing() -> None:
    expected = torch_factors(lambda it: lr_scheduler.CosineAnnealingLR(it, TOTAL, eta_min=0.2), TOTAL + 1)
    assert factors(partial(schedules.cosine, warmup=0.0, final=0.2)) == pytest.approx(expected, abs=1e-12)


def test_linear_equals_torch_linear_lr() -> None:
    expected = torch_factors(lambda it: lr_scheduler.LinearLR(it, 1.0, 0.2, total_iters=TOTAL), TOTAL + 1)
    assert factors(partial(schedules.linear, warmup=0.0, final=0.2)) == pytest.approx(expected, abs=1e-12)


def test_step_equals_torch_multi_step_lr() -> None:
    expected = torch_factors(lambda it: lr_scheduler.MultiStepLR(it, [10, 30], gamma=0.5), TOTAL + 1)
    found = factors(partial(schedules.step, warmup=0.0, milestones=[0.25, 0.75], gamma=0.5))
    assert found == pytest.approx(expected, abs=1e-12)


def test_onecycle_equals_torch_one_cycle_lr() -> None:
    # torch puts its peak one step before pct_start * total_steps, and its end one before total_steps.
    def make(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
        share = (0.3 * TOTAL + 1) / (TOTAL + 1)
        return lr_scheduler.OneCycleLR(
            optimizer, 1.0, TOTAL + 1, pct_start=share, div_factor=25, final_div_factor=4, cycle_momentum=False
        )

    found = factors(partial(schedules.onecycle, warmup=0.3, start=0.04, final=0.01))
    assert found == pytest.approx(torch_factors(make, TOTAL + 1), abs=1e-12)


def test_a_constant_warm_up_equals_torch_linear_lr() -> None:
    expected = torch_factors(lambda it: lr_scheduler.LinearLR(it, 0.1, 1.0, total_iters=9), TOTAL + 1)
    assert factors(partial(schedules.constant, warmup=0.25)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("total", "cycles", "growth"), [(40, 4, 1), (70, 3, 2), (120, 4, 3), (21, 3, 1)])
def test_restarts_equal_torch_cosine_annealing_warm_restarts(total: int, cycles: int, growth: int) -> None:
    first = total // sum(growth**cycle for cycle in range(cycles))
    expected = torch_factors(lambda it: lr_scheduler.CosineAnnealingWarmRestarts(it, first, growth, eta_min=0.1), total)
    found = factors(partial(schedules.restarts, warmup=0.0, cycles=cycles, growth=float(growth), final=0.1), total)
    assert found[:-1] == pytest.approx(expected, abs=1e-12)
    assert found.count(1.0) == cycles


def test_one_cycle_of_restarts_is_cosine() -> None:
    once = partial(schedules.restarts, warmup=0.1, cycles=1, growth=2.0, final=0.1)
    assert factors(once) == pytest.approx(factors(ALL["cosine"]), abs=1e-12)


@pytest.mark.parametrize("total", range(90, 111))
def test_restarts_fall_from_the_full_rate_in_each_cycle_of_any_length(total: int) -> None:
    found = factors(partial(schedules.restarts, warmup=0.2, cycles=4, growth=1.5, final=0.0), total)
    rises = [step for step in range(total // 5 + 1, total) if found[step] > found[step - 1]]
    assert len(rises) == 3
    assert all(found[step] > 0.95 for step in rises)
    assert found[-1] == pytest.approx(0, abs=1e-12)


def plateau_of_torch(scores: list[float], **options: Any) -> list[float]:
    """The rate after each score from ReduceLROnPlateau on an optimizer with rate 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", threshold_mode="rel", **options)
    found = []
    for score in scores:
        scheduler.step(score)
        found.append(float(optimizer.param_groups[0]["lr"]))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_plateau_equals_torch_reduce_lr_on_plateau(seed: int) -> None:
    """Which counts the epochs that it tolerates: one less than those after which the rate falls."""
    chance = random.Random(seed)
    scores = [1 - 0.9**epoch + chance.uniform(0, 0.1) for epoch in range(60)]
    options = {"factor": chance.choice((0.1, 0.5)), "threshold": chance.choice((0.0, 1e-4, 0.02))}
    patience = chance.randint(1, 5)
    expected = plateau_of_torch(scores, patience=patience - 1, min_lr=0.01, eps=0, **options)
    ours = partial(schedules.plateau, 0, TOTAL, warmup=0.0, patience=patience, final=0.01, **options)
    assert [ours(scores[: epoch + 1]) for epoch in range(60)] == pytest.approx(expected, abs=1e-12)


PLATEAU = partial(schedules.plateau, 0, TOTAL, warmup=0.0, factor=0.1, patience=2, threshold=0.01, final=0.001)


def test_plateau_without_a_validation_so_far_has_the_full_rate() -> None:
    assert PLATEAU([]) == 1.0


def test_plateau_falls_after_each_patience_and_not_below_its_smallest_factor() -> None:
    found = [PLATEAU([0.5] * epochs) for epochs in range(1, 12)]
    assert found == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01, *[0.001] * 5])


def test_plateau_takes_no_notice_of_an_improvement_below_its_threshold() -> None:
    assert PLATEAU([0.5, 0.504, 0.5049]) == 0.1
    assert PLATEAU([0.5, 0.504, 0.506]) == 1.0
    assert PLATEAU([-0.5, -0.496, -0.4951]) == 0.1  # a loss of 0.4951
    assert PLATEAU([-0.5, -0.496, -0.494]) == 1.0


def test_an_epoch_without_finite_metrics_is_no_improvement() -> None:
    assert PLATEAU([None, 0.1, None, None]) == 0.1
    assert PLATEAU([None, None]) == 0.1
    assert PLATEAU([None, 0.1, None, 0.2]) == 1.0


def test_the_first_number_of_a_tasks_score_is_the_metric_that_plateau_waits_for() -> None:
    metrics = {"accuracy": 0.5, "loss": 2.0, "mae": 1.0, "r2": 0.0}
    assert Classification(0.0).score(metrics)[0] == 0.5
    assert Regression().score(metrics)[0] == -2.0
