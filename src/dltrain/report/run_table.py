"""Columns of a table of runs, each with a rank by which those that do not fit are left out. Knows no terminal."""

import functools
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.cells import cell_len

from dltrain.report.console import format_number
from dltrain.report.run_rows import Metric, RunGroup, RunRow, SeedGroup, model_name, value_text
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


def run_columns(group: RunGroup) -> list[Column]:
    """Return all columns of runs that say something: name, status, model, keys, metrics, epochs, seconds and date."""
    runs = group.runs
    statuses = [run.reason or run.status for run in runs]
    seconds = [run.seconds for run in runs]
    dates = [run.date for run in runs]
    is_in_name = all(run.date in run.label for run in runs)
    ends = [
        Column("seconds", 7.5, seconds, ["" if math.isnan(it) else f"{it:.1f}" for it in seconds], True),
        Column("date", EXTRA if is_in_name else 8.5, dates, dates),
    ]
    names = [run.label for run in runs]
    first = Column("run", ALWAYS, names, list(map(printable, names)))
    columns = [first, _texts("status", 3 if set(statuses) != {"done"} else EXTRA, statuses)]
    metrics = [{name: format_number(value) for name, value in run.metrics.items()} for run in runs]
    return [*columns, *_columns(group, runs, metrics, [run.metrics for run in runs], ends)]


def seed_columns(group: RunGroup) -> list[Column]:
    """Return all columns of the means over seeds: model, keys, number of runs and metrics."""
    seeds = group.seeds
    metrics = [{name: mean_text(value, it.spread[name]) for name, value in it.mean.items()} for it in seeds]
    counts = [it.count for it in seeds]
    first = Column("n", 4.5, counts, list(map(str, counts)), True)
    return [first, *_columns(group, seeds, metrics, [it.mean for it in seeds], [])]


def fitting(columns: Iterable[Column], width: int, asked: Collection[str] = ()) -> list[Column]:
    """Return the columns that fit into a width, the useful ones first; those `asked` for, or `all`, always stay."""
    kept, free = set(), width + GAP
    for column in sorted(columns, key=lambda column: 0 if {column.name, "all"} & set(asked) else column.rank):
        is_wanted = column.rank <= ALWAYS or bool({column.name, "all"} & set(asked))
        if is_wanted or (column.rank < EXTRA and column.width + GAP <= free):
            kept.add(column)
            free -= column.width + GAP
    return [column for column in columns if column in kept]


def key_ranks(group: RunGroup) -> dict[str, float]:
    """Return the keys that differ with their ranks, those that tell most runs apart first; the seed after them."""

    def disorder(key: str) -> tuple[bool, float]:
        counts = Counter(repr(run.config.get(key)) for run in group.runs).values()
        return key == "seed", sum(count * math.log(count) for count in counts)  # entropy, falling

    ordered = sorted((key for key in group.keys if key not in NAMES), key=disorder)
    told = [key for key in ordered if not is_implied(key, group) and not _is_path(key, group)]
    chosen = (told or ordered)[:MOST_KEYS]
    return {key: 5 + chosen.index(key) if key in chosen else EXTRA for key in [*chosen, *ordered]}


def is_implied(key: str, group: RunGroup) -> bool:
    """True if a key differs only because one option of its group has it and another does not."""
    name = f"{key.partition('.')[0]}.name"
    values: dict[str, set[str]] = {}
    for run in group.runs:
        if key in run.config:
            values.setdefault(str(run.config.get(name)), set()).add(repr(run.config[key]))
    everywhere = all(key in run.config or run.is_part for run in group.runs)
    return name in group.keys and not everywhere and all(len(each) == 1 for each in values.values())


def _is_path(key: str, group: RunGroup) -> bool:
    return any(isinstance(value := run.config.get(key), str) and ("/" in value or "\\" in value) for run in group.runs)


def mean_text(mean: float, spread: float) -> str:
    """Return a mean as text, such as 0.9812 ± 0.0031: both with the same number of decimals."""
    text = format_number(mean)
    if not math.isfinite(spread):
        return text
    decimals = len(text.partition(".")[2])
    return f"{text} ± {format_number(spread) if 'e' in text else f'{spread:,.{decimals}f}'}"


def _texts(name: str, rank: float, values: Sequence[Any]) -> Column:
    return Column(name, rank, values, [shortened(printable(value_text(value))) for value in values])


def shortened(text: str, longest: int = LONGEST) -> str:
    """Return a text of at most `longest` characters, the end of a path and the beginning of anything else."""
    if len(text) <= longest:
        return text
    return f"…{text[1 - longest :]}" if re.search(r"[/\\]|^\d\d-", text) else f"{text[: longest - 1]}…"


def _columns(
    group: RunGroup,
    rows: Sequence[RunRow] | Sequence[SeedGroup],
    texts: Sequence[Mapping[str, str]],
    values: Sequence[Mapping[str, float]],
    ends: Sequence[Column],
) -> list[Column]:
    """Return the columns of configs and metrics, and then the `ends`; those that are the same in all rows on demand."""
    configs = [row.config for row in rows]
    models = [model_name(config) or None for config in configs]
    columns = [_texts("model", 2, models)]
    for key, rank in key_ranks(group).items():
        if rows is group.runs or key != "seed":
            columns.append(_texts(key, rank, [config.get(key) for config in configs]))
    columns = [replace(it, rank=it.rank if len(set(it.texts)) > 1 else EXTRA) for it in columns]
    for index, name in enumerate(_metric_names(values, group.by)):
        rank = ALWAYS if name == group.by.name else 4.0 if index == 1 else 11.0 + index
        numbers = [metrics.get(name) for metrics in values]
        columns.append(Column(name, rank, numbers, [each.get(name, "") for each in texts], True))
    epochs = [config.get("epochs") for config in configs]
    columns.append(replace(_texts("epochs", 6.5 if len(set(epochs)) > 1 else EXTRA, epochs), is_number=True))
    return [column for column in [*columns, *ends] if any(text not in ("", "–") for text in column.texts)]


def _metric_names(metrics: Iterable[Mapping[str, float]], by: Metric) -> list[str]:
    """Return the names of all metrics: the one that ranks, the same of other splits, and the rest."""
    names = dict.fromkeys(name for values in metrics for name in values)
    split, _, key = by.name.partition("_")
    ranks = {f"{each}_{key}": index for index, each in enumerate(dict.fromkeys((split, "val", "test", "train")))}
    return sorted(names, key=lambda name: (ranks.get(name, 9), not name.startswith(split), name))
