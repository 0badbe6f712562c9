"""Results of a sweep: results.csv with a row for each job, and the ranked tables of runs on a terminal."""

import contextlib
import csv
import io
import math
import textwrap
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from rich.cells import set_cell_size

from dltrain.config.hints import is_number
from dltrain.report import console, significance
from dltrain.report.run_rows import RunGroup, RunRow
from dltrain.report.run_table import GAP, Column, columns_of, fitting, shortened
from dltrain.runtime import atomic_files
from dltrain.runtime.errors import printable
from dltrain.sweeps.journal import Entry

SPLITS = ("train_", "val_", "test_")
MOST_ROWS = 30  # of a table on the terminal
MOST_OF_NAME = 20  # characters of a run's name that are never cut
MOST_NAMES = 8  # of columns that are left out
MOST_FAILURES = 5  # with their reasons


def row(entry: Entry) -> dict[str, Any]:
    """Return the row of a job that has ended."""
    outcome = entry.outcome
    assert outcome is not None
    values = {"job": entry.number, "overrides": " ".join(entry.overrides), "status": outcome.description}
    return values | outcome.metrics | {"seconds": round(outcome.seconds, 3), "folder": Path(outcome.folder).name}


def write_results(path: Path, entries: Iterable[Entry]) -> None:
    """Write results.csv atomically: a row for each job that has ended, ordered by number."""
    rows = [row(entry) for entry in sorted(entries, key=lambda entry: entry.number) if entry.outcome is not None]
    names = [name for each in rows for name in each if name.startswith(SPLITS)]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(["job", "overrides", "status", *names, "seconds", "folder"])))
    writer.writeheader()
    writer.writerows(rows)
    atomic_files.atomic_write(path, text.getvalue().encode(errors="backslashreplace"))


def show(groups: Sequence[RunGroup], noun: str, where: str, asked: Collection[str] = ()) -> None:
    """Print a table of each group of runs and, where they differ only in seed or fold, of means, with what tests say.

    Args:
        noun: what a run is called, such as job
        where: the file that has the rows that are left out
        asked: columns that are always printed, or `all`
    """
    advice = " or ".join(filter(None, ("--columns=NAME,…" if noun == "run" else "", where)))
    for group in groups:
        failures = [f"{run.label}: {run.reason}" for run in group.runs if run.reason][:MOST_FAILURES]
        print_table(group.title(noun), columns_of(group), asked, where, advice, failures)
        if group.seeds:
            title = f"over {group.over}: mean ± half of its 95 % interval (of 3 or more), best {group.by.name} first"
            tests = significance.sentences(group)[: MOST_ROWS + 1]
            print_table(title, columns_of(group, over_seeds=True), asked, where, advice, tests)


def print_table(
    title: str, columns: Sequence[Column], asked: Collection[str], where: str, advice: str, below: Sequence[str] = ()
) -> None:
    """Print the columns that fit into the terminal, if some do not, which these are, and lines `below` them."""
    width, rows = console.columns(), len(columns[0].texts)
    longest = max(MOST_OF_NAME, width // 3)
    columns = [replace(column, texts=column.texts[:MOST_ROWS]) for column in columns]
    columns[0] = replace(columns[0], texts=[shortened(text, longest) for text in columns[0].texts])
    kept = fitting(columns, width, asked)
    heads = zip(*(["", *column.head.split("\n")][-2:] for column in kept), strict=True)
    lines = [*textwrap.wrap(printable(title), width), *(_line(kept, map(printable, texts)) for texts in heads)]
    lines.append("─" * (sum(column.width + GAP for column in kept) - GAP))
    lines += [_line(kept, texts) for texts in zip(*(column.texts for column in kept), strict=True)]
    notes = [f"{rows - MOST_ROWS} more rows: {where}"] if rows > MOST_ROWS else []
    if left := sorted((column for column in columns if column not in kept), key=lambda column: column.rank):
        shown = ", ".join([column.name for column in left[:MOST_NAMES]] + ["…"] * (len(left) > MOST_NAMES))
        notes.append(f"{len(left)} more column{'s' * (len(left) != 1)} ({shown}): {advice}")
    lines += [line for note in [*notes, *below] for line in textwrap.wrap(printable(note), width)]
    with contextlib.suppress(OSError):  # as for the lines of a log
        print(*(line if console.has_boxes() else line.replace("─", "-") for line in lines), "", sep="\n")


def _line(columns: Iterable[Column], texts: Iterable[str]) -> str:
    """Return a line of a table: texts to the left of their columns, numbers to the right."""
    cells = [(text, it.width, it.is_number) for text, it in zip(texts, columns, strict=True)]
    padded = (text.rjust(width) if is_number else set_cell_size(text, width) for text, width, is_number in cells)
    return (" " * GAP).join(padded).rstrip()


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
    return {key: _value(text) for key, _, text in (it.lstrip("+").partition("=") for it in entry.overrides)}


def _value(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text
    if isinstance(value, str) and is_number(value):  # YAML reads 1e-3 as text
        return float(value)
    return value if isinstance(value, int | float | str | list) else text
