"""Traces steps of a run by torch's profiler: profile.json for a browser, profile.txt with the slowest operations."""

import logging
import os
from collections.abc import Generator
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch

from dltrain.runtime import atomic_files

log = logging.getLogger(__name__)

UNTRACED = 6  # first steps: memory is allocated, kernels are chosen; the profiler's own start is slow too


def profiled(chunks: Generator[Any, None, None], steps: int, folder: Path) -> Generator[Any, None, None]:
    """Yield what `fit` yields, once a step; trace `steps` of them, or fewer if the run ends, and write both files."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # else it prints to the process's stderr, whatever sys.stderr is
    planned = torch.profiler.schedule(wait=UNTRACED - 1, warmup=1, active=steps, repeat=1)
    count, profile = -UNTRACED, torch.profiler.profile(schedule=planned, acc_events=True)
    profile.start()
    try:
        for chunk in islice(chunks, UNTRACED + steps):
            count += 1
            yield chunk
            profile.step()
    finally:  # also if the run is stopped
        profile.stop()
        try:
            _write(profile, count, folder)
        except Exception as error:  # the run is worth more
            log.warning("profile: not written, after %d traced steps (%s)", max(count, 0), error)
    yield from chunks


def _write(profile: torch.profiler.profile, steps: int, folder: Path) -> None:
    path = folder / "profile.json"
    profile.export_chrome_trace(str(temporary := atomic_files.temporary_name(path)))
    temporary.replace(path)
    time = attrgetter(f"self_{(kind := 'device' if torch.cuda.is_initialized() else 'cpu')}_time_total")
    # Without kernels: their time is also that of the operations that started them.
    operations = [event for event in profile.key_averages() if event.device_type.name == "CPU"]
    total = sum(map(time, operations)) or 1.0
    lines = [f"{'ms a step':>10} {'of all':>7} {'calls':>6}  operation, by its time on the {kind}"]
    for each in sorted(operations, key=time, reverse=True):
        name = each.key.replace("ProfilerStep*", "Python, between operations")
        lines.append(f"{time(each) / steps / 1000:10.3f} {time(each) / total:7.1%} {each.count / steps:6.3g}  {name}")
    atomic_files.atomic_write(folder / "profile.txt", "\n".join([*lines, ""]).encode())
    log.info("\n".join([f"profile {path} and profile.txt, of {steps} steps; the slowest:", *lines[:11]]))
