"""Check and measure on a GPU what no CPU shows, with one command of less than 8 minutes.

    python benchmarks/gpu.py                       # needs MNIST and CIFAR-10 in DLTRAIN_DATA
    PYTHONPATH=src python benchmarks/gpu.py        # where dltrain itself is not installed
    python benchmarks/gpu.py --part speed bits     # some parts
    python benchmarks/gpu.py --dry                 # on one core of a CPU, a hundredth of the size, without these data

Each part is a process with its own time limit: if it fails or hangs, the others run all the same, and the figures that
it had until then are kept. After each part a line of JSON is printed, and appended to gpu.jsonl in $OUT or here: its
name, seconds, whether all went well, the figures, the names of those that did not go well, and the end of its log if
there are any. A part for which no time is left is not run. The parts are functions of gpu_parts.py and gpu_speed.py:

machine      versions, GPU, TF32 flags, the first products and convolutions in bf16
waits        steps of 7 networks with 4 optimizers, in which the host must not wait but where a table allows it
tests        the tests that need a GPU, if pytest is installed
bits         the same bits twice: by default, with cudnn.deterministic, with device.deterministic; after a resume
graph        steps recorded and replayed (device.graph) against eager ones: the same weights and records
numerics     losses of 20 steps against those of a CPU: fp32, tf32, bf16
recipes      mnist_99_fast, cifar10_94 with three seeds and test-time augmentation, cifar10_96
speed        us a step in alternating rounds: hand-written loops, dltrain eager and replayed, precisions, layouts
commands     out of memory, a sweep of 4 jobs on one GPU, an evaluation on the CPU
launches     launches and kernels a step
"""

import argparse
import contextlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import tomllib
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TOTAL = 465  # seconds of all parts
PARTS = {  # name: time limit in seconds; in the order in which they run
    "machine": 30,
    "waits": 50,
    "tests": 70,
    "bits": 60,
    "graph": 50,
    "numerics": 45,
    "recipes": 110,
    "speed": 150,
    "commands": 45,
    "launches": 35,
}
DATA = "MNIST/raw/train-images-idx3-ubyte", "cifar-10-batches-py/data_batch_1"
LAST_LINES = 12  # of a log
NO_DEVICE = 69  # exit code of a part that finds no GPU


def missing(parts: list[str], *, dry: bool) -> str:
    """Return what the parts lack, as a message; empty if they can run."""
    lacking = []
    for requirement in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        name, *least = re.findall(r"^[\w-]+|(?<=>=)[\d.]+", requirement)
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            found = "0"
        if numbers(found) < numbers("".join(least)):
            lacking.append(f"'{requirement}'")
    if lacking:
        return f"missing packages: pip install {' '.join(lacking)}"
    root = Path(os.environ.get("DLTRAIN_DATA", "data"))
    if lacking := [path for path in DATA if "recipes" in parts and not dry and not (root / path).exists()]:
        there = f"{', '.join(lacking)} in {root.resolve()}"
        return f"missing data: {there}. Set DLTRAIN_DATA, or leave out recipes with --part"
    return ""


def numbers(version: str) -> list[int]:
    """Return the numbers of a version: [2, 11, 0] of 2.11.0+cu130."""
    return [int(number) for number in re.findall(r"\d+", version.partition("+")[0])]


def run(name: str, limit: float, *, dry: bool) -> dict[str, Any]:
    """Run a part in a process of its own, in an empty folder; kill it and what it started when its time is over."""
    paths = [str(ROOT / "src"), str(ROOT / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])]
    data = Path(os.environ.get("DLTRAIN_DATA", "data")).resolve()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "DLTRAIN_DATA": str(data)}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        log, figures = Path(folder, "log"), Path(folder, "figures")
        figures.touch()
        words = ["--part", name, "--figures", str(figures), "--seconds", str(limit), *["--dry"] * dry]
        began = perf_counter()
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, __file__, *words],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                ended = f"exit code {process.wait(limit)}"
            except subprocess.TimeoutExpired:
                ended = f"not done after {limit:.1f} s"
            finally:
                if process.returncode is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    with contextlib.suppress(subprocess.TimeoutExpired):  # it cannot be killed while a driver hangs
                        process.wait(5)
        seconds = round(perf_counter() - began, 2)
        lines = [json.loads(line) for line in figures.read_text().split("\n")[:-1]]  # the last one may be cut off
        verdicts = {name: ok for name, _, ok in lines}
        failed = [name for name, ok in verdicts.items() if not ok]
        tail = [ended, *log.read_text(errors="replace").splitlines()[-LAST_LINES:]]
    ok = process.returncode == 0 and not failed
    values = {name: value for name, value, _ in lines}
    told = {} if ok else {"failed": failed, "error": "\n".join(tail), "code": process.returncode}
    return {"part": name, "dry": dry, "seconds": seconds, "ok": ok, "figures": values, **told}


def compute(arguments: argparse.Namespace) -> int:
    """Compute the figures of a part in this process."""
    began = perf_counter()  # the import takes seconds
    from gpu_parts import Day, parts

    logging.basicConfig(format="%(message)s")  # warnings alone: dltrain leaves the logging of its caller as it is
    day = Day(arguments.dry, arguments.seconds, began)
    if not day.has_device():
        print("no usable GPU; --dry computes on the CPU")
        return NO_DEVICE
    with Path(arguments.figures).open("a") as file:
        for figure in parts()[arguments.part[0]](day):
            file.write(json.dumps(figure) + "\n")
            file.flush()
    return 0


def main() -> int:
    """Run the parts; return 1 if one of them failed, 2 if something is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, nargs="+", default=list(PARTS), help="only these; default: all")
    parser.add_argument("--dry", action="store_true", help="on the CPU, a hundredth of the size")
    parser.add_argument("-o", "--output", type=Path, default=Path(os.environ.get("OUT", ".")) / "gpu.jsonl")
    parser.add_argument("--seconds", type=float, default=TOTAL, help=f"of all parts together; default: {TOTAL}")
    parser.add_argument("--figures", help=argparse.SUPPRESS)  # of the process of a part: where it writes them
    arguments = parser.parse_args()
    if arguments.figures:
        return compute(arguments)
    if problem := missing(arguments.part, dry=arguments.dry):
        print(problem, file=sys.stderr)
        return 2
    slower = 10 if arguments.dry else 1  # on a CPU that does other things
    end, ok = perf_counter() + slower * arguments.seconds, True
    for name in arguments.part:
        result: dict[str, Any] = {"part": name, "ok": False, "error": "no time left"}
        if (left := end - perf_counter()) > 0:
            result = run(name, min(left, slower * PARTS[name]), dry=arguments.dry)
        ok &= result["ok"]
        line = json.dumps(result)
        print(line, flush=True)
        with arguments.output.open("a") as file:
            file.write(line + "\n")
        if result.get("code") == NO_DEVICE:  # the others find none either
            return 2
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
