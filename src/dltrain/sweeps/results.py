"""Results of a sweep: results.csv with a row for each job, and the ranked table at its end."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from dltrain.config.hints import is_number
from dltrain.report import significance
from dltrain.report.console import format_number, new_table, show_table
from dltrain.report.run_rows import Metric, RunRow, SeedGroup, differing_keys, group_by_seed
from dltrain.runtime import atomic_files
from dltrain.runtime.errors import printable
from dltrain.sweeps.journal import Entry

SPLITS = ("train_", "val_", "test_")
MOST_ROWS = 30  # of a table on the terminal; results.csv has them all


def row(entry: Entry) -> dict[str, Any]:
    """Return the row of a job that has ended."""
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
    """Write results.csv atomically: a row for each job that has ended, ordered by number."""
    rows = [row(entry) for entry in sorted(entries, key=lambda entry: entry.number) if entry.outcome is not None]
    names = [name for each in rows for name in each if name.startswith(SPLITS)]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(["job", "overrides", "status", *names, "seconds", "folder"])))
    writer.writeheader()
    writer.writerows(rows)
    atomic_files.atomic_write(path, text.getvalue().encode(errors="backslashreplace"))


def ranked(entries: Iterable[Entry], by: Metric) -> list[Entry]:
    """Return the jobs that have ended, the best first."""
    return sorted((entry for entry in entries if entry.outcome), key=lambda entry: by.key(entry.metrics))


def names_of(metrics: Iterable[Mapping[str, float]], by: Metric) -> list[str]:
    """Return the names of all metrics, with `by` first."""
    return sorted(dict.fromkeys(name for values in metrics for name in values), key=lambda name: name != by.name)


def table(entries: Sequence[Entry], by: Metric) -> Table:
    """Return the ranked table of the jobs that have ended, without the overrides that all share."""
    ended = ranked(entries, by)
    failed = sum(entry.failed for entry in ended)
    names = names_of((entry.metrics for entry in ended), by)
    shared = set.intersection(*(set(entry.overrides) for entry in ended)) if len(ended) > 1 else set()
    best = f", best {by.name} first" if by.name in names else ""
    jobs = f"{len(ended)} job{'s' * (len(ended) != 1)}"
    table = new_table(f"{jobs}, {failed} failed{best}", ("job", "overrides", "status"), (*names, "seconds"))
    for entry in ended[:MOST_ROWS]:
        values = row(entry)
        metrics = [format_number(values[name]) if name in values else "" for name in names]
        overrides = " ".join(override for override in entry.overrides if override not in shared)
        status, seconds = printable(values["status"]), f"{values['seconds']:.1f}"
        table.add_row(str(entry.number), printable(overrides), status, *metrics, seconds)
    if len(ended) > MOST_ROWS:
        table.caption = f"{len(ended) - MOST_ROWS} more in results.csv"
    return table


def seed_table(groups: Sequence[SeedGroup], keys: Sequence[str], by: Metric, most: int | None = None) -> Table:
    """Return a table of means over seeds or folds with their 95 % intervals, the best first, of at most `most` rows."""
    ordered = sorted(groups, key=lambda group: by.key(group.mean))
    names = names_of((group.mean for group in ordered), by)
    title = f"over {significance.repeated_over(keys)}: mean ± half of its 95 % interval"
    table = new_table(title, ["overrides"], ["n", *names])
    for group in ordered[:most]:
        metrics = [with_spread(group, name) if name in group.mean else "" for name in names]
        table.add_row(printable(group.label(keys)) or "all", str(group.count), *metrics)
    if most is not None and len(ordered) > most:
        table.caption = f"{len(ordered) - most} more in report.html"
    return table


def with_spread(group: SeedGroup, name: str) -> str:
    """Return a mean as text, such as 0.9812 ± 0.0031."""
    spread = group.spread[name]
    return format_number(group.mean[name]) + ("" if math.isnan(spread) else f" ± {format_number(spread)}")


def show(entries: Sequence[Entry], jobs: Sequence[RunRow], by: Metric) -> None:
    """Print the ranked table and, if jobs differ only in their seed or fold, the means and how sure a difference is."""
    show_table(table(entries, by))
    keys = differing_keys(jobs)
    show_repeated(group_by_seed(jobs, keys), keys, by, MOST_ROWS)


def show_repeated(groups: Sequence[SeedGroup], keys: Sequence[str], by: Metric, most: int | None = None) -> None:
    """Print means over seeds or folds, if there are several, and what paired tests say of the differences."""
    if any(group.count > 1 for group in groups):
        show_table(seed_table(groups, keys, by, most))
        for line in significance.sentences(groups, keys, by)[: most and most + 1]:
            print(printable(line))


def run_rows(folder: Path, entries: Iterable[Entry]) -> list[RunRow]:
    """Return a row for each ended job, by its overrides: they say what differs without reading a thousand configs."""
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
    if isinstance(value, str) and is_number(value):  # YAML reads 1e-3 as text
        return float(value)
    return value if isinstance(value, int | float | str | list) else text
