"""Group the runs of benchmarks/training.py by work, as medians and ranges."""

import datetime
import os
import platform
import shlex
import statistics
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

Run = dict[str, Any]
Spec = dict[str, Any]
WORK = ("part", "data", "model", "batch", "epochs", "examples")
PACKAGES = ("torch", "torchvision", "dltrain", "lightning", "pytorch-ignite", "accelerate", "keras", "skorch", "numpy")
WINDOW = "by the clock, without start-up and test; dltrain's with its records and the checkpoints that fall into it"


class Spread(NamedTuple):
    """Median and range of several runs."""

    median: float
    least: float
    most: float
    n: int


def spread(values: Iterable[float]) -> Spread:
    """Return the median and range of at least one number."""
    ordered = sorted(values)
    return Spread(statistics.median(ordered), ordered[0], ordered[-1], len(ordered))


def spreads(runs: Sequence[Run]) -> dict[str, Spread]:
    """Return the spreads over one variant's runs of the same work; the fastest epoch counts, as in summary.json."""
    return {
        "rate": spread(max(run["images_per_second"]) for run in runs),
        "seconds": spread(run["seconds"] for run in runs),
        "memory": spread(run["peak_mib"] for run in runs),
    }


def by_work(runs: Iterable[Run], part: str) -> dict[tuple[Any, ...], dict[str, list[Run]]]:
    """Map each work of a part to its variants, and each variant to its runs, in the order of the file."""
    grouped: dict[tuple[Any, ...], dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if run["part"] == part:
            grouped[tuple(run[key] for key in WORK)][run["peer"]].append(run)
    return grouped


def line(run: Run) -> str:
    """Describe a run in one line."""
    work = f"{run['peer']:12} {run['model']:9} {run['data']:7} batch {run['batch']} {run['epochs']} x {run['examples']}"
    if "error" in run:
        return f"{work}  {run['error']}"
    return (
        f"{work}  {max(run['images_per_second']):,.0f} images/s  {run['seconds']:.1f} s  "
        f"{run['peak_mib']:.0f} MiB  {run['accuracy']:.2%}"
    )


def header(arguments: Sequence[str]) -> Spec:
    """Return the date, the command, the machine and the versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [text.partition(":")[2].strip() for text in lines if text.startswith("model name")]
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", "benchmarks/training.py", *arguments]),
        "commit": git.stdout.strip(),
        "processor": (names or [platform.processor() or platform.machine()])[0],
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "window": WINDOW,
        "versions": {name: version for name in PACKAGES if (version := installed(name))},
    }


def installed(package: str) -> str:
    """Return the version of a package; empty if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def series(runs: Iterable[Run]) -> Iterator[tuple[str, str, list[tuple[int, dict[str, Spread]]]]]:
    """Yield for each variant its name, what grows (`epochs` or `examples`), and its spreads in that order."""
    points: dict[tuple[str, str], dict[int, dict[str, Spread]]] = defaultdict(dict)
    for (*_, epochs, examples), variants in by_work(runs, "growth").items():
        for peer, all_runs in variants.items():
            if ended := [run for run in all_runs if "error" not in run]:
                if epochs == 1:
                    points[peer, "examples"][examples] = spreads(ended)
                points[peer, f"epochs of {examples:,}"][epochs] = spreads(ended)
    for (peer, grows), values in sorted(points.items()):
        if len(values) > 1:
            yield peer, grows, sorted(values.items())
