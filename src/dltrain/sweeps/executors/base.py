"""The interface of executors."""

from collections.abc import Iterator
from typing import Protocol

from dltrain.commands.jobs import JobResult
from dltrain.sweeps.executors.worker import JobMetrics, Task


class Executor(Protocol):
    """Runs jobs, in processes on this machine or through an engine on others."""

    @property
    def free(self) -> int:
        """Return how many more jobs can start."""

    def start(self, task: Task) -> None: ...

    def wait(self) -> Iterator[tuple[int, JobMetrics | JobResult]]:
        """Wait a moment, and yield new metrics and results with the number of the job."""

    def age(self, number: int) -> float:
        """Return for how many seconds a job has been running."""

    def answer(self, number: int, verdict: str) -> None:
        """Answer a job that waits after a validation: "" to continue, or the status to end with."""

    def kill(self, number: int) -> None: ...

    def interrupt(self) -> None:
        """Ask all running jobs to save and end."""

    def close(self) -> None: ...
