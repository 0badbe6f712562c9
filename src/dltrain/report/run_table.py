"""Columns of a table of runs, each with a rank by which those that do not fit are left out. Knows no terminal."""

import functools
import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.cells import cell_len

from dltrain.report.console import format_number
from dltrain.report.run_rows import REPEATS, RunGroup, model_name, value_text
from dltrain.runtime.errors import printable

MOST_KEYS = 6  # that are shown without being asked for
LONGEST = 20  # characters of a value
GAP = 2  # blanks between two columns
ALWAYS, EXTRA = 1.0, 100.0  # ranks of a column that is never left out, and of one that is only shown on demand
NAMES = ("model", "model.name", "model.arch", "data", "data.name", "epochs")  # keys that have a place of their own


@dataclass(frozen=True, eq=False)
class Column:
    """A column; the texts are what is printed of the values."""

    name: str
    rank: float
    values: Sequence[Any]
    texts: Sequence[str]
    is_number: bool = False

    @property
    def head(self) -> str:
        """The name in at most two lines."""
        first, dot, last = self.name.rpartition(".")
        return f"{first}\n.{last}" if dot else self.name.replace("_", "\n", 1)

    @functools.cached_property
    def width(self) -> int:
        """The width in cells of a terminal."""
        return max(map(cell_len, [*self.head.split("\n"), *self.texts]))


def columns_of(group: RunGroup, *, over_seeds: bool = False) -> list[Column]:
    """Return all columns of the runs of a group, or of their means over seeds; those in which all agree on demand."""
    rows: Sequence[Any] = group.seeds if over_seeds else group.runs
    metrics = [row.mean if over_seeds else row.metrics for row in rows]
    columns = [] if over_seeds else [text_column("status", 3, [row.status for row in rows])]
    columns.append(text_column("model", 2, [model_name(row.config) or None for row in rows]))
    ranks = [(key, rank) for key, rank in key_ranks(group).items() if not (over_seeds and key in REPEATS)]
    columns += [text_column(key, rank, [row.config.get(key) for row in rows]) for key, rank in ranks]
    by = group.by.name
    names = dict.fromkeys(name for run in group.runs for name in run.metrics)
    splits = sorted(names, key=lambda name: (name != by, name.partition("_")[2] != by.partition("_")[2]))
    for index, name in enumerate(splits):
        spreads = [row.spread.get(name, math.nan) if over_seeds else math.nan for row in rows]
        texts = [mean_text(it[name], spread) if name in it else "" for it, spread in zip(metrics, spreads, strict=True)]
        rank = (ALWAYS, 5.5)[index] if index < 2 else 11 + index
        columns.append(Column(name, rank, [it.get(name) for it in metrics], texts, True))
    columns.append(text_column("epochs", 6.5, [row.config.get("epochs") for row in rows]))
    if over_seeds:
        first = Column("n", 4.5, [row.count for row in rows], [str(row.count) for row in rows], True)
    else:
        first = Column("run", ALWAYS, [row.label for row in rows], [printable(row.label) for row in rows])
        seconds = ["" if math.isnan(row.seconds) else f"{row.seconds:.1f}" for row in rows]
        columns.append(Column("seconds", 7.5, [row.seconds for row in rows], seconds, True))
        rank = EXTRA if all(row.date in row.label for row in rows) else 8.5
        columns.append(text_column("date", rank, [row.date for row in rows]))
    agree = [replace(it, rank=EXTRA) if not it.is_number and len(set(it.texts)) == 1 else it for it in columns]
    return [column for column in [first, *agree] if any(text not in ("", "–") for text in column.texts)]


def fitting(columns: Sequence[Column], width: int, asked: Collection[str] = ()) -> list[Column]:
    """Return the columns that fit into a width, the useful ones first; those `asked` for, or `all`, always stay."""
    ranks = {column: 0 if {column.name, "all"} & set(asked) else column.rank for column in columns}
    kept, free = set(), width + GAP
    for column, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if rank <= ALWAYS or (rank < EXTRA and column.width + GAP <= free):
            kept.add(column)
            free -= column.width + GAP
    return [column for column in columns if column in kept]


def key_ranks(group: RunGroup) -> dict[str, float]:
    """Return the keys that differ with their ranks, those that tell most runs apart first; seed and fold after them."""

    def sameness(key: str) -> tuple[bool, float]:
        counts = Counter(repr(run.config.get(key)) for run in group.runs).values()
        return key in REPEATS, sum(count * math.log(count) for count in counts)  # falls with the entropy

    ordered = sorted((key for key in group.keys if key not in NAMES), key=sameness)
    informative = [key for key in ordered if not group.is_implied(key) and not _is_path(key, group)]
    chosen = (informative or ordered)[:MOST_KEYS]
    return {key: 5 + chosen.index(key) if key in chosen else EXTRA for key in [*chosen, *ordered]}


def _is_path(key: str, group: RunGroup) -> bool:
    return any(isinstance(value := run.config.get(key), str) and ("/" in value or "\\" in value) for run in group.runs)


def mean_text(mean: float, spread: float) -> str:
    """Return a mean as text, such as 0.9812 ± 0.0031: both with the same number of decimals."""
    text = format_number(mean)
    if not math.isfinite(spread):
        return text
    decimals = len(text.partition(".")[2])
    return f"{text} ± {format_number(spread) if 'e' in text else f'{spread:,.{decimals}f}'}"


def shortened(text: str, longest: int = LONGEST) -> str:
    """Return the last `longest` characters of a text, which say most about a path or a run."""
    return text if len(text) <= longest else f"…{text[1 - longest :]}"


def text_column(name: str, rank: float, values: Sequence[Any]) -> Column:
    """Return a column of values as texts of limited length."""
    return Column(name, rank, values, [shortened(printable(value_text(value))) for value in values])
