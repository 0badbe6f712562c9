"""What executors share that run jobs on other machines with shared folders; methods as in `local.Workers`."""

import contextlib
import importlib.util
import json
import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dltrain.commands.jobs import JobResult
from dltrain.runtime.errors import ConfigError, DeviceError, OutputError
from dltrain.runtime.folders import expand_user, locked
from dltrain.sweeps.executors.worker import JobMetrics, Task, run

POLL_SECONDS = 0.5
LOCK_SECONDS = 120
LOST = "lost: its worker died"
VERDICTS = ".verdicts"  # in the folder of a job, a line for each validation: its epoch and the verdict
PATIENCE_SECONDS = 60.0  # a network file system shows what another machine has written after up to a minute
PLACES = ("DLTRAIN_DATA", "DLTRAIN_CACHE")


def require(options: dict[str, Any]) -> None:
    """Raise ConfigError if Ray is not installed, DeviceError if there is no cluster."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("sweep.executor=ray: is not installed; in dltrain's checkout: pip install -e '.[ray]'")
    named = str(options.get("address") or os.environ.get("RAY_ADDRESS"))
    if address := re.fullmatch(r"([\w.-]+):(\d+)", named):
        try:  # Ray itself would try for minutes
            socket.create_connection((address[1], int(address[2])), timeout=5).close()
        except OSError as error:
            raise DeviceError(f"sweep.executor=ray: no cluster answers at {named} ({error})") from error


@dataclass
class JobFiles:
    """The metrics and verdicts of a running job, in the folder that its machine and this one see."""

    folder: Path
    position: int = 0  # bytes of metrics.jsonl that were read
    epoch: float = 0.0

    def new_metrics(self) -> Iterator[JobMetrics]:
        """Yield the metrics since the last call; all of them again once a job has continued from its checkpoint."""
        content = b""
        with contextlib.suppress(OSError), (self.folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, self.position - 1))
            content = file.read()
        if self.position and content[:1] != b"\n":  # the job has cut the file back: read from the start next time
            self.position, content = 0, b""
        whole = content[self.position > 0 : content.rfind(b"\n") + 1]
        self.position += len(whole)
        for line in whole.splitlines():
            with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):
                record: dict[str, Any] = json.loads(line)
                split, self.epoch = record.pop("split"), float(record.pop("epoch"))
                values = {key: math.nan if value is None else value for key, value in record.items()}
                yield JobMetrics(split, self.epoch, values)

    def answer(self, verdict: str) -> None:
        """Answer the validation that was yielded last."""
        with contextlib.suppress(OSError), (self.folder / VERDICTS).open("a") as file:
            file.write(f"{self.epoch} {verdict}\n")


def verdicts(folder: Path) -> Callable[[Any], str]:
    """Return a `watch` for a job that waits for the verdict on each validation, and goes on if its sweep has died."""
    patience = PATIENCE_SECONDS

    def watch(record: Any) -> str:
        nonlocal patience
        epoch, until = re.escape(str(round(record.epoch, 6))), time.monotonic() + patience
        while record.split == "val":
            with contextlib.suppress(OSError):
                # The first answer counts: a job that continues repeats some epochs.
                if found := re.search(rf"^{epoch} (.*)\n", (folder / VERDICTS).read_text(), re.MULTILINE):
                    patience = PATIENCE_SECONDS
                    return found[1]
            if time.monotonic() > until:
                patience = 0.0
                break
            time.sleep(0.05)
        return ""

    return watch


def run_there(cwd: str, places: dict[str, str], task: Task, waits: bool = False) -> JobResult:
    """Run a job in a process on another machine, with the current folder and paths of this one."""
    os.chdir(cwd)
    os.environ.update(places)
    task.log.touch()  # shows that the job has begun
    if task.folder is None:
        return run(task)
    # An earlier process of this job, on a machine that was lost, may still be ending.
    with contextlib.suppress(OutputError), locked(task.folder / ".lock", wait=LOCK_SECONDS):
        pass
    return run(task, watch=verdicts(task.folder)) if waits else run(task)


def places() -> dict[str, str]:
    """Return the paths of data and caches for the workers: a running cluster does not have these variables."""
    paths = {name: os.environ[name] for name in PLACES if name in os.environ}
    return {name: str(expand_user(text).absolute()) if text else "" for name, text in paths.items()}


@dataclass
class Engine:
    """Base of the executors whose engine queues the jobs itself."""

    count: int | None
    threads: int
    gpus: int  # for each job
    options: dict[str, Any]
    waits: bool = False  # a job waits for `answer` after each validation
    jobs: dict[int, Any] = field(default_factory=dict)
    files: dict[int, JobFiles] = field(default_factory=dict)
    began: dict[int, float] = field(default_factory=dict)

    @property
    def free(self) -> int:
        assert self.count is not None
        return self.count - len(self.jobs)

    def age(self, number: int) -> float:
        return time.monotonic() - self.began.get(number, math.inf)  # none while it is queued

    def new_metrics(self) -> Iterator[tuple[int, JobMetrics]]:
        """Yield the metrics that jobs have written since the last call."""
        for number in self.jobs.keys() & self.files.keys():
            yield from ((number, metrics) for metrics in self.files[number].new_metrics())

    def answer(self, number: int, verdict: str) -> None:
        if self.waits:
            self.files[number].answer(verdict)
