"""Jobs on other machines with shared folders, through Ray or submitit on Slurm, with the methods of `local.Workers`."""

import contextlib
import importlib.util
import logging
import math
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dltrain.commands.jobs import INTERRUPTED, JobResult
from dltrain.runtime.errors import ConfigError, DeviceError, first_line
from dltrain.runtime.folders import expand_user
from dltrain.sweeps.executors.worker import JobMetrics, Task, run

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
LOST = "lost: its worker died"
PLACES = ("DLTRAIN_DATA", "DLTRAIN_CACHE")


def require(executor: str, options: dict[str, Any]) -> None:
    """Raise ConfigError if the engine is not installed, DeviceError if there is no cluster."""
    if executor != "local" and importlib.util.find_spec({"slurm": "submitit"}.get(executor, executor)) is None:
        raise ConfigError(
            f"sweep.executor={executor}: is not installed; in dltrain's checkout: pip install '.[{executor}]'"
        )
    if executor == "ray" and (address := re.fullmatch(r"([\w.-]+):(\d+)", str(options.get("address")))):
        try:  # Ray itself would try for minutes
            socket.create_connection((address[1], int(address[2])), timeout=5).close()
        except OSError as error:
            raise DeviceError(f"sweep.executor=ray: no cluster answers at {options['address']} ({error})") from error
    if executor == "slurm" and options.get("cluster", "slurm") == "slurm" and not shutil.which("sbatch"):
        raise DeviceError("sweep.executor=slurm: there is no sbatch here. Start the sweep on a login node")


def _run_there(cwd: str, places: dict[str, str], task: Task) -> JobResult:
    os.chdir(cwd)
    os.environ.update(places)
    task.log.touch()  # shows that the job has begun
    return run(task)


def _touched(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _places() -> dict[str, str]:
    """Return the paths of data and caches for the workers: a running cluster does not have these variables."""
    paths = {name: os.environ[name] for name in PLACES if name in os.environ}
    return {name: str(expand_user(text).absolute()) if text else "" for name, text in paths.items()}


@dataclass
class _Engine:
    """Base of the executors whose engine queues the jobs itself; no job waits for a verdict."""

    count: int | None
    threads: int
    gpus: int  # for each job
    options: dict[str, Any]
    jobs: dict[int, Any] = field(default_factory=dict)
    began: dict[int, float] = field(default_factory=dict)

    @property
    def free(self) -> int:
        assert self.count is not None
        return self.count - len(self.jobs)

    def age(self, number: int) -> float:
        return time.monotonic() - self.began.get(number, math.inf)  # none while it is queued

    def answer(self, number: int, verdict: str) -> None:
        pass


@dataclass
class Ray(_Engine):
    """Run jobs on the Ray cluster that `options` or RAY_ADDRESS name, else on an instance on this machine."""

    queued: dict[int, tuple[Path, float]] = field(default_factory=dict)  # log of each job, and when it was last touched

    def __post_init__(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray would hide the GPUs from a job that asks for none; here the config of the job decides.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        self.ray = ray
        quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
        try:
            ray.init(**quiet | self.options)
        except (ConnectionError, TypeError, ValueError, RuntimeError) as error:
            raise DeviceError(f"sweep.executor=ray: {first_line(error)}") from error
        resources = ray.cluster_resources()
        self.gpus = self.gpus if resources.get("GPU") else 0
        most = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
        if most < self.threads:  # Ray would silently wait for such a machine
            message = f"a job needs {self.threads} CPUs (device.threads), the largest machine has {most:g}"
            if "num_cpus" in self.options:  # a new instance: only an existing cluster may grow
                ray.shutdown()
                raise DeviceError(f"sweep.executor=ray: {message}")
            log.warning("sweep.executor=ray: %s; Ray waits for a larger one", message)
        slots = resources["GPU"] if self.gpus else resources.get("CPU", 1) / self.threads
        self.count = self.count or max(1, int(slots))
        self.remote = ray.remote(num_cpus=self.threads, num_gpus=self.gpus, max_retries=0)(_run_there)

    def start(self, task: Task) -> None:
        self.jobs[task.number] = self.remote.remote(str(Path.cwd()), _places(), task)
        self.began.pop(task.number, None)
        self.queued[task.number] = task.log, _touched(task.log)

    def wait(self) -> Iterator[tuple[int, JobMetrics | JobResult]]:
        ready, _ = self.ray.wait(list(self.jobs.values()), num_returns=1, timeout=POLL_SECONDS)
        for number, (path, before) in self.queued.items():
            if number not in self.began and _touched(path) != before:
                self.began[number] = time.monotonic()
        for number in [number for number, job in self.jobs.items() if job in ready]:
            job = self.jobs.pop(number)
            yield number, self._outcome(job)

    def _outcome(self, job: Any) -> JobResult:
        errors = self.ray.exceptions
        try:
            return self.ray.get(job)
        except errors.TaskCancelledError:
            return INTERRUPTED
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.ObjectLostError):
            return JobResult(137, LOST)
        except errors.RayError as error:
            return JobResult(1, first_line(error))

    def kill(self, number: int) -> None:
        self.ray.cancel(self.jobs[number], force=True)

    def interrupt(self) -> None:
        for job in self.jobs.values():
            self.ray.cancel(job)

    def close(self) -> None:
        self.ray.shutdown()


@dataclass(kw_only=True)
class Slurm(_Engine):
    """Run jobs on Slurm; `options` are submitit's, such as timeout_min. cluster=local runs them here, for a trial."""

    folder: Path

    def __post_init__(self) -> None:
        import submitit

        cluster = self.options.get("cluster", "slurm")
        wanted = {"cpus_per_task": self.threads, "gpus_per_node": self.gpus, "timeout_min": 24 * 60}
        wanted |= {key: value for key, value in self.options.items() if key != "cluster"}
        self.submitit = submitit
        try:
            self.executor = submitit.AutoExecutor(folder=self.folder / "slurm", cluster=cluster)
            self.executor.update_parameters(**wanted)
        except (NameError, ValueError, TypeError, RuntimeError, AssertionError) as error:
            raise ConfigError(f"sweep.options: {first_line(error)}") from error
        self.count = self.count or 256  # the cluster has its own queue

    def start(self, task: Task) -> None:
        self.jobs[task.number] = self.executor.submit(_run_there, str(Path.cwd()), _places(), task)

    def wait(self) -> Iterator[tuple[int, JobMetrics | JobResult]]:
        time.sleep(POLL_SECONDS)
        for number, job in list(self.jobs.items()):
            if number not in self.began and job.state != "PENDING":
                self.began[number] = time.monotonic()
            if job.done():
                del self.jobs[number]
                self.began.pop(number, None)
                yield number, self._outcome(job)

    def _outcome(self, job: Any) -> JobResult:
        errors = self.submitit.core.utils
        try:
            return job.result()
        except errors.FailedJobError as error:  # not raised by the job itself, which could not begin
            return JobResult(1, first_line(error))
        except errors.UncompletedJobError:
            return INTERRUPTED if "CANCEL" in str(job.state) else JobResult(137, f"{LOST} ({job.state})")

    def kill(self, number: int) -> None:
        self.jobs[number].cancel()

    def interrupt(self) -> None:
        for job in self.jobs.values():
            with contextlib.suppress(Exception):
                job.cancel()

    def close(self) -> None:
        self.interrupt()
