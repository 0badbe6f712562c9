"""How sure a difference between settings is: paired t-tests over the seeds or folds that they share."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dltrain.report.run_rows import FEWEST, RunGroup, interval

LEVEL = 0.05
FRACTIONS = ("accuracy", "f1_macro", "auroc")  # metrics whose differences are shown in points, which are hundredths


@dataclass(frozen=True)
class Comparison:
    """How much better the best setting is over `n` shared seeds or folds, ± `interval` (95 %); p by Holm, or NaN."""

    best: str
    other: str
    n: int
    wins: int
    difference: float
    interval: float
    p: float


def compare(group: RunGroup) -> list[Comparison]:
    """Return comparisons of the best setting with each other one that has several runs, the best of these first."""
    by, found = group.by, []
    ranked = sorted([it for it in group.seeds if math.isfinite(by.key(it.mean))], key=lambda it: it.count < FEWEST)
    for best, other in zip(ranked[:1] * len(ranked), ranked[1:], strict=False):
        shared = [(other.runs[key], run) for key, run in best.runs.items() if key in other.runs]
        pairs = [(by.key(one.metrics), by.key(two.metrics)) for one, two in shared]
        gains = [one - two for one, two in pairs]
        mean, wins = statistics.fmean(gains) if gains else math.nan, sum(gain > 0 for gain in gains)
        labels = group.label(best, other), group.label(other, best)
        found.append(Comparison(*labels, len(gains), wins, mean, interval(gains), paired_t_test(pairs)))
    return [replace(it, p=p) for it, p in zip(found, holm([it.p for it in found]), strict=True)]


def paired_t_test(pairs: Sequence[tuple[float, float]]) -> float:
    """Return the two-sided p of Student's paired t-test; NaN for fewer than three pairs, or equal differences."""
    from scipy.special import stdtr

    differences = [one - two for one, two in pairs]
    rounding = 1e-12 * max((abs(value) for pair in pairs for value in pair), default=0)
    if len(pairs) < FEWEST or (deviation := statistics.stdev(differences)) <= rounding:
        return math.nan
    t = statistics.fmean(differences) * math.sqrt(len(pairs)) / deviation
    return 2 * float(stdtr(len(pairs) - 1, -abs(t)))


def holm(tests: Sequence[float]) -> list[float]:
    """Return each p corrected for their number by Holm's method (1979); NaN stays, and counts for nothing."""
    steps = [(p, min(1.0, p * sum(other >= p for other in tests))) for p in tests]
    return [max((step for other, step in steps if other <= p), default=p) for p in tests]


def sentences(group: RunGroup) -> list[str]:
    """Return a title and a sentence for each comparison; empty if there is nothing to compare."""
    found, over, by = compare(group), group.over, group.by
    scale, points = (100, " points") if by.name.endswith(FRACTIONS) else (1, "")
    method = " (Holm)" if sum(not math.isnan(it.p) for it in found) > 1 else ""
    lines = [f"{by.name}, the best setting against each other one (paired t-test over {over}):"]
    for it in found:
        gain = f"{scale * it.difference:.3g}"
        if it.n < FEWEST:
            line = f"{it.best} and {it.other}: a test needs {FEWEST} {over} that both have, there are {it.n}"
        elif math.isnan(it.p):
            line = f"{it.best} and {it.other}: no test, as they differ by {gain}{points} in each of {it.n} {over}"
        else:
            line = f"{it.best} {'not clearly ' * (it.p >= LEVEL)}better than {it.other}: in {it.wins} of {it.n} {over}"
            line += f", difference {gain} ± {scale * it.interval:.3g}{points}, "
            line += ("p < 0.001" if it.p < 0.001 else f"p = {it.p:.2g}") + method
        lines.append(line)
    return lines if found else []
