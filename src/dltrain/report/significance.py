"""How sure a difference between settings is: paired t-tests over the seeds or folds that they share, by Holm."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from dltrain.report.console import format_number
from dltrain.report.run_rows import Metric, SeedGroup, interval, repeated_over

FEWEST = 3  # pairs of a test
LEVEL = 0.05
FRACTIONS = ("accuracy", "f1_macro", "auroc")  # metrics whose differences are shown in points: hundredths


@dataclass(frozen=True)
class Comparison:
    """The best setting against another one; `n` is the number of seeds or folds that both have.

    `difference` is a mean, greater than 0 if the best is better, and `interval` half of its 95 % interval; `p` is
    corrected for the number of comparisons, and NaN if there is no test.
    """

    best: str
    other: str
    n: int
    wins: int
    difference: float
    interval: float
    p: float


def compare(groups: Sequence[SeedGroup], keys: Sequence[str], by: Metric) -> list[Comparison]:
    """Return comparisons of the best setting with each other one that has several runs, the best of these first."""
    several = [group for group in groups if group.count > 1 and math.isfinite(by.key(group.mean))]
    ranked = sorted(several, key=lambda group: (group.count < FEWEST, by.key(group.mean)))
    found, tests = [], []
    for best, other in zip(ranked[:1] * len(ranked), ranked[1:], strict=False):
        shared = [(best.runs[key].metrics, other.runs[key].metrics) for key in best.runs if key in other.runs]
        pairs = [pair for pair in ((by.key(one), by.key(two)) for one, two in shared) if all(map(math.isfinite, pair))]
        gains = [two - one for one, two in pairs]
        tests.append(paired_t_test(pairs))
        mean, wins = statistics.fmean(gains) if gains else math.nan, sum(gain > 0 for gain in gains)
        found.append((best.label(keys), other.label(keys), len(pairs), wins, mean, interval(gains)))
    return [Comparison(*values, p) for values, p in zip(found, holm(tests), strict=True)]


def paired_t_test(pairs: Sequence[tuple[float, float]]) -> float:
    """Return the two-sided p of Student's paired t-test; NaN for fewer than three pairs, or equal differences."""
    from scipy.special import stdtr

    if len(pairs) < FEWEST:
        return math.nan
    differences = [one - two for one, two in pairs]
    deviation = statistics.stdev(differences)
    if deviation <= 1e-12 * max(abs(value) for pair in pairs for value in pair):  # rounding alone
        return math.nan
    t = statistics.fmean(differences) * math.sqrt(len(pairs)) / deviation
    return 2 * float(stdtr(len(pairs) - 1, -abs(t)))


def holm(tests: Sequence[float]) -> list[float]:
    """Return each p corrected for their number by Holm's method (1979); NaN stays, and counts for nothing."""
    corrected, largest = list(tests), 0.0
    order = sorted((p, place) for place, p in enumerate(tests) if not math.isnan(p))
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        corrected[place] = largest
    return corrected


def sentences(groups: Sequence[SeedGroup], keys: Sequence[str], by: Metric) -> list[str]:
    """Return a title and a sentence for each comparison; empty if there is nothing to compare."""
    found, over = compare(groups, keys, by), repeated_over(keys)
    tested = sum(not math.isnan(each.p) for each in found)
    title = f"{by.name}, the best setting against each other one (paired t-test over {over}):"
    return [title, *(_sentence(each, over, by, tested) for each in found)] if found else []


def _sentence(it: Comparison, over: str, by: Metric, tested: int) -> str:
    def shown(value: float) -> str:
        return f"{100 * value:.2f}" if by.name.endswith(FRACTIONS) else format_number(value)

    points = " points" if by.name.endswith(FRACTIONS) else ""
    if it.n < FEWEST:
        return f"{it.best} and {it.other}: a test needs {FEWEST} {over} that both have, there are {it.n}"
    if math.isnan(it.p):
        gain = f"by {shown(it.difference)}{points} in each of {it.n} {over}"
        return f"{it.best} and {it.other}: no test, as they differ {gain}"
    if it.p < LEVEL:
        verdict = f"{it.best} better than {it.other} in {it.wins} of {it.n} {over}"
    else:
        verdict = f"{it.best} not clearly better than {it.other}: better in {it.wins} of {it.n} {over}"
    p = "p < 0.001" if it.p < 0.001 else f"p = {it.p:.2g}"
    difference = f"{shown(it.difference)} ± {shown(it.interval)}{points}"
    return f"{verdict}, difference {difference}, {p}{' (Holm)' if tested > 1 else ''}"
