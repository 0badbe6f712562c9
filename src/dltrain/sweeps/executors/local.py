"""Worker processes on this machine, each running one job at a time.

They are forked from a parent that has imported everything, so that a job starts at once. The parent must never have run
a parallel tensor operation or touched CUDA: a forked process would hang or fail. A worker that dies, is killed or hangs
affects no other job.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from dltrain.commands.jobs import JobResult
from dltrain.runtime.torchrun import VISIBLE_GPUS
from dltrain.sweeps.executors.worker import JobMetrics, Task, work

POLL_SECONDS = 0.2
GRACE_SECONDS = 10.0  # until a worker that was asked to end is killed


@dataclass
class Worker:
    process: Any
    connection: Connection
    task: Task | None = None
    began: float = 0.0


@dataclass
class Workers:
    """Run jobs in up to `count` processes, started when needed, which share the devices named in `gpus`."""

    count: int
    threads: int | None
    gpus: list[str] = field(default_factory=list)
    awaits_verdict: bool = False  # a job waits for `answer` after each validation
    workers: dict[int, Worker] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.context: Any = multiprocessing.get_context("fork" if can_fork() else "spawn")
        # It closes when this process ends, however it ends: the workers notice and end too.
        self.lifeline, self.held = self.context.Pipe(duplex=False)

    @property
    def free(self) -> int:
        """Return how many more jobs can start."""
        return self.count - sum(worker.task is not None for worker in self.workers.values())

    def start(self, task: Task) -> None:
        """Start a job in a free worker."""
        slot = next(i for i in range(self.count) if i not in self.workers or self.workers[i].task is None)
        if slot not in self.workers or not self.workers[slot].process.is_alive():  # it died while idle
            self.workers[slot] = self._fork(slot)
        worker = self.workers[slot]
        worker.task, worker.began = task, time.monotonic()
        with contextlib.suppress(OSError):  # it has just died; `wait` will notice
            worker.connection.send(task)

    def _fork(self, slot: int) -> Worker:
        ours, theirs = self.context.Pipe()
        gpu = self.gpus[slot % len(self.gpus)] if self.gpus else None
        inherited = [ours, self.held] if can_fork() else []
        settings = (theirs, self.lifeline, inherited, self.threads, gpu, self.awaits_verdict)
        process = self.context.Process(target=work, args=settings, name=f"dltrain worker {slot}")
        # Python 3.12 warns that a fork beside threads may hang; the threads of numpy survive one.
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            process.start()
        theirs.close()
        return Worker(process, ours)

    def wait(self) -> Iterator[tuple[int, JobMetrics | JobResult]]:
        """Wait a moment, and yield new metrics and results with the number of the job."""
        ready = wait([worker.connection for worker in self.workers.values()], POLL_SECONDS)
        for slot, worker in [*self.workers.items()]:
            message: Any = None
            if worker.connection in ready:
                try:
                    message = worker.connection.recv()
                except (EOFError, OSError):  # it is dying, or its job has closed the pipe
                    self._kill(worker)
            if message is None and not worker.process.is_alive():
                message = self._reap(self.workers.pop(slot))
            if message is None or worker.task is None:
                continue
            number = worker.task.number
            if isinstance(message, JobResult):
                worker.task = None
            yield number, message

    def _reap(self, worker: Worker) -> JobResult:
        """Return the result of a dead worker's job, and kill the processes that it left."""
        worker.process.join()
        self._kill(worker)
        outcome = result_of_exit(worker.process.exitcode)
        with contextlib.suppress(EOFError, OSError):
            while worker.connection.poll():  # the job may have ended before the worker died
                message = worker.connection.recv()
                outcome = message if isinstance(message, JobResult) else outcome
        worker.connection.close()
        return outcome

    def age(self, number: int) -> float:
        """Return how many seconds a job has been running."""
        return time.monotonic() - self._of(number).began

    def answer(self, number: int, verdict: str) -> None:
        """Answer a job that waits after a validation: "" to continue, or the status to end with."""
        if self.awaits_verdict:
            with contextlib.suppress(OSError):
                self._of(number).connection.send(verdict)

    def kill(self, number: int) -> None:
        """Kill the worker of a job at once."""
        self._kill(self._of(number))

    def _of(self, number: int) -> Worker:
        return next(worker for worker in self.workers.values() if worker.task and worker.task.number == number)

    def interrupt(self) -> None:
        """Ask all jobs to save and end."""
        for worker in self.workers.values():
            if worker.task is not None:
                with contextlib.suppress(OSError):
                    os.kill(worker.process.pid, signal.SIGTERM)

    def close(self) -> None:
        """End all workers; those with a job are killed."""
        for worker in self.workers.values():
            worker.connection.close()  # ends an idle worker
            if worker.task is not None:
                self._kill(worker)
        for worker in self.workers.values():
            worker.process.join(GRACE_SECONDS)
            self._kill(worker)
            worker.process.join()
        self.workers.clear()
        self.held.close()
        self.lifeline.close()

    def _kill(self, worker: Worker) -> None:
        with contextlib.suppress(OSError):
            os.killpg(worker.process.pid, signal.SIGKILL)


def can_fork() -> bool:
    """True if a forked process can compute: only on Linux, and before CUDA is touched."""
    torch = sys.modules.get("torch")
    return sys.platform == "linux" and not (torch and torch.cuda.is_initialized())


def result_of_exit(code: int | None) -> JobResult:
    """Return the result of a job whose process ended without sending one; a negative code is a signal."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return JobResult(128 - code, f"killed by {name}{hint}")
    return JobResult(1, f"its process ended with exit code {code}")


def gpu_names() -> list[str]:
    """Return the GPUs of this machine, counted in another process: after counting, a process cannot fork workers."""
    import torch

    count = 0 if can_fork() else torch.cuda.device_count()
    if can_fork():
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe(duplex=False)
        # Not in a pool, whose process would outlive a sweep that is killed.
        process = context.Process(target=lambda: theirs.send(torch.cuda.device_count()))
        process.start()
        theirs.close()
        with contextlib.suppress(EOFError):
            count = ours.recv()
        process.join()
    listed = [os.environ[name] for name in VISIBLE_GPUS[not torch.version.hip :] if name in os.environ]
    names = [name.strip() for name in listed[0].split(",")] if listed else [str(number) for number in range(count)]
    # A process sees only the first of several parts of GPUs.
    return names if count and names[0].startswith("MIG-") else names[:count]
