"""report.html of several runs, such as the jobs of a sweep: the best run, and the effect of each key."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dltrain.config import dotted, safe_yaml
from dltrain.config.hints import to_cli
from dltrain.config.registry import GROUPS
from dltrain.report import significance
from dltrain.report.html import charts, page
from dltrain.report.html.run_page import NAME
from dltrain.report.run_reader import is_finite, read_records
from dltrain.report.run_rows import REPEATS, RunGroup, RunRow, SeedGroup, data_name, model_name, value_text
from dltrain.report.run_table import EXTRA, columns_of, key_ranks
from dltrain.runtime.errors import InputError, typed_line

MOST_KEYS = 4  # keys that get a chart each
MOST_COLOURS = 5  # values of another key within such a chart
FEWEST = 3  # values of a number for a chart against it
MOST_GROUPS = 12  # data sets whose runs get charts
MOST_POINTS = 5_000  # of the curves of all runs: 500 runs stay below two seconds to open


def write_after(folder: Path, groups: Sequence[RunGroup]) -> None:
    """Write the page of a sweep that has just ended; print an error instead of raising it, as the sweep is done."""
    try:
        write(folder / NAME, f"Sweep {'/'.join(folder.parts[-2:])}", groups)
        print(f"page:  {folder / NAME}")
    except Exception as error:  # a chart that cannot be drawn must not cost a sweep
        print(f"{NAME} was not written: {typed_line(error)}")


def write(path: Path, title: str, groups: Sequence[RunGroup]) -> None:
    """Write the page of several runs, by data set; its links are relative to its folder. Raises UserError."""
    runs = [run for group in groups for run in group.runs]
    failed = [(run.label, run.reason) for run in runs if run.status == "failed"]
    subtitle = f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}, {len(failed)} failed"
    try:
        shown = [_shown(group, len(groups), path.parent) for group in groups]
        if len(groups) == 1 and (subject := _subject(groups[0])):
            title, subtitle = subject, f"{title} · {subtitle}"
        text = page.render("set.html", title=title, subtitle=subtitle, groups=shown, failed=failed)
    except page.UNFIT as error:
        raise InputError(f"{title}: a file has content that no run writes ({type(error).__name__})") from error
    page.write(path, text)


def _subject(group: RunGroup) -> str:
    """Return models and data, such as `mlp, lenet on digits`; empty if not known."""
    path = group.runs[0].folder / ".hydra" / "config.yaml"  # a sweep knows only the overrides of its jobs
    config = dotted.leaves(safe_yaml.read_to_show(path)) if path.exists() and "experiment" not in group.keys else {}
    models = dict.fromkeys(model_name(run.config) or model_name(config) for run in group.runs)
    data = group.data or data_name(config)
    return f"{', '.join(models)} on {data}" if all(models) and data else ""


def _shown(group: RunGroup, among: int, place: Path) -> dict[str, Any]:
    """Return one of `among` groups in the form that the template shows."""
    best, by = group.runs[0], group.by.name
    keys = [key for key, rank in key_ranks(group).items() if rank < EXTRA]
    tiles = [(f"best {by.replace('_', ' ')}", page.number(best.metrics.get(by))), ("run", best.label)]
    tiles += [("model", model_name(best.config))]
    tiles += [(key, value_text(best.config[key])) for key in keys[:MOST_KEYS] if best.config.get(key) is not None]
    has_charts = among <= MOST_GROUPS
    return {
        "title": group.title(),
        "tiles": [(name, value) for name, value in tiles if value] if by in best.metrics else [],
        "columns": columns_of(group),
        "links": [_link(run.folder, place) for run in group.runs],
        "over": group.over,
        "seeds": columns_of(group, over_seeds=True) if group.seeds else [],
        "comparisons": significance.sentences(group),
        "against": _against(group, [*keys, *({"model"} & set(group.keys))]) if has_charts else [],
        "curves": _curves(group.runs, by, MOST_POINTS // among) if has_charts else [],
    }


def _link(folder: Path, place: Path) -> str:
    """Return a link from `place` to the page of a run, else to its folder; # for a job of `eval`, which has none."""
    path = next((path for path in (folder / NAME, folder) if path.exists()), None)
    return "./" + quote(os.fsencode(os.path.relpath(path, place))) if path else "#"


def _curves(runs: Sequence[RunRow], metric: str, most: int) -> list[charts.Spec]:
    """Chart the curves of the metric of all runs with at most `most` points, and those of the loss if it is another."""
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
            if points := [(r.get("epoch", math.nan), r.get(key, math.nan)) for r in records if r.get("split") == split]:
                label = run.label if run.label not in curves[split, key] else str(run.folder)
                curves[split, key][label] = points
    specs = [charts.curves_of_runs(lines, f"{split} {key}", most) for (split, key), lines in curves.items()]
    return [spec for spec in specs if spec is not None][:2]


def _against(group: RunGroup, keys: Sequence[str]) -> list[charts.Spec]:
    """Chart the metric against each number that was varied, and each option of a sweep: means over seeds."""
    specs, metric, settings = [], group.by.name, group.settings
    keys = [key for key in keys if key not in REPEATS]
    varied = [key for key in keys if _is_varied(key, settings)]
    for key in varied[:MOST_KEYS]:
        counts = {name: len({value_text(it.config.get(name)) for it in settings}) for name in keys if name != key}
        other = next((name for name, count in counts.items() if 1 < count <= MOST_COLOURS), "")
        points = []
        for it in settings:
            mean, spread = it.mean.get(metric, math.nan), it.spread.get(metric, math.nan)
            if it.config.get(key) is None or not math.isfinite(mean):
                continue
            x = it.config[key] if is_finite(it.config[key]) else to_cli(it.config[key])
            point: dict[str, Any] = {"x": x, "y": mean, "n": it.count, "label": group.label(it)}
            point |= {"g": value_text(it.config.get(other))} if other else {}
            point |= {"lo": mean - spread, "hi": mean + spread} if math.isfinite(spread) else {}
            points.append(point)
        if len({str(point["x"]) for point in points}) > 1:
            specs.append(charts.against(points, key, metric.replace("_", " "), other))
    return specs


def _is_varied(key: str, settings: Sequence[SeedGroup]) -> bool:
    """True for a number with several values, or an option among the overrides of a sweep."""
    values = [value for it in settings if (value := it.config.get(key)) is not None]
    is_number = all(map(is_finite, values)) and not key.startswith("device.")
    return key in GROUPS or (is_number and len(set(values)) >= FEWEST)
