"""Learning-rate schedules: pure functions of the step, so that a resume needs only the step.

Each public function is an option of the group `schedule`. Given the number of steps done and the number of steps in
the whole run it returns the factor on `optim.lr`. Lengths are shares of the run, so that they hold for any `epochs`.
"""

import math
from typing import Annotated

from annotated_types import Interval

Fraction = Annotated[float, Interval(ge=0, lt=1)]
Factor = Annotated[float, Interval(ge=0, le=1)]


def constant(step: int, total_steps: int, *, warmup: Fraction) -> float:
    """One rate for the whole run, after an optional linear warm-up.

    Args:
        warmup: share of the run in which the rate climbs from zero
    """
    return _ramp(step, warmup * total_steps)


def step(step: int, total_steps: int, *, warmup: Fraction, milestones: list[Fraction], gamma: Factor) -> float:
    """The rate is multiplied by gamma at each milestone.

    Args:
        warmup: share of the run in which the rate climbs from zero
        milestones: shares of the run after which the rate falls, such as [0.5, 0.75]
        gamma: factor at each milestone
    """
    passed = sum(step >= milestone * total_steps for milestone in milestones)
    return _ramp(step, warmup * total_steps) * gamma**passed


def linear(step: int, total_steps: int, *, warmup: Fraction, final: Factor) -> float:
    """Linear warm-up, then a straight line down.

    Args:
        warmup: share of the run in which the rate climbs from zero
        final: factor on the rate at the end
    """
    return _ramp(step, warmup * total_steps) * (1 - (1 - final) * _progress(step, total_steps, warmup))


def triangular(step: int, total_steps: int, *, warmup: Fraction, start: Factor, final: Factor) -> float:
    """A straight line up from `start` to the full rate, then one down to `final`.

    Args:
        warmup: share of the run in which the rate climbs
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
        warmup: share of the run in which the rate climbs from zero
        final: factor on the rate at the end
    """
    fall = (1 + math.cos(math.pi * _progress(step, total_steps, warmup))) / 2
    return _ramp(step, warmup * total_steps) * (final + (1 - final) * fall)


def onecycle(step: int, total_steps: int, *, warmup: Fraction, start: Factor, final: Factor) -> float:
    """Cosine up from `start` to the full rate, then cosine down to `final` (Smith, Topin: Super-convergence, 2018).

    Args:
        warmup: share of the run in which the rate climbs
        start: factor on the rate at the first step
        final: factor on the rate at the end
    """
    peak = warmup * total_steps
    if step < peak:
        return start + (1 - start) * (1 - math.cos(math.pi * step / peak)) / 2
    return final + (1 - final) * (1 + math.cos(math.pi * _progress(step, total_steps, warmup))) / 2


def _ramp(step: int, warmup_steps: float) -> float:
    """From 1/warmup_steps at the first step to 1 at the end of the warm-up."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps > 1 else 1.0


def _progress(step: int, total_steps: int, warmup: float) -> float:
    """Share done of the part after the warm-up: 0 to 1."""
    first = warmup * total_steps
    return min(1.0, max(0.0, (step - first) / max(1.0, total_steps - first)))
