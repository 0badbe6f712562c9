"""The end of a run: one test of the best weights, the summary, the page and the trackers."""

import logging
import math
from typing import Any

from torch import Tensor

from dltrain.config import registry
from dltrain.engine import Record, evaluate
from dltrain.report import analysis, console, run_files
from dltrain.report.html import run_page
from dltrain.runtime import system_info
from dltrain.runtime.devices import memory_errors
from dltrain.training import build, class_counts
from dltrain.training.run_dir import RunDir
from dltrain.training.snapshot import Run

log = logging.getLogger(__name__)


def finish(run: Run, output: RunDir | None, status: str) -> dict[str, Any]:
    """Test the best weights; in the first process, which has an `output`, also write the summary and the page."""
    model, progress = run.state.model, run.progress
    if weights := progress.best_weights or run.state.ema_weights:
        model.load_state_dict(weights)
    if run.data.test is not None and status != "interrupted":
        batches = build.evaluation_batches(run.data.test, run.runtime, run.data.statistics, run.settings.batch_size)
        metrics = progress.latest["test"] = evaluate(model, batches, run.task, run.runtime)
        if nonfinite := [key for key, value in metrics.items() if not math.isfinite(value)]:
            log.warning("test %s is not finite; it is written as null", ", ".join(nonfinite))
        if output is not None:
            output.write(Record("test", progress.best["step"], progress.best["epoch"], metrics))
    rate = progress.rate()
    summary = {
        "status": status,
        "test": progress.latest.get("test"),
        "val": progress.latest.get("val"),
        "best": progress.best,
        "steps": run.state.step,
        "train_seconds": None if rate is None else round(progress.train_seconds, 3),
        "total_seconds": run.total_seconds,
        "examples_per_second": None if rate is None else round(rate, 1),
        "examples": class_counts.count(run.data),
        "parameters": build.count_parameters(model),
        "device": run.runtime.describe(),
        **system_info.process(run.runtime.device.type),
        **system_info.environment(run.runtime.device.type),
    }
    if output is None:
        return summary
    folder, trackers = output.folder, output.trackers
    run_files.write_json(folder / "summary.json", summary)
    # A page that was asked for, such as that of a job, is made anew.
    has_page = (folder / run_page.NAME).exists() or (run.settings.report and status != "interrupted")
    is_shown = status != "interrupted" and (has_page or trackers.running)
    results, mistakes = _analyze(run) if is_shown else ({}, [])
    trackers.finish(summary, mistakes)
    names = run.config.values["model"]["name"], run.config.values["data"]["name"]
    console.show_end(f"{names[0]} on {names[1]}: {status}", summary, folder)
    if has_page and run_page.write_after(folder, run.config.stored, results):
        log.info("page        %s", folder / run_page.NAME)
    return summary


def _analyze(run: Run) -> tuple[dict[str, Any], list[tuple[Tensor, str]]]:
    """Return the analysis of the best weights on the test or validation set, and mistaken images; log an error."""
    split, examples = ("test", run.data.test) if run.data.test is not None else ("val", run.data.val)
    if examples is None:
        return {}, []
    batches = build.evaluation_batches(examples, run.runtime, run.data.statistics, run.settings.batch_size)
    model, task = run.state.model, registry.base_option("task", run.config.values["task"]["name"])
    try:
        with memory_errors("The analysis is left out"):
            results = analysis.analyze(model, examples, batches, run.data.train.classes, task, run.runtime, split=split)
            return results, analysis.mistaken_pictures(examples, results)
    except Exception as error:  # such as one in attention_map of a user's model; the run is done
        log.warning("no analysis of the %s set: %s", split, " ".join(f"{type(error).__name__}: {error}".split())[:300])
        return {}, []
