"""report.html of a run: metrics, curves, mistakes, config and environment."""

import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dltrain.config.dotted import leaves
from dltrain.config.hints import to_cli
from dltrain.report.html import charts, page
from dltrain.report.run_reader import RunRecord, is_finite, read_run, write_analysis
from dltrain.report.run_rows import data_name, model_name
from dltrain.runtime.errors import InputError, typed_line

log = logging.getLogger(__name__)

NAME = "report.html"
PNG_URL = "data:image/png;base64,"
CHOSEN = ("the command line", "experiment/")  # where values come from that are no defaults
MOST_CLASSES = 60  # up to which the confusion matrix is shown


def write_after(folder: Path, config: Mapping[str, Any], analysis: dict[str, Any]) -> bool:
    """Write analysis.json and the page of a run that has just ended; return False, and log why, if that failed."""
    try:
        if analysis:
            write_analysis(folder, analysis)
        write(folder / NAME, folder, config)
        return True
    except Exception as error:  # a page that cannot be written must not fail a run
        log.warning("%s was not written: %s", NAME, typed_line(error))
        return False


def write(path: Path, folder: Path, config: Mapping[str, Any], missing: str = "") -> None:
    """Write the page of a run's folder. Raises UserError."""
    page.write(path, text(read_run(folder, config.get("metric")), config, missing))


def text(run: RunRecord, config: Mapping[str, Any], missing: str = "") -> str:
    """Return the page of a run; `missing` says why the analysis is missing, if it is. Raises InputError."""
    try:
        values = leaves(config)
        rows = [(key, to_cli(value), run.origins.get(key, "")) for key, value in values.items()]
        metric = str(values.get("metric") or "loss")
        names = dict.fromkeys(["loss", "accuracy", "mae", "r2", metric])
        metrics = [name for name in names if any(name in record for record in run.records)]
        evaluated = [record for record in run.records if record.get("split") in ("val", "test")]
        return page.render(
            "run.html",
            title=f"{model_name(values) or '?'} on {data_name(values) or '?'}",
            folder="/".join(run.folder.parts[-2:]),
            status=str(run.summary.get("status", "not done")),
            labels="".join(f" · {it}" for it in [*(values.get("tags") or []), values.get("note")] if it),
            missing=missing,
            headline=_headline(run),
            examples=dict(run.summary.get("examples") or {}),
            curves=_curves(run.records, metric),
            metrics=metrics,
            epochs=[[it["split"], it["epoch"], it["step"], *map(it.get, metrics)] for it in evaluated][-200:],
            by_name=lambda table, columns: [[name, *(row[key] for key in columns)] for name, row in table.items()],
            analysis=_analysis(run.analysis),
            has_origins=bool(run.origins),
            chosen=[row for row in rows if row[2].startswith(CHOSEN)],
            defaults=[row for row in rows if not row[2].startswith(CHOSEN)],
            environment=_environment(run.summary),
        )
    except page.UNFIT as error:
        raise InputError(f"{run.folder}: its files have content that no run writes ({type(error).__name__})") from error


def _headline(run: RunRecord) -> list[tuple[str, str]]:
    """Return the key metrics with their labels."""
    rows, summary = [], run.summary
    test, best = summary.get("test") or {}, summary.get("best") or {}
    for split, values in (("test", test), ("best val", best if best.get("split") == "val" else {})):
        for key, value in values.items():
            if key not in ("split", "step", "epoch"):
                shown = page.percent(value) if key.endswith("accuracy") else page.number(value)
                rows.append((f"{split} {key.replace('_', ' ')}", shown))
    if is_finite(best.get("epoch")) and best.get("split") == "val":
        rows.append(("best epoch", f"{best['epoch']:g}"))
    if is_finite(summary.get("train_seconds")):
        rows.append(("training", f"{summary['train_seconds']:,.1f} s"))
    numbers = {"images/s, mean": mean_rate(run.records)} | {key: summary.get(key) for key in ("steps", "parameters")}
    return rows + [(label, f"{value:,.0f}") for label, value in numbers.items() if is_finite(value)]


def mean_rate(records: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the mean of the images per second over the time of training; None without records of training."""
    trained = [record for record in records if record.get("split") == "train" and record.get("examples_per_second")]
    steps = [end - start for start, end in itertools.pairwise([0, *(record["step"] for record in trained)])]
    # The seconds of a step, in units of the batch size, which cancels.
    seconds = sum(count / it["examples_per_second"] for count, it in zip(steps, trained, strict=True))
    return sum(steps) / seconds if seconds else None


def _curves(records: list[dict[str, Any]], metric: str) -> list[charts.Spec]:
    wanted = {"loss": "loss", "accuracy": "accuracy", "mae": "mean absolute error", "r2": "R2"}
    wanted.setdefault(metric, metric.replace("_", " "))
    wanted |= {"lr": "learning rate", "examples_per_second": "examples per second"}
    return [spec for key, title in wanted.items() if (spec := charts.curve(records, key, title)) is not None]


def _analysis(analysis: Mapping[str, Any]) -> dict[str, Any]:
    """Return an analysis in the form that the template shows."""
    if not analysis:
        return {}
    classes = [str(name) for name in analysis.get("classes", ())]
    shown: dict[str, Any] = {"split": str(analysis["split"]), "examples": int(analysis["examples"]), "charts": []}
    if "confusion" in analysis and len(classes) <= MOST_CLASSES:
        shown["charts"].append(charts.confusion(analysis["confusion"], classes))
    if "per_class" in analysis:
        shown["per_class"], macro = analysis["per_class"], analysis.get("macro")
        shown["macro"] = {"macro average": {"examples": None} | macro} if macro else {}
    if "calibration" in analysis:
        shown["calibration_error"] = float(analysis["calibration"]["error"])
        shown["charts"].append(charts.reliability(analysis["calibration"]["bins"]))
    if "points" in analysis:
        shown["charts"].append(charts.points(analysis["points"]))
    shown["mistakes"] = _with_images(analysis.get("mistakes", ()), "image", "class_map")
    shown["attention"] = [
        row | {"cells": _fractions(row["weights"]), "columns": len(row["weights"][0])}
        for row in _with_images(analysis.get("attention", ()), "image")
    ]
    shown["pictures"] = _with_images(analysis.get("pictures", ()), "image", "output")
    return shown


def _with_images(rows: Any, *keys: str) -> list[dict[str, Any]]:
    """Return the rows whose images under `keys` are PNGs in data URLs."""
    return [row for row in rows if all(str(row.get(key, PNG_URL)).startswith(PNG_URL) for key in keys)]


def _fractions(weights: list[list[float]]) -> list[float]:
    """Return weights (h, w) row by row, as fractions of the largest, which is fully coloured."""
    flat = [float(weight) for row in weights for weight in row]
    largest = max(flat)
    return [round(weight / largest, 3) if largest > 0 else 0.0 for weight in flat]


def _environment(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = {"device": summary.get("device"), **(summary.get("hardware") or {}), "git": summary.get("git")}
    rows |= (summary.get("versions") or {}) | {"total seconds": summary.get("total_seconds")}
    return [(str(key), str(value)) for key, value in rows.items() if value is not None]
