"""Measure the time from the shell to the first step, against importing torch and reading the data: the lower bound.

    python benchmarks/start.py [ROUNDS] [OVERRIDE …]        # 9 rounds; such as model=lenet; needs MNIST in DLTRAIN_DATA

Runs whole processes in turn: `python -c "import torch"` that also reads the files of MNIST, and `dltrain train
data=mnist model=mlp limit_steps=1`, timed at the end of its first step and at its exit. The ratios are what counts.
On a busy machine, CPU seconds are less noisy than wall-clock seconds.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import monotonic

BARE = """
import pathlib, resource, sys, time
import torch
for path in sorted(pathlib.Path(sys.argv[1], "MNIST", "raw").glob("*-ubyte")):
    path.read_bytes()
"""
# The command itself, with a timestamp when its first step ends.
DLTRAIN = """
import resource, sys, time
from dltrain import cli
from dltrain.commands import jobs

def timed(step):
    def first(*arguments, **keywords):
        sums = step(*arguments, **keywords)
        report("first step")
        return sums
    return first

def import_torch():
    original()
    from dltrain import engine
    engine.train_step = timed(engine.train_step)

original, jobs.import_torch = jobs.import_torch, import_torch
sys.argv[0] = "dltrain"
try:
    cli.console()
finally:
    report("end")
"""
REPORT = """
def report(moment):
    used = resource.getrusage(resource.RUSAGE_SELF)
    print("MOMENT", moment, time.monotonic(), used.ru_utime + used.ru_stime, file=sys.stderr, flush=True)
"""


def moments(code: str, arguments: list[str], folder: str) -> dict[str, tuple[float, float]]:
    """Return wall-clock and CPU seconds from the start of a process to each reported moment and to its exit."""
    began = monotonic()
    command = [sys.executable, "-c", REPORT + code, *arguments]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    ended = monotonic() - began
    reported = {}
    for line in done.stderr.splitlines():
        if line.startswith("MOMENT "):
            *name, at, used = line.split()[1:]
            reported[" ".join(name)] = float(at) - began, float(used)
    return reported | {"exit": (ended, reported["end"][1])}


def main(rounds: str = "9", *overrides: str) -> None:
    root = str(Path(os.environ.get("DLTRAIN_DATA", "data")).resolve())
    os.environ["DLTRAIN_DATA"] = root
    command = ["train", "data=mnist", "model=mlp", "limit_steps=1", *overrides]
    taken: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(int(rounds) + 1):
            bare = moments(BARE + 'report("end")', [root], folder)
            measured = {"torch and data": bare["end"], **moments(DLTRAIN, command, folder)}
            if turn:  # the first pair fills the caches of the disk and of Python
                for name, seconds in measured.items():
                    taken.setdefault(name, []).append(seconds)
    for index, unit in enumerate(("s", "s of CPU")):
        median = {name: statistics.median(each[index] for each in all_) for name, all_ in taken.items()}
        for name, all_ in taken.items():
            low, *_, high = sorted(each[index] for each in all_)
            ratio = median[name] / median["torch and data"]
            print(f"{name:15} {median[name]:5.2f} {unit:8} ({low:.2f} to {high:.2f})  {ratio:.2f} x", flush=True)
    print(json.dumps({"rounds": int(rounds), "command": command}))


if __name__ == "__main__":
    main(*sys.argv[1:])
