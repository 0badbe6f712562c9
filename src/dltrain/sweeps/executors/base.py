"""The interface of an executor."""

from collections.abc import Iterator
from typing import Protocol

from dltrain.commands.jobs import JobResult
from dltrain.sweeps.executors.worker import JobMetrics, Task


class Executor(Protocol):
    """Whoever runs jobs: processes here, or an engine for other machines."""

    @property
    def free(self) -> int:
        """How many more jobs can start."""

    def start(self, task: Task) -> None: ...

    def wait(self) -> Iterator[tuple[int, JobMetrics | JobResult]]:
        """What running jobs have told, and how jobs ended, by number; waits a moment for it."""

    def age(self, number: int) -> float:
        """Seconds for which a job has been running."""

    def answer(self, number: int, verdict: str) -> None:
        """Tell a job that waits after a validation to go on (""), or with what status to end."""

    def kill(self, number: int) -> None: ...

    def interrupt(self) -> None:
        """Ask all running jobs to save and end."""

    def close(self) -> None: ...
