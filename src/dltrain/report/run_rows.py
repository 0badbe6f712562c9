"""Several runs side by side: a row for each, the metric that ranks them, how they differ, and means over seeds."""

import functools
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from dltrain.config.hints import to_cli

CONFIDENCE = 0.95
FEWEST = 3  # values for an interval: that of two is a dozen times as wide as their distance
UNINFORMATIVE = ("name", "sweep", "resume", "trust", "logger", "report")  # keys that say nothing about a result


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
    def date(self) -> str:
        """The day on which the run began, by the name of its folder; empty if that has none."""
        return (re.findall(r"\d{4}-\d\d-\d\d", str(self.folder.parent)) or [""])[-1]

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


def metric(metrics: Iterable[Mapping[str, Any]], name: str | None = None, direction: str | None = None) -> Metric:
    """Return the metric `name`; by default the first that exists, of val, test and train, accuracy before loss."""
    known = {key for values in metrics for key in values}
    usual = [f"{split}_{key}" for split in ("val", "test", "train") for key in ("accuracy", "loss")]
    name = name or next((key for key in usual if key in known), "val_accuracy")
    return Metric(name, direction == "minimize" if direction else not name.endswith(("accuracy", "r2")))


@dataclass(frozen=True)
class SeedGroup:
    """Runs that differ only in their seed; `spread` is half the 95 % interval of each mean, NaN for one or two runs."""

    config: dict[str, Any]
    count: int
    mean: dict[str, float]
    spread: dict[str, float]

    def label(self, keys: Sequence[str]) -> str:
        """Return `key=value` for each of the keys but the seed."""
        return " ".join(f"{key}={value_text(self.config.get(key))}" for key in keys if key != "seed")


@dataclass(frozen=True)
class RunGroup:
    """Runs on one data set, the best by a metric first; `keys` are those whose values differ between them."""

    data: str
    runs: list[RunRow]
    by: Metric
    keys: list[str]

    @functools.cached_property
    def seeds(self) -> list[SeedGroup]:
        """The means over seeds, the best first; of a single run there is none."""
        groups = [group for group in group_by_seed(self.runs, self.keys) if group.count > 1]
        return sorted(groups, key=lambda group: self.by.key(group.mean))

    def title(self, noun: str = "run") -> str:
        """Return what the group holds: digits, mlp: 12 runs, 1 failed, best val_accuracy first."""
        models = {model_name(run.config) for run in self.runs}
        what = ", ".join(filter(None, (self.data, *(models if len(models) == 1 else ()))))
        failed = sum(run.status == "failed" for run in self.runs)
        best = f", best {self.by.name} first" if any(self.by.name in run.metrics for run in self.runs) else ""
        failures = f", {failed} failed" if failed or noun == "job" else ""
        return f"{what and f'{what}: '}{len(self.runs)} {noun}{'s' * (len(self.runs) != 1)}{failures}{best}"


def group_by_data(runs: Sequence[RunRow], by: Metric | None = None) -> list[RunGroup]:
    """Group runs by their data set, the largest group first; `by` ranks all of them, else the usual metric of each."""
    groups: dict[str, list[RunRow]] = {}
    name = next((name for run in runs if (name := data_name(run.config))), "")
    for run in runs:
        name = data_name(run.config) or name  # a job that failed early has only its overrides
        groups.setdefault(name, []).append(run)
    found = []
    for name, members in groups.items():
        ranks = by or metric([run.metrics for run in members])
        keys = [key for key in differing_keys(members) if key.partition(".")[0] not in UNINFORMATIVE]
        found.append(RunGroup(name, sorted(members, key=lambda run: ranks.key(run.metrics)), ranks, keys))
    return sorted(found, key=lambda group: -len(group.runs))


def model_name(config: Mapping[str, Any]) -> str:
    """Return the architecture of torchvision or the option of `model`; empty if a config by dotted keys has neither."""
    return str(config.get("model.arch") or config.get("model.name") or config.get("model") or "")


def data_name(config: Mapping[str, Any]) -> str:
    """Return the last part of the path to a user's data or the option of `data`; empty as for `model_name`."""
    name = str(config.get("data.name") or config.get("data") or "")
    path = next((config[key] for key in ("data.file", "data.root") if config.get(key)), "")
    return PurePath(str(path)).stem if path and name in ("folder", "table", "arrays", "") else name


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
    """Group the completed runs by all `keys` but the seed; without the seed in `keys`, each run is a group.

    Runs with the same values and the same seed count once.
    """
    groups: dict[Any, dict[str, RunRow]] = {}
    for run in runs:
        if run.is_done:
            values = tuple(repr(run.config.get(key)) for key in keys if key != "seed")
            group = groups.setdefault(values if "seed" in keys else run.folder, {})
            group[repr(run.config.get("seed"))] = run
    return [_seed_group(list(group.values())) for group in groups.values()]


def _seed_group(runs: Sequence[RunRow]) -> SeedGroup:
    names = [name for name in runs[0].metrics if all(name in run.metrics for run in runs)]
    values = {name: [run.metrics[name] for run in runs] for name in names}
    mean = {name: statistics.fmean(each) for name, each in values.items()}
    return SeedGroup(runs[0].config, len(runs), mean, {name: interval(each) for name, each in values.items()})


def interval(values: Sequence[float]) -> float:
    """Return half the width of the 95 % interval of the mean by Student's t (1908).

    NaN for fewer than three values, and if any of them is not finite.
    """
    if len(values) < FEWEST or not all(map(math.isfinite, values)):
        return math.nan
    from scipy.special import stdtrit

    quantile = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))
