"""From the shell to the first step, against importing torch and reading the same data, which nothing can save.

    python benchmarks/start.py [ROUNDS] [OVERRIDE …]        # 9 rounds; such as model=lenet; needs MNIST in DLTRAIN_DATA

Whole processes, in turn: `python -c "import torch"` with the files of MNIST read, and `dltrain train data=mnist
model=mlp limit_steps=1` up to the end of its first step and to its own end. What counts are the ratios. On a machine
that does other things too, seconds of CPU are less noisy than those of the clock.
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
# The command itself, with a note of the time where its first step ends.
OWN = """
import resource, sys, time
from dltrain import cli, jobs

def noted(step):
    def first(*arguments, **keywords):
        sums = step(*arguments, **keywords)
        tell("first step")
        return sums
    return first

def import_torch():
    own()
    from dltrain import engine
    engine.train_step = noted(engine.train_step)

own, jobs.import_torch = jobs.import_torch, import_torch
sys.argv[0] = "dltrain"
try:
    cli.console()
finally:
    tell("end")
"""
TELL = """
def tell(what):
    used = resource.getrusage(resource.RUSAGE_SELF)
    print("TOLD", what, time.monotonic(), used.ru_utime + used.ru_stime, file=sys.stderr, flush=True)
"""


def told(code: str, arguments: list[str], folder: str) -> dict[str, tuple[float, float]]:
    """Seconds of the clock and of CPU from the start of a process to the moments that it tells, and to its end."""
    began = monotonic()
    command = [sys.executable, "-c", TELL + code, *arguments]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    ended = monotonic() - began
    moments = {}
    for line in done.stderr.splitlines():
        if line.startswith("TOLD "):
            *name, at, used = line.split()[1:]
            moments[" ".join(name)] = float(at) - began, float(used)
    return moments | {"exit": (ended, moments["end"][1])}


def main(rounds: str = "9", *overrides: str) -> None:
    root = str(Path(os.environ.get("DLTRAIN_DATA", "data")).resolve())
    os.environ["DLTRAIN_DATA"] = root
    words = ["train", "data=mnist", "model=mlp", "limit_steps=1", *overrides]
    taken: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(int(rounds) + 1):
            bare = told(BARE + 'tell("end")', [root], folder)
            found = {"torch and data": bare["end"], **told(OWN, words, folder)}
            if turn:  # the first pair fills the caches of the disk and of Python
                for name, figures in found.items():
                    taken.setdefault(name, []).append(figures)
    for index, unit in enumerate(("s", "s of CPU")):
        median = {name: statistics.median(each[index] for each in all_) for name, all_ in taken.items()}
        for name, all_ in taken.items():
            low, *_, high = sorted(each[index] for each in all_)
            ratio = median[name] / median["torch and data"]
            print(f"{name:15} {median[name]:5.2f} {unit:8} ({low:.2f} to {high:.2f})  {ratio:.2f} x", flush=True)
    print(json.dumps({"rounds": int(rounds), "words": words}))


if __name__ == "__main__":
    main(*sys.argv[1:])
