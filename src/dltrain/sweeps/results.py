"""What a sweep has found: results.csv with a row for each job, and the ranked table at its end."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from dltrain.config.hints import is_number
from dltrain.report.console import format_number, show_table
from dltrain.report.run_rows import RunRow, SeedGroup, differing_keys, group_by_seed
from dltrain.runtime import atomic_files
from dltrain.runtime.errors import printable
from dltrain.sweeps.journal import Entry

SPLITS = ("train_", "val_", "test_")
MOST_ROWS = 30  # of a table on a screen; results.csv has them all


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
        **outcome.metrics,
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
    return sorted((it for it in entries if it.outcome), key=lambda it: by.key(it.metrics))


def names_of(found: Iterable[Mapping[str, float]], by: Metric) -> list[str]:
    """The names of all figures, that which ranks first."""
    return sorted(dict.fromkeys(name for figures in found for name in figures), key=lambda name: name != by.name)


def table(entries: Sequence[Entry], by: Metric) -> Table:
    """The ranked table for a person."""
    ended = ranked(entries, by)
    failed = sum(it.failed for it in ended)
    names = names_of((it.metrics for it in ended), by)
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


def seed_table(groups: Sequence[SeedGroup], keys: Sequence[str], by: Metric, most: int | None = None) -> Table:
    """Return a table of means over seeds with their 95 % intervals, the best first, of at most `most` rows."""
    ordered = sorted(groups, key=lambda group: by.key(group.mean))
    names = names_of((group.mean for group in ordered), by)
    table = Table(title="over seeds: mean ± half of its 95 % interval", title_justify="left")
    table.add_column("overrides", overflow="fold")
    for column in ("n", *map(printable, names)):
        table.add_column(column, justify="right")
    for group in ordered[:most]:
        metrics = [with_spread(group, name) if name in group.mean else "" for name in names]
        table.add_row(printable(group.label(keys)) or "all", str(group.count), *metrics)
    if most is not None and len(ordered) > most:
        table.caption = f"{len(ordered) - most} more in report.html"
    return table


def with_spread(group: SeedGroup, name: str) -> str:
    """Return a mean as it is printed: 0.9812 ± 0.0031."""
    spread = group.spread[name]
    return format_number(group.mean[name]) + ("" if math.isnan(spread) else f" ± {format_number(spread)}")


def show(entries: Sequence[Entry], jobs: Sequence[RunRow], by: Metric) -> None:
    """Print the ranked table; and if jobs differ in their seed alone, means over seeds."""
    show_table(table(entries, by))
    keys = differing_keys(jobs)
    groups = group_by_seed(jobs, keys)
    if any(group.count > 1 for group in groups):
        show_table(seed_table(groups, keys, by, MOST_ROWS))


def run_rows(folder: Path, entries: Iterable[Entry]) -> list[RunRow]:
    """Return the jobs that have ended; their overrides say what differs, a thousand configs need not be read."""
    return [
        RunRow(
            folder / entry.folder,
            f"job {entry.number}",
            overrides_of(entry),
            "failed" if job.failed else job.status,
            job.metrics,
            job.seconds if math.isfinite(job.seconds) else math.nan,
            job.reason,
        )
        for entry in sorted(entries, key=lambda entry: entry.number)
        if (job := entry.outcome) is not None
    ]


def overrides_of(entry: Entry) -> dict[str, Any]:
    """Return the overrides of a job by key."""
    parts = (override.lstrip("+").partition("=") for override in entry.overrides)
    return {key: _value(text) for key, _, text in parts}


def _value(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text
    if isinstance(value, str) and is_number(value):  # YAML takes 1e-3 for a text
        return float(value)
    return value if isinstance(value, int | float | str | list) else text
