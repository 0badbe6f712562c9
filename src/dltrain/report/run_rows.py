"""Several runs side by side: a row for each, the metric that ranks them, how they differ, means over seeds or folds."""

import functools
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from dltrain.config.hints import to_cli
from dltrain.config.metric_names import shared_metric, smaller_is_better

CONFIDENCE = 0.95
Rows = Iterable[Mapping[str, Any]]
REPEATS = {"seed": "seeds", "data.fold": "folds"}  # keys that repeat a setting, and what their values are called
FEWEST = 3  # values for an interval, pairs of a test: that of two is a dozen times as wide as their distance
# Keys that say nothing about a result.
UNINFORMATIVE = ("name", "tags", "note", "sweep", "resume", "trust", "logger", "report")


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


def metric(rows: Rows, name: str | None = None, direction: str | None = None, chosen: str | None = None) -> Metric:
    """Return the metric `name`; by default the first that exists, of val, test and train: `chosen`, accuracy, loss."""
    known = {key for values in rows for key in values}
    usual = [f"{split}_{key}" for split in ("val", "test", "train") for key in (chosen, "accuracy", "loss") if key]
    name = name or next((key for key in usual if key in known), "val_accuracy")
    return Metric(name, direction == "minimize" if direction else smaller_is_better(name))


class SeedGroup:
    """Runs that differ in seed or fold only; `spread` is half the 95 % interval of a mean, NaN for one or two runs."""

    def __init__(self, runs: dict[str, RunRow]) -> None:
        first, *others = runs.values()
        self.runs, self.config, self.count = runs, first.config, len(runs)
        names = [name for name in first.metrics if all(name in run.metrics for run in others)]
        values = {name: [run.metrics[name] for run in runs.values()] for name in names}
        self.mean = {name: statistics.fmean(each) for name, each in values.items()}
        self.spread = {name: interval(each) for name, each in values.items()}


@dataclass(frozen=True)
class RunGroup:
    """Runs on one data set, the best by a metric first; `keys` are those whose values differ between them."""

    data: str
    runs: list[RunRow]
    by: Metric
    keys: list[str]

    @functools.cached_property
    def settings(self) -> list[SeedGroup]:
        """The means over seeds and folds, the best first."""
        return sorted(group_by_seed(self.runs, self.keys), key=lambda it: self.by.key(it.mean))

    @property
    def seeds(self) -> list[SeedGroup]:
        """The settings that have several runs."""
        return [it for it in self.settings if it.count > 1]

    @property
    def over(self) -> str:
        """What the runs of a setting differ in: seeds, folds, or seeds × folds."""
        return " × ".join(REPEATS[key] for key in REPEATS if key in self.keys)

    def is_implied(self, key: str) -> bool:
        """True if a key differs only because one option of its group has it and another does not."""
        name = f"{key.partition('.')[0]}.name"
        if name not in self.keys or all(key in run.config or run.is_part for run in self.runs):
            return False
        pairs = {(repr(run.config.get(name)), repr(run.config[key])) for run in self.runs if key in run.config}
        return len(pairs) == len({option for option, _ in pairs})

    @functools.cached_property
    def telling(self) -> list[str]:
        """The keys that tell settings apart."""
        return [key for key in self.keys if key not in REPEATS and not self.is_implied(key)]

    def label(self, setting: SeedGroup, other: SeedGroup | None = None) -> str:
        """Return `key=value` for each of the keys that tell a setting from another one, or from all others."""
        values = setting.config
        keys = [key for key in self.telling if other is None or values.get(key) != other.config.get(key)]
        return " ".join(f"{key}={value_text(values.get(key))}" for key in keys)

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
        chosen = shared_metric(run.config for run in members if run.metrics)
        ranks = by or metric([run.metrics for run in members], chosen=chosen)
        ranked = sorted(members, key=lambda run: ranks.key(run.metrics))
        found.append(RunGroup(name, ranked, ranks, differing_keys(members)))
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
    """Return the telling keys whose values differ; a run that lacks a key differs too, if its whole config is known."""
    keys = dict.fromkeys(key for run in runs for key in run.config if key.partition(".")[0] not in UNINFORMATIVE)

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
    return [SeedGroup(group) for group in groups.values()]


def interval(values: Sequence[float]) -> float:
    """Return half the 95 % interval of the mean (Student, 1908); NaN for fewer than three values, or one not finite."""
    if len(values) < FEWEST or not all(map(math.isfinite, values)):
        return math.nan
    from scipy.special import stdtrit

    quantile = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))
