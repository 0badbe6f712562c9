"""Learning-rate schedules: pure functions of the step, so that a resume needs only the step.

Each public function is an option of the group `schedule`: given the number of steps done and the total number of
steps, it returns the factor on `optim.lr`. Durations are fractions of the run, so that they suit any `epochs`. One that
has the argument `scores` also gets the validation scores of all epochs so far, which checkpoints hold.
"""

import math
from collections.abc import Sequence
from typing import Annotated

from annotated_types import Interval

Fraction = Annotated[float, Interval(ge=0, lt=1)]
Factor = Annotated[float, Interval(ge=0, le=1)]
Cycles = Annotated[int, Interval(ge=1, le=100)]
Growth = Annotated[float, Interval(ge=1, le=10)]


def constant(step: int, total_steps: int, *, warmup: Fraction) -> float:
    """Constant rate, after an optional linear warm-up.

    Args:
        warmup: fraction of the run in which the rate rises from zero
    """
    return _ramp(step, warmup * total_steps)


def step(step: int, total_steps: int, *, warmup: Fraction, milestones: list[Fraction], gamma: Factor) -> float:
    """Constant rate that is multiplied by gamma at each milestone.

    Args:
        warmup: fraction of the run in which the rate rises from zero
        milestones: fractions of the run after which the rate falls, such as [0.5, 0.75]
        gamma: factor at each milestone
    """
    passed = sum(step >= milestone * total_steps for milestone in milestones)
    return _ramp(step, warmup * total_steps) * gamma**passed


def linear(step: int, total_steps: int, *, warmup: Fraction, final: Factor) -> float:
    """Linear warm-up, then linear decay to `final`.

    Args:
        warmup: fraction of the run in which the rate rises from zero
        final: factor on the rate at the end
    """
    return _ramp(step, warmup * total_steps) * (1 - (1 - final) * _progress(step, total_steps, warmup))


def triangular(step: int, total_steps: int, *, warmup: Fraction, start: Factor, final: Factor) -> float:
    """Linear from `start` up to the full rate, then linear down to `final`.

    Args:
        warmup: fraction of the run in which the rate rises
        start: factor on the rate at the first step
        final: factor on the rate at the end
    """
    peak = warmup * total_steps
    if step < peak:
        return start + (1 - start) * step / peak
    return 1 - (1 - final) * _progress(step, total_steps, warmup)


def cosine(step: int, total_steps: int, *, warmup: Fraction, final: Factor) -> float:
    """Linear warm-up, then half a cosine down (Loshchilov, Hutter: SGDR, 2017).

    Args:
        warmup: fraction of the run in which the rate rises from zero
        final: factor on the rate at the end
    """
    fall = (1 + math.cos(math.pi * _progress(step, total_steps, warmup))) / 2
    return _ramp(step, warmup * total_steps) * (final + (1 - final) * fall)


def restarts(step: int, total_steps: int, *, warmup: Fraction, cycles: Cycles, growth: Growth, final: Factor) -> float:
    """Linear warm-up, then half a cosine down, again and again from the full rate (Loshchilov, Hutter: SGDR, 2017).

    Args:
        warmup: fraction of the run in which the rate rises from zero
        cycles: number of cycles in the rest of the run
        growth: length of a cycle relative to the one before
        final: factor on the rate at the end of a cycle
    """
    first = warmup * total_steps
    length = (total_steps - first) / sum(growth**cycle for cycle in range(cycles))
    for _ in range(cycles - 1):
        if step < first + length * (1 - 1e-9):  # rounding must not delay a restart by a step
            break
        first, length = first + length, length * growth
    fall = (1 + math.cos(math.pi * min(1.0, max(0.0, step - first) / length))) / 2
    return _ramp(step, warmup * total_steps) * (final + (1 - final) * fall)


def plateau(
    step: int,
    total_steps: int,
    scores: Sequence[float | None],
    *,
    warmup: Fraction,
    factor: Factor,
    patience: Annotated[int, Interval(ge=1)],
    threshold: Annotated[float, Interval(ge=0)],
    final: Factor,
) -> float:
    """Constant rate that is multiplied by `factor` each time the validation metric has stopped improving.

    Args:
        warmup: fraction of the run in which the rate rises from zero
        factor: factor each time
        patience: epochs without an improvement after which the rate falls
        threshold: smallest relative change of the metric that counts as an improvement
        final: smallest factor on the rate
    """
    best, stale, falls = None, 0, 0
    for score in scores:  # None for an epoch whose metrics are not finite
        stale += 1
        if score is not None and (best is None or score > best + threshold * abs(best)):
            best, stale = score, 0
        elif stale == patience:
            stale, falls = 0, falls + 1
    return _ramp(step, warmup * total_steps) * max(final, factor**falls)


def onecycle(step: int, total_steps: int, *, warmup: Fraction, start: Factor, final: Factor) -> float:
    """Cosine up from `start` to the full rate, then cosine down to `final` (Smith, Topin: Super-convergence, 2018).

    Args:
        warmup: fraction of the run in which the rate rises
        start: factor on the rate at the first step
        final: factor on the rate at the end
    """
    peak = warmup * total_steps
    if step < peak:
        return start + (1 - start) * (1 - math.cos(math.pi * step / peak)) / 2
    return final + (1 - final) * (1 + math.cos(math.pi * _progress(step, total_steps, warmup))) / 2


def _ramp(step: int, warmup_steps: float) -> float:
    """Return the factor of a linear warm-up: 1/warmup_steps at the first step, 1 at its end."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps > 1 else 1.0


def _progress(step: int, total_steps: int, warmup: float) -> float:
    """Return the completed fraction, 0 to 1, of the part after the warm-up."""
    first = warmup * total_steps
    return min(1.0, max(0.0, (step - first) / max(1.0, total_steps - first)))
