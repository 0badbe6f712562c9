"""Jobs on a Ray cluster whose machines share the folder of the sweep."""

import logging
import os
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dltrain.commands.jobs import INTERRUPTED, JobResult
from dltrain.runtime.errors import DeviceError, first_line
from dltrain.sweeps.executors.remote import LOST, POLL_SECONDS, Engine, JobFiles, places, run_there
from dltrain.sweeps.executors.worker import JobMetrics, Task

log = logging.getLogger(__name__)

LOST_SECONDS = 30  # without an answer of the head; Ray itself would end this process after 60
AGAIN = "sweep.resume=last sweep.executor=ray"
LOST_CLUSTER = f"sweep.executor=ray: the cluster is lost. Start it again, then continue with {AGAIN}"


@dataclass
class Ray(Engine):
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
            context = ray.init(**quiet | self.options)
        except (ConnectionError, TypeError, ValueError, RuntimeError) as error:
            raise DeviceError(f"sweep.executor=ray: {first_line(error)}") from error
        self.head = getattr(context, "address_info", {}).get("gcs_address", "")  # unknown through Ray's client
        self.answered = time.monotonic()
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
        self.remote: Any = ray.remote(num_cpus=self.threads, num_gpus=self.gpus, max_retries=0)(run_there)

    def start(self, task: Task) -> None:
        self.files.setdefault(task.number, JobFiles(task.log.parent))
        self.jobs[task.number] = self.remote.remote(str(Path.cwd()), places(), task, self.waits)
        self.began.pop(task.number, None)
        self.queued[task.number] = task.log, task.log.exists() and task.log.stat().st_mtime

    def wait(self) -> Iterator[tuple[int, JobMetrics | JobResult]]:
        ready, _ = self.ray.wait(
            list(self.jobs.values()), num_returns=1, timeout=POLL_SECONDS / (5 if self.waits else 1)
        )
        if not self._head_answers():
            return
        for number, (path, before) in self.queued.items():
            if number not in self.began and path.exists() and path.stat().st_mtime != before:
                self.began[number] = time.monotonic()
        yield from self.new_metrics()  # before the results
        results = {number: self._outcome(job) for number, job in self.jobs.items() if job in ready}
        if any(result.code == 137 for result in results.values()):  # lost alone, or with the head, a moment later
            time.sleep(POLL_SECONDS)
            if not self._head_answers():
                return
        for number, result in results.items():
            del self.jobs[number]
            yield number, result

    def _head_answers(self) -> bool:
        """Tell whether the head's results count: without its head Ray reports jobs as failed that may still run."""
        host, _, port = self.head.rpartition(":")
        try:
            if host:
                socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError as error:
            if time.monotonic() - self.answered > LOST_SECONDS:
                raise DeviceError(LOST_CLUSTER) from error
            time.sleep(POLL_SECONDS)
            return False
        self.answered = time.monotonic()
        return True

    def _outcome(self, job: Any) -> JobResult:
        errors = self.ray.exceptions
        try:
            return self.ray.get(job)
        except errors.TaskCancelledError:
            return INTERRUPTED
        except errors.NodeDiedError as error:
            return JobResult(137, " ".join(["lost: its machine died", *re.findall(r"Node IP: ([^,\s]+)", str(error))]))
        except (errors.WorkerCrashedError, errors.ObjectLostError):
            return JobResult(137, LOST)
        except errors.LocalRayletDiedError as error:  # no job can start
            raise DeviceError(LOST_CLUSTER) from error
        except errors.RayError as error:
            return JobResult(1, first_line(error))

    def kill(self, number: int) -> None:
        self.ray.cancel(self.jobs[number], force=True)

    def interrupt(self) -> None:
        for job in self.jobs.values():
            self.ray.cancel(job)

    def close(self) -> None:
        self.ray.shutdown()
