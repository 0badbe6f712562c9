"""The end of a run: the test, once, on the best weights; the summary, the page, and what the trackers want to know."""

import logging
import math
import time
from typing import Any

from torch import Tensor

from dltrain.engine import Record, evaluate
from dltrain.report import analysis, console, run_files
from dltrain.report.html import run_page
from dltrain.runtime import system_info
from dltrain.runtime.devices import memory_errors
from dltrain.training import build
from dltrain.training.run_dir import RunDir
from dltrain.training.snapshot import Run

log = logging.getLogger(__name__)


def finish(run: Run, output: RunDir | None, status: str, began: float) -> dict[str, Any]:
    """Test once, on the best weights; write and show the summary, and the page of the run.

    Of several processes only the first, who has an `output`, does more than test.
    """
    model, progress = run.state.model, run.progress
    if weights := progress.best_weights or run.state.ema_weights:
        model.load_state_dict(weights)
    if run.data.test is not None and status != "interrupted":
        batches = build.evaluation_batches(run.data.test, run.runtime, run.data.statistics, run.settings.batch_size)
        figures = evaluate(model, batches, run.task, run.runtime)
        progress.latest["test"] = figures
        if odd := [key for key, value in figures.items() if not math.isfinite(value)]:
            log.warning("test %s: no finite number, so it is null in what is written", ", ".join(odd))
        if output is not None:
            output.write(Record("test", progress.best["step"], progress.best["epoch"], figures))
    rate = progress.rate()
    summary = {
        "status": status,
        "test": progress.latest.get("test"),
        "val": progress.latest.get("val"),
        "best": progress.best,
        "steps": run.state.step,
        "train_seconds": None if rate is None else round(progress.train_seconds, 3),
        "total_seconds": round(time.perf_counter() - began, 3),
        "examples_per_second": None if rate is None else round(rate, 1),
        "parameters": build.count_parameters(model),
        "device": run.runtime.describe(),
        **system_info.environment(),
    }
    if output is None:
        return summary
    folder, trackers = output.folder, output.trackers
    run_files.write_json(folder / "summary.json", summary)
    wanted = status != "interrupted" and (run.settings.report or trackers.running)
    found, mistakes = _analyze(run) if wanted else ({}, [])
    trackers.finish(summary, mistakes)
    names = run.config.values["model"]["name"], run.config.values["data"]["name"]
    console.show_end(f"{names[0]} on {names[1]}: {status}", summary, folder)
    if run.settings.report and status != "interrupted" and run_page.write_after(folder, run.config.stored, found):
        log.info("page        %s", folder / run_page.NAME)
    return summary


def _analyze(run: Run) -> tuple[dict[str, Any], list[tuple[Tensor, str]]]:
    """What the best weights do on the test set, else on the validation set, and pictures of mistakes.

    What goes wrong here is a warning.
    """
    split, examples = ("test", run.data.test) if run.data.test is not None else ("val", run.data.val)
    if examples is None:
        return {}, []
    batches = build.evaluation_batches(examples, run.runtime, run.data.statistics, run.settings.batch_size)
    task = run.config.values["task"]["name"]
    try:
        with memory_errors("It is left out"):
            found = analysis.analyze(
                run.state.model, examples, batches, run.data.train.classes, task, run.runtime, split=split
            )
            return found, analysis.mistaken_pictures(examples, found)
    except Exception as error:  # a person's own attention_map, for one; the run is done
        log.warning("no analysis of the %s set: %s", split, " ".join(f"{type(error).__name__}: {error}".split())[:300])
        return {}, []
