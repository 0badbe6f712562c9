"""What a sweep has found: results.csv with a row for each job, and the ranked table at its end."""

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from dltrain.report.console import format_number, show_table
from dltrain.runtime import atomic_files
from dltrain.runtime.errors import printable
from dltrain.sweeps.journal import Entry

SPLITS = ("train_", "val_", "test_")
MOST_ROWS = 30  # of a table on a screen; results.csv has them all
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Metric:
    """The figure that ranks jobs, such as val_accuracy."""

    name: str
    smaller_is_better: bool

    def key(self, figures: Mapping[str, Any]) -> float:
        """Sorts the best first, and what has no such figure last."""
        value = figures.get(self.name)
        if not isinstance(value, int | float) or math.isnan(value):
            return math.inf
        return value if self.smaller_is_better else -value


def metric(found: Iterable[Mapping[str, Any]], name: str | None = None, direction: str | None = None) -> Metric:
    """The figure that is asked for; else the accuracy of the validation, else its loss, else the same of the test."""
    known = {key for figures in found for key in figures}
    usual = [f"{split}_{key}" for split in ("val", "test", "train") for key in ("accuracy", "loss")]
    name = name or next((key for key in usual if key in known), "val_accuracy")
    return Metric(name, direction == "minimize" if direction else not name.endswith(("accuracy", "r2")))


def row(entry: Entry) -> dict[str, Any]:
    """The row of a job that has ended."""
    outcome = entry.outcome
    assert outcome is not None
    values = {
        "job": entry.number,
        "overrides": " ".join(entry.overrides),
        "status": outcome.description,
        **outcome.figures,
    }
    return values | {"seconds": round(outcome.seconds, 3), "folder": Path(outcome.folder).name}


def write_results(path: Path, entries: Iterable[Entry]) -> None:
    """Write results.csv, whole or not at all: a row for each job that has ended, in the order of their numbers."""
    rows = [row(entry) for entry in sorted(entries, key=lambda it: it.number) if entry.outcome is not None]
    names = [name for each in rows for name in each if name.startswith(SPLITS)]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(["job", "overrides", "status", *names, "seconds", "folder"])))
    writer.writeheader()
    writer.writerows(rows)
    atomic_files.atomic_write(path, text.getvalue().encode(errors="backslashreplace"))


def ranked(entries: Iterable[Entry], by: Metric) -> list[Entry]:
    """Jobs that have ended, from best to worst."""
    return sorted((it for it in entries if it.outcome), key=lambda it: by.key(it.figures))


def names_of(found: Iterable[Mapping[str, float]], by: Metric) -> list[str]:
    """The names of all figures, that which ranks first."""
    return sorted(dict.fromkeys(name for figures in found for name in figures), key=lambda name: name != by.name)


def table(entries: Sequence[Entry], by: Metric) -> Table:
    """The ranked table for a person."""
    ended = ranked(entries, by)
    failed = sum(it.failed for it in ended)
    names = names_of((it.figures for it in ended), by)
    shared = set.intersection(*(set(it.overrides) for it in ended)) if len(ended) > 1 else set()
    best = f", best {by.name} first" if by.name in names else ""
    found = Table(title=f"{len(ended)} jobs, {failed} failed{best}", title_justify="left")
    for column in ("job", "overrides", "status"):
        found.add_column(column, overflow="fold")
    for column in (*names, "seconds"):
        found.add_column(column, justify="right")
    for it in ended[:MOST_ROWS]:
        values = row(it)
        figures = [format_number(values[name]) if name in values else "" for name in names]
        words = " ".join(word for word in it.overrides if word not in shared)
        status, seconds = printable(values["status"]), f"{values['seconds']:.1f}"
        found.add_row(str(it.number), printable(words), status, *figures, seconds)
    if len(ended) > MOST_ROWS:
        found.caption = f"{len(ended) - MOST_ROWS} more in results.csv"
    return found


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seed alone; `spread` is half of the 95 % interval of each mean, NaN for one run."""

    words: tuple[str, ...]  # what they have in common, and other groups have not
    count: int
    mean: dict[str, float]
    spread: dict[str, float]


def groups(runs: Iterable[tuple[tuple[str, ...], Mapping[str, float]]]) -> list[Group]:
    """Runs by words, such as their overrides without the seed, each with its figures."""
    by_words: dict[tuple[str, ...], list[Mapping[str, float]]] = {}
    for words, figures in runs:
        by_words.setdefault(words, []).append(figures)
    found = []
    for words, members in by_words.items():
        names = [name for name in members[0] if all(name in figures for figures in members)]
        values = {name: [figures[name] for figures in members] for name in names}
        mean = {name: statistics.fmean(each) for name, each in values.items()}
        found.append(Group(words, len(members), mean, {name: interval(each) for name, each in values.items()}))
    return found


def interval(values: Sequence[float]) -> float:
    """Half the width of the 95 % interval of the mean by Student's t (1908); NaN for a single value or NaN."""
    from scipy.special import stdtrit

    if len(values) < 2 or not all(map(math.isfinite, values)):
        return math.nan
    quantile = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def of_seeds(entries: Iterable[Entry]) -> list[Group]:
    """Jobs that are done, grouped where they differ by `seed` alone; what was drawn twice counts once."""
    whole = {
        it.digest: (tuple(word for word in it.overrides if not word.startswith("seed=")), it.figures)
        for it in entries
        if it.outcome is not None and not it.outcome.code and it.outcome.status != "pruned"
    }
    return groups(whole.values())


def table_of_groups(found: Sequence[Group], by: Metric, most: int | None = None) -> Table:
    """Means over seeds with their 95 % intervals, best first; no more rows than `most`."""
    ordered = sorted(found, key=lambda group: by.key(group.mean))
    names = names_of((group.mean for group in ordered), by)
    shown = Table(title="over seeds: mean ± half of its 95 % interval", title_justify="left")
    shown.add_column("overrides", overflow="fold")
    for column in ("n", *map(printable, names)):
        shown.add_column(column, justify="right")
    shared = set.intersection(*(set(group.words) for group in ordered)) if len(ordered) > 1 else set()
    for group in ordered[:most]:
        figures = [with_spread(group, name) if name in group.mean else "" for name in names]
        words = " ".join(word for word in group.words if word not in shared)
        shown.add_row(printable(words) or "all", str(group.count), *figures)
    if most is not None and len(ordered) > most:
        shown.caption = f"{len(ordered) - most} more in report.html"
    return shown


def with_spread(group: Group, name: str) -> str:
    """A mean as it is printed: 0.9812 ± 0.0031."""
    spread = group.spread[name]
    return format_number(group.mean[name]) + ("" if math.isnan(spread) else f" ± {format_number(spread)}")


def show(entries: Sequence[Entry], by: Metric) -> None:
    """Print the ranked table; and where jobs differ by their seed alone, means over seeds."""
    show_table(table(entries, by))
    found = of_seeds(entries)
    if any(group.count > 1 for group in found):
        show_table(table_of_groups(found, by, MOST_ROWS))
