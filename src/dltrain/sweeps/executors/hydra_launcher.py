"""Launchers of other people, such as hydra/launcher=joblib: they run the jobs, the folder and the table stay ours."""

import copy
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from omegaconf import DictConfig, open_dict

from dltrain.commands.jobs import INTERRUPTED, JobResult, read_result
from dltrain.config import hydra_guard
from dltrain.config.composition import Sweeping
from dltrain.runtime.errors import first_line
from dltrain.sweeps.executors.worker import Task, run

ALL = -1


def is_chosen(sweeping: Sweeping) -> bool:
    """Whether another launcher than dltrain's was typed."""
    return bool(sweeping.master.hydra.launcher._target_ != f"{hydra_guard.PLUGINS}.DltrainLauncher")


def _job(tasks: Sequence[Task], stopped: Path, config: DictConfig) -> JobResult:
    """What the launcher calls, often in a process of its own; after a job that was told to save none begins."""
    if stopped.exists():
        return INTERRUPTED
    task = tasks[HydraConfig.get().job.num]
    outcome = run(task)
    if outcome.interrupted:
        stopped.touch()
    return outcome


@dataclass
class HydraLauncher:
    """An executor that collects tasks until it is waited for, and then gives them all to the launcher."""

    sweeping: Sweeping
    folder: Path
    tasks: list[Task] = field(default_factory=list)
    free: int = sys.maxsize

    def start(self, task: Task) -> None:
        self.tasks.append(task)

    def wait(self) -> Iterator[tuple[int, JobResult]]:
        tasks, self.tasks = self.tasks, []
        outcomes = self._launched(tasks)
        for task in tasks:
            # What has a summary was done, whatever became of the others.
            done = task.folder and read_result(task.command, task.folder)
            yield task.number, done or outcomes.get(task.number) or outcomes.get(ALL) or JobResult(1, "lost")

    def _launched(self, tasks: Sequence[Task]) -> dict[int, JobResult]:
        master = copy.deepcopy(self.sweeping.master)
        with open_dict(master):
            master.hydra.sweep.dir = str(self.folder.absolute())
        stopped = self.folder.absolute() / ".stopped"
        stopped.unlink(missing_ok=True)
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self.sweeping.context, task_function=partial(_job, tasks, stopped), config=master
        )
        try:
            returned: Sequence[Any] = launcher.launch([list(task.words) for task in tasks], initial_job_idx=0)
        except Exception as error:  # joblib's, say, when one of its workers was killed: the others' results are gone
            return {ALL: JobResult(1, first_line(f"lost by the launcher: {type(error).__name__}: {error}"))}
        return {
            task.number: each.return_value
            if each.status == JobStatus.COMPLETED
            else JobResult(1, first_line(each._return_value))
            for task, each in zip(tasks, returned, strict=False)
        }

    def age(self, number: int) -> float:
        return 0.0

    def answer(self, number: int, verdict: str) -> None:
        pass

    def kill(self, number: int) -> None:
        pass

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        pass
