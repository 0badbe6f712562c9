"""Learning-rate schedules: pure functions of the step, so that a resume needs only the step.

Each public function is an option of the group `schedule`: given the number of steps done and the total number of
steps, it returns the factor on `optim.lr`. Durations are fractions of the run, so that they suit any `epochs`.
"""

import math
from typing import Annotated

from annotated_types import Interval

Fraction = Annotated[float, Interval(ge=0, lt=1)]
Factor = Annotated[float, Interval(ge=0, le=1)]


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
