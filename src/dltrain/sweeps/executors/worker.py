"""What a process does that runs jobs: one after another, all that they print going to their logs."""

import contextlib
import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dltrain.commands.jobs import JobResult, run_job
from dltrain.runtime.signals import SIGNALS, exit_code, signals_as_exceptions
from dltrain.runtime.startup import import_torch


@dataclass(frozen=True)
class Task:
    """A job as it is sent to whoever runs it; `log` takes all it prints."""

    command: str
    number: int
    config: dict[str, Any]
    typed: list[str]
    folder: Path | None
    log: Path


@dataclass(frozen=True)
class JobMetrics:
    """A record of a running job, as it is told to the parent."""

    split: str
    epoch: float
    values: dict[str, float]


def work(
    connection: Connection,
    lifeline: Connection,
    inherited: list[Connection],
    threads: int | None,
    gpu: str | None,
    awaits_verdict: bool,
) -> None:
    """What a worker does: jobs, until there are no more or its parent is gone."""
    for other in inherited:
        other.close()
    os.setpgid(0, 0)  # Ctrl-C in a terminal is for the parent, which tells us
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    assert sys.__stdout__ is not None and sys.__stderr__ is not None
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # our parent may have put others in their place
    logging.getLogger("dltrain").handlers.clear()  # a job has its own
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    from dltrain.sweeps.executors.data_cache import DataCache

    load = DataCache()

    def watch(record: Any) -> str:
        connection.send(JobMetrics(record.split, record.epoch, record.values))
        return str(connection.recv()) if awaits_verdict and record.split == "val" else ""

    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        outcome = run(task, watch=watch, load=load, threads=threads)
        try:
            connection.send(outcome)
        except OSError:
            return


def _end_with_parent(lifeline: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv_bytes()
    os.killpg(0, signal.SIGKILL)  # and what our jobs have started; a run has checkpoints


def run(task: Task, *, threads: int | None = None, **hooks: Callable[..., Any]) -> JobResult:
    """Run a task in this process, all it prints going to its log."""
    import_torch()
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    hooks = hooks if task.command == "train" else {}
    began = time.perf_counter()
    with _printed_to(task.log):
        try:
            with signals_as_exceptions():
                # Errors are not printed: the run's log has them.
                settings = {"typed": task.typed, "folder": task.folder, **hooks}
                return run_job(task.command, task.config, exit_code, **settings)[0]
        except SystemExit as end:
            return JobResult(1, f"its code left with exit code {end.code}", seconds=time.perf_counter() - began)


@contextlib.contextmanager
def _printed_to(path: Path) -> Iterator[None]:
    """Let what this process prints, also from C and where it crashes, go to the end of a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    before = os.dup(1), os.dup(2)
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        os.dup2(target, 1)
        os.dup2(target, 2)
        faulthandler.enable(2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, descriptor in zip((1, 2), before, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(target)
