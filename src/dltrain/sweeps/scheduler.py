"""Scheduler of a sweep: starts jobs, records how they end, retries and stops."""

import time
from collections import Counter, deque
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from signal import Signals

from dltrain.commands.jobs import JobResult, read_result
from dltrain.config.composition import Composed
from dltrain.config.settings import Sweep
from dltrain.runtime.errors import sanitized
from dltrain.runtime.signals import SIGNALS
from dltrain.sweeps import results
from dltrain.sweeps.executors.local import Workers
from dltrain.sweeps.executors.ray import Ray
from dltrain.sweeps.executors.slurm import Slurm
from dltrain.sweeps.executors.worker import JobMetrics, Task
from dltrain.sweeps.journal import Journal
from dltrain.sweeps.live_view import View
from dltrain.sweeps.search import Search
from dltrain.training.stopping import in_seconds

WRONG_CONFIG = 2  # a retry would not help


@dataclass
class Scheduler:
    """Runs the jobs of a sweep. The journal is written first, then the files that can be made from it."""

    command: str
    folder: Path
    journal: Journal
    composed: dict[int, Composed]  # of the jobs that are not done
    executor: Workers | Ray | Slurm
    settings: Sweep
    view: View
    search: Search | None = None  # supplies further jobs once all known ones have begun
    queue: deque[int] = field(default_factory=deque)
    running: dict[int, float] = field(default_factory=dict)  # by number: start
    attempts: Counter[int] = field(default_factory=Counter)  # since this start
    saved: dict[int, int] = field(default_factory=dict)  # when a job's last checkpoint was written, before its start
    timed_out: set[int] = field(default_factory=set)
    ended: bool = False  # True if a job is in the journal that results.csv lacks
    stopping: bool = False
    cut_off: bool = False  # a cluster, say, and not this sweep, asked a job to save and stop

    def run(self, signals: Collection[int]) -> bool:
        """Run all jobs, or stop after one of `signals`. Return True if a job was stopped from outside the sweep."""
        while True:
            if signals and not self.stopping:
                self.view.log("stopping: waiting for jobs to save; a second signal ends them at once")
                self._stop()
            while not self.stopping and self.executor.free and (number := self._next()) is not None:
                self._start(number)
            if self.ended:  # written while the next jobs run
                results.write_results(self.folder / "results.csv", self.journal.entries.values())
                self.ended = False
            if not self.running:
                return self.cut_off
            for number, message in self.executor.wait():
                if isinstance(message, JobMetrics):
                    self._on_metrics(number, message)
                elif isinstance(message, JobResult):
                    self._end(number, message)
                else:
                    self.journal.submit(number, message)
            self._kill_hanging()
            self.view.refresh()

    def _next(self) -> int | None:
        if self.queue:
            return self.queue.popleft()
        if self.search is None or (drawn := self.search.draw()) is None:
            return None
        entry, self.composed[entry.number] = drawn
        return entry.number

    def _start(self, number: int) -> None:
        entry, composed = self.journal.entries[number], self.composed[number]
        config, folder = composed.config, self.folder / entry.folder
        is_new = self.command == "train" and config["resume"] is None  # else it writes into the folder of another run
        if is_new:
            folder.mkdir(exist_ok=True)
        self.journal.begin(number)
        self.attempts[number] += 1
        self.running[number] = time.monotonic()
        self.saved[number] = _saved(folder)
        self.view.on_start(number)
        target = folder.absolute() if is_new else None
        log = folder / "train.log" if is_new else self.folder / f"{number}.log"
        self.executor.start(Task(self.command, number, config, composed.typed, target, log.absolute()))

    def _on_metrics(self, number: int, message: JobMetrics) -> None:
        self.view.on_metrics(number, message.epoch, message.split, message.values)
        if message.split == "val":
            verdict = self.search.judge(number, message.epoch, message.values) if self.search is not None else ""
            self.executor.answer(number, verdict)

    def _end(self, number: int, outcome: JobResult) -> None:
        took = time.monotonic() - self.running.pop(number)
        expected = self.folder / self.journal.entries[number].folder
        folder = outcome.folder or (str(expected) if expected.exists() else "")
        outcome = replace(outcome, folder=folder, seconds=outcome.seconds or took)
        if number in self.timed_out and outcome.code:  # else it ended just before the kill
            status = f"timed out after {self.settings.job_timeout} (sweep.job_timeout)"
            outcome = replace(outcome, code=124, status=status)
        self.timed_out.discard(number)
        if self.stopping and outcome.failed and outcome.code > 128:  # killed after it was asked to save
            outcome = replace(outcome, code=143, status="interrupted")
        may_retry = outcome.failed and not self.stopping and outcome.code != WRONG_CONFIG
        if may_retry and self.attempts[number] <= self.settings.retries:
            self.view.log(f"job {number} failed ({outcome.code}): {outcome.status}; trying again")
            self.queue.appendleft(number)
            return
        has_saved = _saved(Path(folder)) != self.saved[number]
        was_stopped = outcome.code == SIGNALS[Signals.SIGTERM] and not self.stopping
        may_requeue = self.settings.requeue and (has_saved or self.attempts[number] <= self.settings.retries)
        if was_stopped and may_requeue:
            when = "after it had saved" if has_saved else "before it could save"
            self.view.log(f"job {number} was stopped {when}; submitting it again (sweep.requeue)")
            self.attempts[number] -= has_saved  # stopped in vain is an attempt
            self.queue.append(number)
            return
        self.cut_off |= outcome.interrupted and not self.stopping
        self.journal.end(number, outcome)
        self.ended = True
        self.view.on_end(number, outcome)
        if self.command != "train":
            self._print_log(number)
        if self.search is not None and not outcome.interrupted:
            self.search.tell(number, outcome)
        if not outcome.interrupted:
            self.composed.pop(number, None)
        if outcome.failed and self.settings.stop_on_failure and not self.stopping:
            self.view.log("a job has failed (sweep.stop_on_failure): the other jobs save and stop")
            self._stop()

    def _print_log(self, number: int) -> None:
        """Print the log of a job: the output of eval, predict and export is their result."""
        path = self.folder / f"{number}.log"
        if path.exists():
            for line in sanitized(path.read_text(encoding="utf-8", errors="replace")).splitlines():
                self.view.log(line)

    def _stop(self) -> None:
        self.stopping = True
        self.executor.interrupt()

    def _kill_hanging(self) -> None:
        if self.settings.job_timeout is None:
            return
        limit = in_seconds(self.settings.job_timeout)
        for number in self.running.keys() - self.timed_out:
            if self.executor.age(number) > limit:
                self.timed_out.add(number)
                self.executor.kill(number)


def _saved(folder: Path) -> int:
    """Return when the last checkpoint in a run folder was written; 0 if there is none."""
    path = folder / "checkpoints" / "last.pt"
    return path.stat().st_mtime_ns if path.exists() else 0


def unfinished(command: str, folder: Path, journal: Journal, *, retry_failed: bool) -> list[int]:
    """Return the numbers of jobs left to run, in order; first add results that the journal lacks."""
    numbers = []
    for number, entry in sorted(journal.entries.items()):
        # On a cluster a job outlives the sweep; a second start of it then fails, although the first is done.
        is_done = entry.outcome is not None and not entry.outcome.code
        if entry.begun and not is_done and (outcome := read_result(command, folder / entry.folder)):
            journal.end(number, outcome)
        outcome = entry.outcome
        if outcome is None or outcome.interrupted or (outcome.failed and retry_failed):
            numbers.append(number)
    return numbers
