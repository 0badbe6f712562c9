"""Measure the speed claims of the README on this machine, in one run, and print which of them hold here.

    python benchmarks/all.py --quick          # about 10 minutes on two idle cores
    python benchmarks/all.py                  # about 60: five rounds, all networks
    python benchmarks/all.py --parts busy     # some of loop, large, compile, sweep, busy

DLTRAIN_DATA names the folder of MNIST. Variants alternate: each round runs all of them once, as processes of their
own. Ratios are medians of the ratios of neighbouring runs, with their range.

loop      images/s of training against the hand-written loop over tensors in memory, batch 64, fp32
large     the same at batch 512 with device.precision=auto
compile   the same at batch 64 with device.compile=true, without the first epoch, which compiles
sweep     the time of the loop under joblib, as a whole command, against `dltrain train -m`; needs hydra-joblib-launcher
busy      the time of a run beside a busy process, against the idle machine; smaller is better
"""

import argparse
import datetime
import importlib.util
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter, sleep

import sweep
import training_runs

import training

PARTS = ("loop", "large", "compile", "sweep", "busy")
# Least ratios; for `busy` greatest ones.
FLOORS = {
    "loop": {"mlp": 1.1, "lenet": 1.0, "cnn": 1.8, "lstm": 1.0, "attention": 1.15},
    "large": {"mlp": 1.0, "lenet": 1.5, "cnn": 2.0, "lstm": 1.4, "attention": 1.15},
    "compile": {"mlp": 1.5, "attention": 1.25},
    "sweep": {"mlp": 1.6, "lenet": 1.25},
    "busy": {"mlp": 1.8, "lenet": 2.5},
}
# Images an epoch: it takes seconds, so that the checkpoint at its end weighs no more than in training.
EXAMPLES = {"mlp": 60_000, "lenet": 60_000, "cnn": 20_000, "lstm": 60_000, "attention": 10_000}
QUICK = {
    "loop": ("mlp", "lenet", "cnn"),
    "large": ("mlp", "lenet"),
    "compile": ("mlp",),
    "sweep": ("mlp",),
    "busy": ("mlp",),
}


def rates(model: str, peer: str, batch: int, seed: int) -> float:
    """Return the images/s of a run, the median of its epochs without the first."""
    work = training.Work("commands", peer, model, "mnist", batch, 3, EXAMPLES[model], 1)
    found = training.run(work, seed, 0)
    if "error" in found:
        sys.exit(f"{peer} {model}: {found['error']}")
    return median(found["images_per_second"][1:])


def against_loop(part: str, model: str, seed: int) -> float:
    """Return the speed of dltrain as a multiple of that of the hand-written loop."""
    peer = {"loop": "dltrain", "large": "dltrain-auto", "compile": "dltrain-compiled"}[part]
    batch = 512 if part == "large" else 64
    loop = rates(model, "loop", batch, seed)
    return rates(model, peer, batch, seed) / loop


def against_joblib(model: str, seeds: int) -> float:
    """Return the time of the loop under joblib as a multiple of that of a sweep with so many seeds."""
    lines = sweep.commands(model, ",".join(map(str, range(seeds))))
    return sweep.seconds(lines["d"]) / sweep.seconds(lines["a"])


@contextmanager
def busy_process() -> Iterator[None]:
    """Keep one core busy, in a session of its own, as another user's program would."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
    try:
        sleep(0.5)
        yield
    finally:
        process.kill()
        process.wait()


def beside_a_busy_process(model: str) -> float:
    """Return the time of a run beside a busy process as a multiple of that alone."""

    def seconds() -> float:
        line = (
            f"dltrain train model={model} data=mnist data.limit={EXAMPLES[model] // 2} epochs=4 device=cpu report=false"
        )
        with tempfile.TemporaryDirectory() as folder:
            began = perf_counter()
            subprocess.run(shlex.split(line), cwd=folder, check=True, capture_output=True)
            return perf_counter() - began

    alone = seconds()
    with busy_process():
        return seconds() / alone


def measure(part: str, model: str, number: int, *, quick: bool) -> float:
    """Return one ratio."""
    if part == "sweep":
        return against_joblib(model, 1 if quick or model == "lenet" else 4)
    return beside_a_busy_process(model) if part == "busy" else against_loop(part, model, number)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="fewer networks and rounds")
    options.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    options.add_argument("--models", help="only these networks, such as mlp,lenet")
    options.add_argument("--rounds", type=int, help="rounds of each part; default 5, with --quick 2; sweeps have 1")
    options.add_argument("--to", type=Path, metavar="FILE", help="write the page there too")
    given = options.parse_args()
    if unknown := set(given.parts.split(",")) - {*PARTS}:
        sys.exit(f"--parts: unknown {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    os.environ["DLTRAIN_DATA"] = str(Path(os.environ.get("DLTRAIN_DATA", "data")).resolve())
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    os.environ["PYTHONPATH"] = f"{Path(sweep.__file__).parent}:{os.environ.get('PYTHONPATH', '')}"
    header = training_runs.header(sys.argv[1:])
    lines = [f"# Speed on {header['processor']}", "", f"`python benchmarks/all.py {shlex.join(sys.argv[1:])}`, "]
    lines[-1] += f"{datetime.date.today().isoformat()}; load before {os.getloadavg()[0]:.1f}"
    lines += ["", "| part | network | target | measured | range | n | met |", "|---|---|---|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    for part in given.parts.split(","):
        if part == "sweep" and importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is None:
            print("sweep: hydra-joblib-launcher is missing: left out", file=sys.stderr)
            continue
        chosen = QUICK[part] if given.quick else tuple(FLOORS[part])
        chosen = tuple(given.models.split(",")) if given.models else chosen
        found: dict[str, list[float]] = {model: [] for model in chosen if model in FLOORS[part]}
        for number in range(given.rounds or (1 if part == "sweep" else 2 if given.quick else 5)):
            for model, ratios in found.items():
                ratios.append(measure(part, model, number, quick=given.quick))
        for model, ratios in found.items():
            middle, floor = median(ratios), FLOORS[part][model]
            met = middle <= floor if part == "busy" else middle >= floor
            target = f"{'at most' if part == 'busy' else 'at least'} {floor}"
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            lines.append(
                f"| {part} | {model} | {target} | {middle:.2f} | {spread} | {len(ratios)} | {'yes' if met else 'no'} |"
            )
            print(lines[-1], flush=True)
    lines += ["", f"Load after {os.getloadavg()[0]:.1f}; {header['cores']} cores, torch {header['versions']['torch']}."]
    print("\n".join(lines[-2:]))
    if given.to:
        given.to.write_text("\n".join([*lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
