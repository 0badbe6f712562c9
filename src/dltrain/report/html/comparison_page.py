"""report.html of several runs, such as the jobs of a sweep: the best run, and the effect of each key."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dltrain.config.hints import to_cli
from dltrain.report import significance
from dltrain.report.html import charts, page
from dltrain.report.html.run_page import NAME
from dltrain.report.run_reader import read_records
from dltrain.report.run_rows import REPEATS, Metric, RunRow, SeedGroup, differing_keys, group_by_seed, value_text
from dltrain.runtime.errors import InputError, UserError

MOST_KEYS = 12  # keys that get a chart each
MOST_COLOURS = 5  # values of another key within such a chart


def write_after(folder: Path, jobs: Sequence[RunRow], by: Metric) -> None:
    """Write the page of a sweep that has just ended; print an error instead of raising it, as the sweep is done."""
    try:
        write_sweep(folder / NAME, folder, jobs, by)
        print(f"page:  {folder / NAME}")
    except Exception as error:  # a chart that cannot be drawn must not cost a sweep
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        print(f"{NAME} was not written: {' '.join(reason.split())[:300]}")


def write_sweep(path: Path, folder: Path, jobs: Sequence[RunRow], by: Metric) -> None:
    """Write the page of a sweep's jobs. Raises UserError."""
    write(path, f"Sweep {'/'.join(folder.parts[-2:])}", jobs, differing_keys(jobs), by)


def write(path: Path, title: str, runs: Sequence[RunRow], keys: Sequence[str], by: Metric) -> None:
    """Write the page of several runs, the best first. Raises UserError."""
    ranked = sorted(runs, key=lambda run: by.key(run.metrics))
    keys = [key for key in keys if not _is_implied(key, keys, runs)]
    page.write(path, text(title, ranked, keys, by, path.parent))


def _is_implied(key: str, keys: Sequence[str], runs: Sequence[RunRow]) -> bool:
    """True if a key differs only because one option of its group has it and another does not."""
    group, dot, _ = key.partition(".")
    values = {repr(run.config[key]) for run in runs if key in run.config}
    return bool(dot) and f"{group}.name" in keys and key != f"{group}.name" and len(values) == 1


def text(title: str, runs: Sequence[RunRow], keys: Sequence[str], by: Metric, place: Path) -> str:
    """Return the page of several runs. Raises InputError.

    Args:
        runs: the runs, the best first
        keys: keys of the config in which they differ
        by: the metric that ranks them
        place: the folder of the page; links are relative to it
    """
    metric = by.name
    try:
        names = sorted({name for run in runs for name in run.metrics}, key=lambda name: (name != metric, name))
        failed = [run for run in runs if run.status == "failed"]
        groups = group_by_seed(runs, keys)
        return page.render(
            "set.html",
            title=title,
            subtitle=f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}, {len(failed)} failed",
            best=runs[0] if runs and metric in runs[0].metrics else None,
            metric=metric,
            keys=list(keys),
            names=names,
            runs=runs,
            failed=failed,
            curves=_curves(runs, metric),
            against=_against(groups, [key for key in keys if key not in REPEATS], metric),
            seeds=[group for group in groups if group.count > 1],
            repeats=REPEATS,
            over=significance.repeated_over(keys),
            comparisons=significance.sentences(groups, keys, by),
            value_text=value_text,
            link=lambda run: _link(run.folder, place),
        )
    except page.UNFIT as error:
        raise InputError(f"{title}: a file has content that no run writes ({type(error).__name__})") from error


def _link(folder: Path, place: Path) -> str:
    """Return a link from `place` to the page of a run, or to its folder if it has no page."""
    report = folder / NAME
    return "./" + quote(os.fsencode(os.path.relpath(report if report.exists() else folder, place)))


def _curves(runs: Sequence[RunRow], metric: str) -> list[charts.Spec]:
    """Chart the curves of the metric of all runs together, and those of the loss if it is not the metric."""
    split, _, key = metric.partition("_")
    split = "train" if split == "train" else "val"  # the test set is evaluated once, at the end
    wanted = dict.fromkeys([(split, key), ("val", "loss"), ("train", "loss")])
    curves: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {pair: {} for pair in wanted}
    for run in runs:
        try:
            records = read_records(run.folder / "metrics.jsonl")
        except InputError:  # one damaged file; chart the others
            continue
        for split, key in wanted:
            points = [(r.get("epoch", math.nan), r.get(key, math.nan)) for r in records if r.get("split") == split]
            if points:
                label = run.label if run.label not in curves[split, key] else str(run.folder)
                curves[split, key][label] = points
    specs = [charts.curves_of_runs(lines, f"{split} {key}") for (split, key), lines in curves.items()]
    return [spec for spec in specs if spec is not None][:2]


def _against(groups: Sequence[SeedGroup], keys: Sequence[str], metric: str) -> list[charts.Spec]:
    """Chart the metric against each key: means over seeds with their intervals."""
    specs = []
    for key in keys[:MOST_KEYS]:
        other = next((name for name in keys if name != key and 1 < len(_values(groups, name)) <= MOST_COLOURS), "")
        points = []
        for group in groups:
            mean, spread = group.mean.get(metric, math.nan), group.spread.get(metric, math.nan)
            if key not in group.config or not math.isfinite(mean):
                continue
            x = group.config[key]
            x = x if charts.finite(x) else to_cli(x)
            point: dict[str, Any] = {"x": x, "y": mean, "n": group.count, "label": group.label(keys)}
            point |= {"g": value_text(group.config.get(other))} if other else {}
            if math.isfinite(spread):
                point |= {"lo": mean - spread, "hi": mean + spread}
            points.append(point)
        if len({str(point["x"]) for point in points}) > 1:
            specs.append(charts.against(points, key, metric.replace("_", " "), other))
    return specs


def _values(groups: Sequence[SeedGroup], key: str) -> set[str]:
    return {value_text(group.config.get(key)) for group in groups}
