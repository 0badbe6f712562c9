"""What a run writes while it goes: its folder, records, trackers, checkpoints. Of several processes the first does."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dltrain.checkpoints import checkpoint
from dltrain.engine import Record
from dltrain.report import run_files, run_reader
from dltrain.report.trackers.run_trackers import Trackers
from dltrain.runtime import atomic_files, folders
from dltrain.training import build, checks, snapshot
from dltrain.training.resume_point import ResumePoint
from dltrain.training.snapshot import Run

log = logging.getLogger(__name__)


@dataclass
class RunDir:
    """The folder of a run and its open files; `best_checkpoint` is what best.pt holds."""

    folder: Path
    metrics: run_files.Metrics
    trackers: Trackers
    best: dict[str, Any] = field(default_factory=dict)
    unchecked: int = 2  # checkpoints that are to be checked

    def log_start(self, run: Run, *, resumed: bool) -> None:
        """What is trained on what, where, and in which folder: the first lines of the log."""
        names = run.config.values["model"]["name"], run.config.values["data"]["name"]
        for line in (*build.describe(*names, run.state.model, run.data), f"device  {run.runtime.describe()}"):
            log.info(line)
        if run.runtime.processes.world_size > 1 and checks.has_batch_norm(run.state.model):
            log.info("batch norm goes by a process's own part of a batch: not the result of one process")
        log.info("folder  %s%s", self.folder, f", resumed at step {run.state.step}" if resumed else "")

    def write(self, record: Record) -> None:
        self.trackers.write(self.metrics.write(record))

    def save(self, run: Run, content: dict[str, Any], keep: int) -> None:
        """Write last.pt, and before it best.pt if there is a new best."""
        self.metrics.flush()
        # Without validation it is another with every step.
        if run.progress.best and (run.progress.best != self.best or not run.progress.best_weights):
            self.save_best(run)
            self.best = run.progress.best
        # At the start, and once the optimizer has state: what cannot be read again is told before it costs any time.
        check, self.unchecked = self.unchecked > 0, self.unchecked - 1
        checkpoint.save(self.folder / "checkpoints" / "last.pt", content, keep=keep, check=check)
        self.trackers.saved()

    def save_best(self, run: Run) -> None:
        checkpoint.save(self.folder / "checkpoints" / "best.pt", snapshot.best_checkpoint(run))


@contextlib.contextmanager
def open_run_dir(
    run: Run,
    start: ResumePoint | None,
    folder: Path | None,
    log_to: Callable[[Path], None],
) -> Iterator[RunDir]:
    """The folder of a run, made or gone on in, locked."""
    config = run.config
    with contextlib.ExitStack() as stack:
        if start is not None:
            folder = start.folder  # it is locked
        else:
            folder = folder or folders.dated_folder(name=run.settings.name)
            stack.enter_context(folders.locked(folder / ".lock", wait=False))
        with atomic_files.output_errors(folder):
            log_to(folder / "train.log")
            (folder / "checkpoints").mkdir(exist_ok=True)
            run_files.write_config(folder / ".hydra" / "config.yaml", config.stored)
            # They show other weights.
            for name in ("analysis.json", "report.html", "summary.json") if start is not None else ():
                (folder / name).unlink(missing_ok=True)
            if run.settings.report:
                run_reader.write_origins(folder, config.values, config.origin, config.typed if start else None)
            metrics = run_files.Metrics(folder / "metrics.jsonl", start.content["position"] if start else 0)
            if start is not None and metrics.position < start.content["position"]:
                log.warning("metrics.jsonl has lost records from before step %d; what is left is kept", run.state.step)
        stack.enter_context(contextlib.closing(metrics))
        trackers = Trackers(config.values.get("logger", {}), folder, config.stored)
        yield RunDir(folder, metrics, stack.enter_context(contextlib.closing(trackers)))
