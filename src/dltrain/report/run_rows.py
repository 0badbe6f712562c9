"""Several runs side by side: a row for each, the metric that ranks them, how they differ, means over seeds or folds."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dltrain.config.hints import to_cli
from dltrain.config.metric_names import smaller_is_better

CONFIDENCE = 0.95
Rows = Iterable[Mapping[str, Any]]
REPEATS = {"seed": "seeds", "data.fold": "folds"}  # keys that repeat a setting, and what their values are called


@dataclass(frozen=True)
class RunRow:
    """One of several runs: its config by dotted keys, its metrics by split (val_accuracy), and why it failed.

    With `is_part` the config is only the overrides: the run failed before it had written its config.
    """

    folder: Path
    label: str
    config: dict[str, Any]
    status: str
    metrics: dict[str, float]
    seconds: float
    reason: str = ""
    is_part: bool = False

    @property
    def is_done(self) -> bool:
        """True if the metrics are those of a whole run."""
        return bool(self.metrics) and self.status not in ("failed", "interrupted", "pruned", "not done")


@dataclass(frozen=True)
class Metric:
    """The metric that ranks jobs, such as val_accuracy."""

    name: str
    smaller_is_better: bool

    def key(self, metrics: Mapping[str, Any]) -> float:
        """Return a key that sorts the best first, and jobs without the metric last."""
        value = metrics.get(self.name)
        if not isinstance(value, int | float) or math.isnan(value):
            return math.inf
        return value if self.smaller_is_better else -value


def metric(rows: Rows, name: str | None = None, direction: str | None = None, chosen: str | None = None) -> Metric:
    """Return the metric `name`; by default the first that exists, of val, test and train: `chosen`, accuracy, loss."""
    known = {key for values in rows for key in values}
    usual = [f"{split}_{key}" for split in ("val", "test", "train") for key in (chosen, "accuracy", "loss") if key]
    name = name or next((key for key in usual if key in known), "val_accuracy")
    return Metric(name, direction == "minimize" if direction else smaller_is_better(name))


@dataclass(frozen=True)
class SeedGroup:
    """Runs by the seed and fold in which they differ; `spread` is half the 95 % interval of a mean, NaN for one run."""

    config: dict[str, Any]
    count: int
    mean: dict[str, float]
    spread: dict[str, float]
    runs: dict[str, RunRow]

    def label(self, keys: Sequence[str]) -> str:
        """Return `key=value` for each of the keys but the seed and the fold."""
        return " ".join(f"{key}={value_text(self.config.get(key))}" for key in keys if key not in REPEATS)


def value_text(value: Any) -> str:
    """Return a value of a config as it is typed; a dash for null, which also stands for a key that a run lacks."""
    return "–" if value is None else to_cli(value)


def differing_keys(runs: Sequence[RunRow]) -> list[str]:
    """Return the keys whose values are not the same in all runs.

    A key that a run lacks differs too, if the whole config of that run is known.
    """
    keys = dict.fromkeys(key for run in runs for key in run.config)

    def values(key: str) -> set[str]:
        return {repr(run.config.get(key, "–")) for run in runs if key in run.config or not run.is_part}

    return [key for key in keys if len(values(key)) > 1]


def group_by_seed(runs: Sequence[RunRow], keys: Sequence[str]) -> list[SeedGroup]:
    """Group the completed runs by all `keys` but the seed and the fold; without these in `keys`, each run is a group.

    Runs with the same values, the same seed and the same fold count once.
    """
    groups: dict[Any, dict[str, RunRow]] = {}
    for run in runs:
        if run.is_done:
            values = tuple(repr(run.config.get(key)) for key in keys if key not in REPEATS)
            group = groups.setdefault(values if REPEATS.keys() & set(keys) else run.folder, {})
            group[repr([run.config.get(key) for key in REPEATS])] = run
    return [_seed_group(group) for group in groups.values()]


def _seed_group(by_repeat: dict[str, RunRow]) -> SeedGroup:
    runs = list(by_repeat.values())
    names = [name for name in runs[0].metrics if all(name in run.metrics for run in runs)]
    values = {name: [run.metrics[name] for run in runs] for name in names}
    mean = {name: statistics.fmean(each) for name, each in values.items()}
    spread = {name: interval(each) for name, each in values.items()}
    return SeedGroup(runs[0].config, len(runs), mean, spread, by_repeat)


def interval(values: Sequence[float]) -> float:
    """Return half the width of the 95 % interval of the mean by Student's t (1908).

    NaN for a single value, and if any of the values is not finite.
    """
    from scipy.special import stdtrit

    if len(values) < 2 or not all(map(math.isfinite, values)):
        return math.nan
    quantile = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))
