"""Writes the folder of a run: records, trackers, checkpoints. With several processes only the first has one."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dltrain.checkpoints import checkpoint
from dltrain.data import augmentation
from dltrain.engine import Record
from dltrain.report import run_files, run_reader
from dltrain.report.trackers.run_trackers import Trackers
from dltrain.runtime import atomic_files, folders, system_info
from dltrain.training import build, checks, class_counts, snapshot
from dltrain.training.resume_point import ResumePoint
from dltrain.training.snapshot import Run

log = logging.getLogger(__name__)


@dataclass
class RunDir:
    """The folder of a run and its open files; `best` is the record whose weights best.pt holds."""

    folder: Path
    metrics: run_files.Metrics
    trackers: Trackers
    best: dict[str, Any] = field(default_factory=dict)
    unchecked: int = 2  # number of checkpoints still to be checked
    show: Callable[[dict[str, Any]], None] = lambda line: None

    def log_start(self, run: Run, *, resumed: bool) -> None:
        """Log the model, the data, the device and the folder."""
        values, data = run.config.values, run.data
        counts = ", ".join(f"{len(part.images):,} {split}" for split, part in data.splits.items())
        shape = "x".join(map(str, data.input_shape))
        outputs = f"{data.outputs} classes" if data.train.classes else f"{data.outputs} values to predict"
        log.info("model   %s, %s parameters", values["model"]["name"], f"{build.count_parameters(run.state.model):,}")
        log.info("data    %s, %s examples of %s, %s", values["data"]["name"], counts, shape, outputs)
        if changes := augmentation.describe(run.train.augmentation):
            log.info("augment %s", changes)
        balanced = bool(values["data"].get("balance") or values["task"].get("class_weights"))
        class_counts.show(data, balanced=balanced)
        log.info("device  %s", run.runtime.describe())
        if run.runtime.processes.world_size > 1 and checks.has_batch_norm(run.state.model):
            log.info("batch norm uses each rank's part of a batch: the result differs from that of one process")
        log.info("folder  %s%s", self.folder, f", resumed at step {run.state.step}" if resumed else "")

    def write(self, record: Record) -> None:
        line = self.metrics.write(record)
        self.trackers.write(line)
        self.show(line)

    def save(self, run: Run, content: dict[str, Any], keep: int) -> None:
        """Write last.pt, and before it best.pt if there is a new best."""
        self.metrics.flush()
        # Without validation the best weights change with every step.
        if run.progress.best and (run.progress.best != self.best or not run.progress.best_weights):
            self.save_best(run)
            self.best = run.progress.best
        # At the start, and once the optimizer has state: a checkpoint that cannot be read fails before it costs time.
        check, self.unchecked = self.unchecked > 0, self.unchecked - 1
        checkpoint.save(self.folder / "checkpoints" / "last.pt", content, keep=keep, check=check)
        self.trackers.saved()

    def save_best(self, run: Run) -> None:
        checkpoint.save(self.folder / "checkpoints" / "best.pt", snapshot.best_checkpoint(run))


@contextlib.contextmanager
def open_run_dir(
    run: Run, start: ResumePoint | None, folder: Path | None, log_to: Callable[[Path], None]
) -> Iterator[RunDir]:
    """Create, or open to resume, the folder of a run, and lock it."""
    config = run.config
    with contextlib.ExitStack() as stack:
        if start is not None:
            folder = start.folder  # already locked
        else:
            folder = folder or folders.dated_folder(name=run.settings.name)
            stack.enter_context(folders.locked(folder / ".lock", wait=False))
        with atomic_files.output_errors(folder):
            log_to(folder / "train.log")
            (folder / "checkpoints").mkdir(exist_ok=True)
            run_files.write_config(folder / ".hydra" / "config.yaml", config.stored)
            # These describe other weights, or other code.
            for name in ("analysis.json", "summary.json", "code.diff") if start is not None else ():
                (folder / name).unlink(missing_ok=True)
            if run.settings.report:
                run_reader.write_origins(folder, config.values, config.origin, config.typed if start else None)
            metrics = run_files.Metrics(folder / "metrics.jsonl", start.content["position"] if start else 0)
            if start is not None and metrics.position < start.content["position"]:
                log.warning("metrics.jsonl lacks records from before step %d; the rest is kept", run.state.step)
        stack.enter_context(contextlib.closing(metrics))
        (thread := threading.Thread(target=system_info.keep_code, args=[folder])).start()  # git may take seconds
        stack.callback(thread.join)
        trackers = Trackers(config.values.get("logger", {}), folder, config.stored)
        yield RunDir(folder, metrics, stack.enter_context(contextlib.closing(trackers)))
