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
from dltrain.sweeps.executors import remote, slurm

if TYPE_CHECKING:
    from dltrain.sweeps.executors.local import Workers
    from dltrain.sweeps.executors.ray import Ray


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


def needs(configs: Collection[dict[str, Any]]) -> tuple[int, set[str]]:
    """Return the threads that the largest job asks for, 0 if none does, and the devices of all jobs."""
    # Only configs with references are resolved: that takes milliseconds, and there may be thousands of jobs.
    devices = [(resolve(config) if "${" in repr(config["device"]) else config)["device"] for config in configs]
    return max((device["threads"] or 0 for device in devices), default=0), {device["name"] for device in devices}


def is_local(settings: Sweep) -> bool:
    """True if the jobs run on this machine; {cluster: local} tries a sweep for Slurm here."""
    is_trial = settings.executor == "slurm" and (settings.options or {}).get("cluster") == "local"
    return settings.executor == "local" or is_trial


def require(settings: Sweep, configs: Collection[dict[str, Any]]) -> None:
    """Raise ConfigError or DeviceError if the executor is not there, or refuses such jobs."""
    if settings.executor == "ray":
        remote.require(settings.options or {})
    elif not is_local(settings) and not settings.dry:
        slurm.require(settings.options or {}, *needs(configs))


def executor(
    configs: Collection[dict[str, Any]], settings: Sweep, folder: Path, *, jobs: int, waits: bool
) -> "Workers | Ray | slurm.Slurm":
    """Return the executor of the settings for `jobs` jobs; with `waits` jobs await a verdict after each validation."""
    threads, devices = needs(configs)
    if is_local(settings):
        from dltrain.sweeps.executors.local import Workers, gpu_names

        gpus = gpu_names() if devices - {"cpu"} else []
        count = settings.workers or len(gpus) or max(1, all_threads() // max(1, threads))
        each, every = max(1, all_threads() // count), all_threads()
        if each < every and not gpus and not threads:
            single = "device.threads=1" if each == 1 else "the threads of its log"
            print(f"each job has at most {each} of {every} threads: a single run with {single} gives equal results")
        return Workers(max(1, min(count, jobs)), each, gpus, waits)
    engine = settings.workers, threads or 1, int(bool(devices - {"cpu"})), settings.options or {}, waits
    if settings.executor == "ray":
        from dltrain.sweeps.executors.ray import Ray

        return Ray(*engine)
    return slurm.Slurm(*engine, folder=folder, devices=devices)
