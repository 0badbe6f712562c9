"""Runs one job of any subcommand, from its config to its result, in any process."""

import contextlib
import json
import math
import os
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dltrain.config import registry, saved_config
from dltrain.config.resolution import resolve, resolved
from dltrain.runtime import torchrun
from dltrain.runtime.errors import ConfigError, Interrupted, UserError, first_line, typed_line, user_line
from dltrain.runtime.folders import expand_user
from dltrain.runtime.signals import SIGNALS, Shown, as_user_error
from dltrain.runtime.startup import import_torch


@dataclass(frozen=True)
class JobResult:
    """How a job ended: exit code; status of the run, or why it failed; metrics by split, such as test_accuracy."""

    code: int
    status: str
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    folder: str = ""

    @property
    def failed(self) -> bool:
        """True if the job ended with an error; an interrupted job has not failed, it is unfinished."""
        return bool(self.code) and not self.interrupted

    @property
    def interrupted(self) -> bool:
        """True if a signal ended the job after saving."""
        return self.code in SIGNALS.values()

    @property
    def description(self) -> str:
        """The status, with the exit code if the job failed."""
        return f"failed ({self.code}): {self.status}" if self.failed else self.status

    @property
    def reason(self) -> str:
        """Why the job failed; empty if it did not."""
        return f"exit code {self.code}: {self.status}" if self.failed else ""


INTERRUPTED = JobResult(143, "interrupted")


def run_job(
    command: str, config: dict[str, Any], report_error: Callable[[Shown], int], **settings: Any
) -> tuple[JobResult, Any]:
    """Run a job; return how it ended and its JSON-able document, None if it has none.

    `report_error` receives an error that the user can fix, or a signal, and returns the exit code.
    """
    began = time.perf_counter()

    def ended(code: int, status: str) -> JobResult:
        return JobResult(code, _as_written(status, config), seconds=time.perf_counter() - began)

    try:
        document, summary = dispatch(command, config, **settings)
        metrics, folder = job_metrics(command, summary), str(summary.get("folder", ""))
        return JobResult(0, str(summary.get("status", "done")), metrics, time.perf_counter() - began, folder), document
    except (Exception, KeyboardInterrupt, SystemExit) as error:  # sys.exit(0) of a user's code is no success
        own = ", ".join(dict(saved_config.custom_imports(config))) or str(config.get("trust") or "")
        if (shown := as_user_error(error, own)) is not None:
            document = getattr(shown, "document", None)  # a PartialFailure has one
            reason = first_line(shown) + (f" ({line})" if (line := user_line(shown)) else "")
            is_stop = isinstance(shown, Interrupted | KeyboardInterrupt)
            return ended(report_error(shown), "interrupted" if is_stop else reason), document
        if torchrun.should_report(error):  # a bug of ours
            traceback.print_exc()
        return ended(1, typed_line(error)), None


def _as_written(text: str, config: dict[str, Any]) -> str:
    """Return a text with resolved values replaced by their references in the config, such as ${oc.env:HOME}."""
    if "${" not in repr(config):
        return text
    with contextlib.suppress(UserError):  # a reference that cannot be resolved: the text says so
        for written, value in _leaves(config, resolve(config)):
            if isinstance(written, str) and "${" in written and isinstance(value, str):
                for form in (str(expand_user(value)), value, os.path.normpath(value)):  # as messages show paths
                    text = text.replace(form, written) if len(form) > 3 else text  # shorter ones are no secrets
    return text


def _leaves(node: Any, other: Any) -> Iterator[tuple[Any, Any]]:
    """Yield pairs of values at the same place of two trees; a subtree that only one has comes with its counterpart."""
    if isinstance(node, dict) and isinstance(other, dict):
        for key in node.keys() & other.keys():
            yield from _leaves(node[key], other[key])
    elif isinstance(node, list) and isinstance(other, list):
        for part, counterpart in zip(node, other, strict=False):
            yield from _leaves(part, counterpart)
    else:
        yield node, other


def dispatch(
    command: str,
    config: dict[str, Any],
    *,
    typed: Collection[str],
    origin: registry.Origin = lambda key: "",
    **train_options: Any,
) -> tuple[Any, dict[str, Any]]:
    """Resolve and check a config, then train, evaluate, predict or export as it says.

    `train_options` are further arguments of `training.run.train`; the other commands ignore them.
    Returns the JSON-able document of a command that has one, else None, and a summary: metrics by split, and the
    status and folder of a run. The commands `summary` and `show-batch` are `train --summary` and `train --show-batch`.
    """
    if saved_config.custom_imports(config):
        import_torch()  # the check imports the user's code, which imports torch
    checked = resolved(config, "train" if command in ("summary", "show-batch") else command, typed, origin)
    import_torch()  # after the check, so that mistakes are reported at once
    if command in ("summary", "show-batch"):
        if checked.values["resume"] is not None:
            raise ConfigError(f"--{command}: describes a new run. Leave out resume, or use dltrain inspect")
        from dltrain.commands import batch_page, summary

        return (summary.summarize if command == "summary" else batch_page.show_batch)(checked), {}
    if command == "train":
        from dltrain.training.run import train

        trained = train(checked, **train_options)
        return trained, trained
    if command == "eval":
        from dltrain.commands.evaluation import evaluate_checkpoints

        document, best = evaluate_checkpoints(checked)
        names = "loss", "accuracy", best.get("metric")
        return document, {best["split"]: {name: best[name] for name in names if name in best}}
    if command == "export":
        from dltrain.commands.export import export

        export(checked)
        return None, {}
    from dltrain.commands.prediction import predict

    return predict(checked), {}


def job_metrics(command: str, summary: dict[str, Any]) -> dict[str, float]:
    """Return the metrics of a job by split; of a training run, those of the tested weights on test and validation."""
    splits = dict(summary)
    if command == "train":
        best = summary.get("best") or {}
        splits = {"test": summary.get("test") or {}, "val": best if best.get("split") == "val" else {}}
    return {
        f"{split}_{key}": math.nan if value is None else value  # null in JSON
        for split, values in splits.items()
        if isinstance(values, dict)
        for key, value in values.items()
        if key not in ("split", "step", "epoch")
    }


def read_result(command: str, folder: Path) -> JobResult | None:
    """Return the result of a finished job from its folder, as it may be recorded nowhere else; None if unfinished."""
    try:
        summary: Any = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        if summary["status"] == "interrupted":
            return None
        return JobResult(0, summary["status"], job_metrics(command, summary), summary["total_seconds"], str(folder))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # missing, or not written by a run
        return None
