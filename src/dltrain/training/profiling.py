"""Traces some steps of a run by torch's profiler: profile.json for a browser, profile.txt with the slowest operations."""

import logging
import os
from collections.abc import Generator
from itertools import islice
from operator import attrgetter
from pathlib import Path

import torch

from dltrain.engine import Record
from dltrain.runtime import atomic_files

log = logging.getLogger(__name__)

FIRST_STEPS = 5  # are slower than the rest: memory is allocated, kernels are chosen
LOGGED, WRITTEN = 10, 200  # operations
Chunks = Generator[list[Record], None, None]


def profiled(chunks: Chunks, steps: int, folder: Path) -> Chunks:
    """Yield what `fit` yields, once a step; trace `steps` of them, or fewer if the run ends, and write both files."""
    yield from islice(chunks, FIRST_STEPS)
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # else it prints to the process's stderr, whatever sys.stderr is
    kinds = torch.profiler.ProfilerActivity
    profile = torch.profiler.profile(
        activities=[kinds.CPU, kinds.CUDA] if torch.cuda.is_initialized() else [kinds.CPU],
        schedule=torch.profiler.schedule(wait=0, warmup=1, active=steps, repeat=1),  # the profiler's own start is slow
        acc_events=True,
    )
    count = -1
    profile.start()
    try:
        for count, chunk in enumerate(islice(chunks, 1 + steps)):
            yield chunk
            profile.step()
    finally:  # also if the run is stopped
        profile.stop()
        try:
            _write(profile, count, folder)
        except Exception as error:  # the run is worth more
            log.warning("profile: not written (%s: %s)", type(error).__name__, error)
    yield from chunks


def _write(profile: torch.profiler.profile, steps: int, folder: Path) -> None:
    if steps < 1:
        log.warning("profile: nothing to write, it begins after %d steps", FIRST_STEPS + 1)
        return
    path = folder / "profile.json"
    temporary = atomic_files.temporary_name(path)
    profile.export_chrome_trace(str(temporary))
    temporary.replace(path)
    of_gpu = torch.cuda.is_initialized()
    time = attrgetter("self_device_time_total" if of_gpu else "self_cpu_time_total")
    # A kernel's time is also that of the operation which started it.
    operations = [event for event in profile.key_averages() if event.device_type.name == "CPU"]
    total = sum(map(time, operations)) or 1.0
    names = {"ProfilerStep*": "Python, between operations"}
    lines = [f"{'ms a step':>10} {'of all':>7} {'calls':>6}  operation, by time on the {'GPU' if of_gpu else 'CPU'}"]
    for each in sorted(operations, key=time, reverse=True)[:WRITTEN]:
        cost = time(each)
        lines.append(f"{cost / 1000 / steps:10.3f} {cost / total:7.1%} {each.count / steps:6.3g}  {names.get(each.key, each.key)}")
    atomic_files.atomic_write(folder / "profile.txt", "".join(f"{line}\n" for line in lines).encode())
    log.info("profile %s and profile.txt, %d step%s", path, steps, "s" * (steps != 1))
    for line in lines[: LOGGED + 1]:
        log.info(line)
