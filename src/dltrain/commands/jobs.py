"""One job of any subcommand: a config in, an outcome out, in whatever process."""

import contextlib
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dltrain.config import registry, saved_config, validation
from dltrain.config.composition import resolve
from dltrain.runtime import torchrun
from dltrain.runtime.errors import Interrupted, UserError, first_line
from dltrain.runtime.folders import expand_user
from dltrain.runtime.signals import SIGNALS, as_user_error
from dltrain.runtime.startup import import_torch

if TYPE_CHECKING:
    from dltrain.engine import Record
    from dltrain.training.build import Data


@dataclass(frozen=True)
class JobResult:
    """How a job ended: an exit code; a run's status, or why it failed; its metrics by split, such as test_accuracy."""

    code: int
    status: str
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    folder: str = ""

    @property
    def failed(self) -> bool:
        """Whether it ended by a fault; an interrupted job has not, it is not done."""
        return bool(self.code) and not self.interrupted

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended it, after saving."""
        return self.code in SIGNALS.values()

    @property
    def description(self) -> str:
        """The status, of a failed job with its code."""
        return f"failed ({self.code}): {self.status}" if self.failed else self.status

    @property
    def reason(self) -> str:
        """Why it failed; empty where it has not."""
        return f"exit code {self.code}: {self.status}" if self.failed else ""


INTERRUPTED = JobResult(143, "interrupted")


def run_job(
    command: str, config: dict[str, Any], tell: Callable[[UserError | KeyboardInterrupt], int], **settings: Any
) -> JobResult:
    """Run a job; `tell` gets what a user can mend, or a signal, and returns the exit code."""
    began = time.perf_counter()

    def ended(code: int, status: str) -> JobResult:  # which gets into files
        return JobResult(code, _as_written(status, config), seconds=time.perf_counter() - began)

    try:
        summary = dispatch(command, config, **settings)
        status = str(summary.get("status", "done"))
        return JobResult(
            0, status, job_metrics(command, summary), time.perf_counter() - began, str(summary.get("folder", ""))
        )
    except (Exception, KeyboardInterrupt) as error:
        if (told := as_user_error(error)) is not None:
            is_stop = isinstance(told, Interrupted | KeyboardInterrupt)
            return ended(tell(told), "interrupted" if is_stop else first_line(told))
        if torchrun.should_report(error):  # a fault of ours, or of a user's own code: say all there is to know
            traceback.print_exc()
        return ended(1, first_line(f"{type(error).__name__}: {error}"))


def _as_written(text: str, config: dict[str, Any]) -> str:
    """A text in which references of the config, such as ${oc.env:HOME}, stand for what they led to."""
    if "${" not in repr(config):
        return text
    with contextlib.suppress(UserError):  # one that leads nowhere, of which the text tells
        for written, value in _leaves(config, resolve(config)):
            if isinstance(written, str) and "${" in written and isinstance(value, str):
                for told in (str(expand_user(value)), value, os.path.normpath(value)):  # as a message may have it
                    text = text.replace(told, written) if len(told) > 3 else text  # less is no secret
    return text


def _leaves(node: Any, other: Any) -> Iterator[tuple[Any, Any]]:
    """Values of two trees that stand in the same place, the other's where one has a tree and it has none."""
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
    folder: Path | None = None,
    watch: "Callable[[Record], str] | None" = None,
    load: "Callable[[dict[str, Any], int], Data] | None" = None,
    deliver: Callable[[str], None] = lambda document: None,
) -> dict[str, Any]:
    """Train, evaluate, predict or export; returns the summary. torch is imported here, not before.

    The command `summary` is `train --summary`. `deliver` gets what was found as a JSON document.
    """
    typed = [key for key in typed if key.partition(".")[0] != "sweep"]
    values: dict[str, Any] = {}
    is_training = command in ("summary", "train")  # they check by themselves; but a mistake need not wait for torch
    if not is_training or (
        "torch" not in sys.modules and config.get("resume") is None and not saved_config.custom_imports(config)
    ):
        values = resolve(config)
        validation.validate(values, "train" if is_training else command, origin)
    import_torch()
    if command == "summary":
        from dltrain.commands.summary import summarize

        summarize(config, typed=typed, resolve=resolve, origin=origin, deliver=deliver)
        return {}
    if command == "train":
        from dltrain.training.run import train

        hooks: Any = {name: hook for name, hook in (("watch", watch), ("load", load)) if hook is not None}
        return train(config, folder=folder, typed=typed, resolve=resolve, origin=origin, **hooks)
    if command == "eval":
        from dltrain.commands.evaluation import evaluate_checkpoints

        result = evaluate_checkpoints(values, typed=typed, resolve=resolve, deliver=deliver)
        return {result["split"]: {key: value for key, value in result.items() if key in ("loss", "accuracy")}}
    if command == "export":
        from dltrain.commands.export import export

        export(values, typed=typed, resolve=resolve)
        return {}
    from dltrain.commands.prediction import predict

    predict(values, typed=typed, resolve=resolve, deliver=deliver)
    return {}


def job_metrics(command: str, summary: dict[str, Any]) -> dict[str, float]:
    """Figures of a job by split: of a training the test's, and the validation's of the weights that were tested."""
    splits = dict(summary)
    if command == "train":
        best = summary.get("best") or {}
        splits = {"test": summary.get("test") or {}, "val": best if best.get("split") == "val" else {}}
    return {
        f"{split}_{key}": math.nan if value is None else value  # as JSON has it
        for split, values in splits.items()
        if isinstance(values, dict)
        for key, value in values.items()
        if key not in ("split", "step", "epoch")
    }


def read_result(command: str, folder: Path) -> JobResult | None:
    """The outcome of a job that is done, by what its folder says: nobody may have noted it."""
    try:
        summary: Any = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        if summary["status"] == "interrupted":
            return None
        return JobResult(0, summary["status"], job_metrics(command, summary), summary["total_seconds"], str(folder))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # not there, or not what a run writes
        return None
