"""report.html of several runs, such as the jobs of a sweep: which is best, and what makes the difference."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dltrain.report.html import charts, page
from dltrain.report.run_reader import read_records
from dltrain.runtime.errors import InputError

MOST_KEYS = 12  # keys that have a figure of their own
MOST_COLOURS = 5  # of another key's values within such a figure


@dataclass(frozen=True)
class RunRow:
    """A run of a set as its folder tells it: `config` by dotted keys, `label` its short name, why it failed.

    With `is_part` the config is no more than what was typed: the run failed before it had written the whole.
    """

    folder: Path
    label: str
    config: dict[str, Any]
    status: str
    figures: dict[str, float]
    seconds: float
    reason: str = ""
    is_part: bool = False


@dataclass(frozen=True)
class SeedGroup:
    """Runs that differ by their seed alone; `spread` is half of the 95 % interval of each mean, NaN for one run."""

    config: dict[str, Any]
    count: int
    mean: dict[str, float] = field(default_factory=dict)
    spread: dict[str, float] = field(default_factory=dict)


def text(
    title: str, members: Sequence[RunRow], keys: Sequence[str], seeds: Sequence[SeedGroup], metric: str, place: Path
) -> str:
    """The page of a set.

    Args:
        members: the runs, the best first
        keys: keys of the config that differ between them
        seeds: the runs that are done, grouped over their seeds
        metric: the figure that ranks them, such as val_accuracy
        place: the folder that the page will lie in; links are relative to it
    """
    try:
        names = sorted({name for it in members for name in it.figures}, key=lambda name: (name != metric, name))
        failed = [it for it in members if it.status == "failed"]
        best = members[0] if members and metric in members[0].figures else None
        return page.render(
            "set.html",
            title=title,
            subtitle=f"{len(members)} runs, {len(failed)} failed",
            best=best,
            metric=metric,
            keys=list(keys),
            names=names,
            rows=[_row(it, keys, names, place) for it in members],
            failed=failed,
            curves=_curves(members, metric),
            against=_against(seeds, [key for key in keys if key != "seed"], metric),
            seeds=[it for it in seeds if it.count > 1],
            plain=plain,
        )
    except page.UNFIT as error:
        raise InputError(f"{title}: a file of its runs is not what a run writes ({type(error).__name__})") from error


def plain(value: Any) -> str:
    """A value of a config as it is typed; nothing for null, which is where a run has no such key."""
    return "" if value is None else page.as_typed(value)


def _row(member: RunRow, keys: Sequence[str], names: Sequence[str], place: Path) -> dict[str, Any]:
    page_of_run = member.folder / "report.html"
    target = page_of_run if page_of_run.exists() else member.folder
    return {
        "label": member.label,
        "link": "./" + quote(os.fsencode(os.path.relpath(target, place))),
        "status": member.status,
        "values": [plain(member.config.get(key)) for key in keys],
        "figures": [member.figures.get(name) for name in names],
        "seconds": None if math.isnan(member.seconds) else round(member.seconds, 1),
    }


def _curves(members: Sequence[RunRow], metric: str) -> list[charts.Spec]:
    """Overlaid curves of the metric and, where that is another, of the loss."""
    split, _, key = metric.partition("_")
    split = "train" if split == "train" else "val"  # there is one test, at the end
    wanted = dict.fromkeys([(split, key), ("val", "loss"), ("train", "loss")])
    found: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {it: {} for it in wanted}
    for member in members:
        try:
            own = read_records(member.folder / "metrics.jsonl")
        except InputError:  # one damaged file; the others are worth a figure
            continue
        for split, key in wanted:
            points = [(it.get("epoch", math.nan), it.get(key, math.nan)) for it in own if it.get("split") == split]
            if points:
                own_label = member.label if member.label not in found[split, key] else str(member.folder)
                found[split, key][own_label] = points
    drawn = [charts.curves_of_runs(curves, f"{split} {key}") for (split, key), curves in found.items()]
    return [spec for spec in drawn if spec is not None][:2]


def _against(seeds: Sequence[SeedGroup], keys: Sequence[str], metric: str) -> list[charts.Spec]:
    """The metric against each key that differs, means over seeds with their intervals."""
    drawn = []
    for key in keys[:MOST_KEYS]:
        other = next((it for it in keys if it != key and 1 < len(_values(seeds, it)) <= MOST_COLOURS), "")
        values = []
        for it in seeds:
            mean, spread = it.mean.get(metric, math.nan), it.spread.get(metric, math.nan)
            if key not in it.config or not math.isfinite(mean):
                continue
            words = " ".join(f"{name}={plain(it.config.get(name))}" for name in keys)
            value: dict[str, Any] = {"x": _drawable(it.config[key]), "y": mean, "n": it.count, "label": words}
            value |= {"g": plain(it.config.get(other))} if other else {}
            if math.isfinite(spread):
                value |= {"lo": mean - spread, "hi": mean + spread}
            values.append(value)
        if len({str(value["x"]) for value in values}) > 1:
            drawn.append(charts.against(values, key, metric.replace("_", " "), other))
    return drawn


def _values(seeds: Sequence[SeedGroup], key: str) -> set[str]:
    return {plain(it.config.get(key)) for it in seeds}


def _drawable(value: Any) -> Any:
    return value if charts.finite(value) else plain(value) or "null"
