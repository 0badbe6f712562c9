"""What Hydra finds of dltrain: its sweeper and its launcher. Hydra imports this at every start: it is light."""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class DltrainSweeper(Sweeper):
    """Gives the words of a sweep to `dltrain.sweeps`, which composes, checks and runs its jobs.

    `params` are words that stand in a file, such as that of an experiment.
    """

    def __init__(self, params: dict[str, Any] | None) -> None:
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.master = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> None:
        from dltrain.config.composition import Sweeping, Task

        assert isinstance(self.task, Task) and self.task.sweep is not None
        words = [f"{key}={'null' if value is None else value}" for key, value in self.params.items()] + arguments
        raise SystemExit(self.task.sweep(Sweeping(self.context, self.master, words, self.task.implied)))


class DltrainLauncher(Launcher):
    """Stands for dltrain's own executors, to which its sweeper gives jobs that are composed already."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        pass

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        raise HydraException("hydra/launcher=dltrain: runs jobs of dltrain's own sweeper alone")
