"""Choose a sweep's executor, workers and threads; import what jobs need before workers are forked."""

import contextlib
import functools
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dltrain.config import registry
from dltrain.config.resolution import resolve
from dltrain.config.settings import Sweep
from dltrain.runtime.startup import NO_CUDA_START, import_torch

if TYPE_CHECKING:
    from dltrain.sweeps.executors.local import Workers
    from dltrain.sweeps.executors.remote import Ray, Slurm


@functools.cache
def all_threads() -> int:
    """Return how many threads torch would use here, and limit this process to one: a pool does not survive a fork."""
    os.environ[NO_CUDA_START] = "1"  # nor does CUDA, which a user's module may ask for on import
    import_torch()
    import torch

    count = torch.get_num_threads()
    torch.set_num_threads(1)
    return count


@contextlib.contextmanager
def threads_restored() -> Iterator[None]:
    """Restore the number of threads of this process at the end, if `all_threads` reduced it."""
    try:
        yield
    finally:
        if all_threads.cache_info().currsize:
            import torch

            os.environ.pop(NO_CUDA_START, None)
            torch.set_num_threads(all_threads())
            all_threads.cache_clear()


def prepare(configs: Collection[dict[str, Any]], command: str) -> None:
    """Import the modules that jobs need, once for all workers."""
    all_threads()
    if command == "train":
        import dltrain.training.finish
        import dltrain.training.run
    else:
        import dltrain.commands.evaluation
        import dltrain.commands.export
        import dltrain.commands.prediction  # noqa: F401
    for group in registry.GROUPS:
        chosen = {node.get("name") for config in configs if isinstance(node := config.get(group), dict)}
        for name in set(registry.names(group)) & chosen:
            registry.partial_call(group, {"name": name})
        if group == "data" and chosen & {"cifar10", "cifar100", "svhn"}:
            import torchvision.datasets  # noqa: F401  (these data sets import it only when called)


def executor(
    configs: Collection[dict[str, Any]], settings: Sweep, folder: Path, *, jobs: int, waits: bool
) -> "Workers | Ray | Slurm":
    """Return the executor of the settings for `jobs` jobs; with `waits` jobs await a verdict after each validation."""
    # Only configs with references are resolved: that takes milliseconds, and there may be thousands of jobs.
    devices = [(resolve(config) if "${" in repr(config["device"]) else config)["device"] for config in configs]
    threads = max((device["threads"] or 0 for device in devices), default=0)
    wants_gpu = any(device["name"] != "cpu" for device in devices)
    if settings.executor == "local":
        from dltrain.sweeps.executors.local import Workers, gpu_names

        gpus = gpu_names() if wants_gpu else []
        available = len(gpus) or max(1, all_threads() // max(1, threads))
        count = settings.workers or available
        each, every = max(1, all_threads() // count), all_threads()
        if each < every and not gpus and not all(device["threads"] for device in devices):
            print(
                f"each job has {each} of {every} threads: a single run with device.threads={each} gives equal results"
            )
        return Workers(max(1, min(count, jobs)), each, gpus, waits)
    from dltrain.sweeps.executors import remote

    engine = settings.workers, threads or 1, int(wants_gpu), settings.options or {}
    return remote.Ray(*engine) if settings.executor == "ray" else remote.Slurm(*engine, folder=folder)
