"""Runs of benchmarks/training.py: what is known of each, grouped by work, as medians and ranges."""

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
    """Figures of several runs."""

    median: float
    least: float
    most: float
    n: int


def spread(values: Iterable[float]) -> Spread:
    """Of at least one number."""
    found = sorted(values)
    return Spread(statistics.median(found), found[0], found[-1], len(found))


def figures(runs: Sequence[Run]) -> dict[str, Spread]:
    """Spreads of one variant's runs of the same work. Of each run the fastest epoch counts, as in summary.json."""
    return {
        "rate": spread(max(run["images_per_second"]) for run in runs),
        "seconds": spread(run["seconds"] for run in runs),
        "memory": spread(run["peak_mib"] for run in runs),
    }


def by_work(runs: Iterable[Run], part: str) -> dict[tuple[Any, ...], dict[str, list[Run]]]:
    """Runs of a part: work to variant to its runs, in the order in which they came."""
    found: dict[tuple[Any, ...], dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if run["part"] == part:
            found[tuple(run[key] for key in WORK)][run["peer"]].append(run)
    return found


def line(run: Run) -> str:
    """One run, for whoever waits."""
    what = f"{run['peer']:12} {run['model']:9} {run['data']:7} batch {run['batch']} {run['epochs']} x {run['examples']}"
    if "error" in run:
        return f"{what}  {run['error']}"
    return (
        f"{what}  {max(run['images_per_second']):,.0f} images/s  {run['seconds']:.1f} s  "
        f"{run['peak_mib']:.0f} MiB  {run['accuracy']:.2%}"
    )


def header(words: Sequence[str]) -> Spec:
    """When, where and with what."""
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
        "command": shlex.join(["python", "benchmarks/training.py", *words]),
        "commit": git.stdout.strip(),
        "processor": (names or [platform.processor() or platform.machine()])[0],
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "window": WINDOW,
        "versions": {name: version for name in PACKAGES if (version := installed(name))},
    }


def installed(package: str) -> str:
    """Its version; empty where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def series(runs: Iterable[Run]) -> Iterator[tuple[str, str, list[tuple[int, dict[str, Spread]]]]]:
    """Of each variant: its name, what grows (`epochs` or `examples`), and figures by that, the least first."""
    points: dict[tuple[str, str], dict[int, dict[str, Spread]]] = defaultdict(dict)
    for (*_, epochs, examples), variants in by_work(runs, "growth").items():
        for peer, all_runs in variants.items():
            if ended := [run for run in all_runs if "error" not in run]:
                if epochs == 1:
                    points[peer, "examples"][examples] = figures(ended)
                points[peer, f"epochs of {examples:,}"][epochs] = figures(ended)
    for (peer, grows), found in sorted(points.items()):
        if len(found) > 1:
            yield peer, grows, sorted(found.items())
