"""A worker process: runs jobs one after another and redirects their output to their logs."""

import contextlib
import faulthandler
import functools
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dltrain.commands.jobs import JobResult, read_result, run_job
from dltrain.config import saved_config
from dltrain.runtime import system_info
from dltrain.runtime.signals import SIGNALS, exit_code, signals_as_exceptions
from dltrain.runtime.startup import NO_CUDA_START, import_torch
from dltrain.runtime.torchrun import VISIBLE_GPUS


@dataclass(frozen=True)
class Task:
    """A job as the executor gets it; `log` is the file for its output."""

    command: str
    number: int
    config: dict[str, Any]
    typed: list[str]
    folder: Path | None
    log: Path


@dataclass(frozen=True)
class JobMetrics:
    """Metrics of a running job, as a worker sends them to its parent."""

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
    """Run jobs in a worker until there are no more or the parent is gone."""
    for other in inherited:
        other.close()
    os.setpgid(0, 0)  # Ctrl-C in a terminal reaches only the parent, which signals the workers
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    assert sys.__stdout__ is not None and sys.__stderr__ is not None
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # the parent may have replaced them
    logging.getLogger("dltrain").handlers.clear()  # each job adds its own
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
    if gpu is not None:
        os.environ |= dict.fromkeys(VISIBLE_GPUS, gpu)
    from dltrain.sweeps.executors.data_cache import DataCache

    load = DataCache()
    system_info.environment = functools.cache(system_info.environment)  # all jobs run the same code; git is slow

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
    os.killpg(0, signal.SIGKILL)  # including what jobs have started; runs have checkpoints


def _continued(task: Task) -> Task:
    """Return a task that resumes its run, if an earlier attempt has left a checkpoint."""
    if task.folder is None or not (task.folder / "checkpoints" / "last.pt").exists():
        return task
    # The user has already typed or trusted these packages for this sweep.
    trust = [package for _, package in saved_config.custom_imports(task.config)]
    typed = ["resume", "trust", *(key for key in ("logger", "report") if key in task.config)]
    return replace(task, config=task.config | {"resume": str(task.folder), "trust": trust}, typed=typed)


def run(task: Task, *, threads: int | None = None, **hooks: Callable[..., Any]) -> JobResult:
    """Run a task in this process, with its output in its log."""
    if task.folder is not None and (done := read_result(task.command, task.folder)):
        return done  # an earlier attempt was lost after its end
    task = _continued(task)
    os.environ.pop(NO_CUDA_START, None)  # set by the parent
    import_torch()
    import torch

    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    began = time.perf_counter()
    with _printed_to(task.log):
        try:
            with signals_as_exceptions():
                # Errors are not printed: they are in the log of the run.
                settings = {"typed": task.typed, "folder": task.folder, **hooks}
                return run_job(task.command, task.config, exit_code, **settings)[0]
        except SystemExit as end:
            return JobResult(1, f"its code exited with code {end.code}", seconds=time.perf_counter() - began)
        finally:
            torch.set_num_threads(before)  # a later job of this process may need more than the rule chose


@contextlib.contextmanager
def _printed_to(path: Path) -> Iterator[None]:
    """Append the output of this process to a file, including that of C code and of a crash."""
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
