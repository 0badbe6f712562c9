"""Measure dltrain against hand-written PyTorch, Lightning, Ignite, Accelerate, Keras and skorch: a table and a plot.

    pip install -e '.[dev,peers]'                     # the peers, in the measured versions
    python benchmarks/training.py                     # about 45 minutes on two cores
    python benchmarks/training.py grid                # all peers, networks, data sets, batch sizes: another 30
    python benchmarks/training.py commands --models mlp --peers dltrain,loop --rounds 1 --examples 2000 --to try

DLTRAIN_DATA names the folder of MNIST and CIFAR-10. Parts:

commands   whole commands, cold: 3 epochs of MNIST, mlp and lenet, batch 64, fp32; seeds 0 to 6: accuracy too
networks   cnn, lstm and attention on part of MNIST, batch 64, fp32
large      batch 512, all networks, with device.precision=auto, against fp32
growth     time and peak memory against epochs (1 to 8) and examples (1,000 to 60,000)
grid       everything once, on a small part of the data; not part of the default

Each run is a separate process. Rounds alternate: all variants once, then all again. Every variant trains the same
network with the same initialization on the same number of images and the same batch size, shuffled, normalized, without
augmentation, with SGD (momentum 0.9, constant rate) and torch's default number of threads, and tests once at the end on
10,000 images. By default skorch validates on a fifth of the examples after each epoch, within its time; skorch-plain
does not, and takes NumPy arrays, as in its documentation; skorch-tensors takes tensors.
Peers are benchmarks/peers/*.py. `--to STEM` names the files: STEM.jsonl (one line per run, written when it ends),
STEM.md and STEM.svg.
"""

import argparse
import datetime
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import training_results
import training_runs

ROOT = Path(__file__).resolve().parents[1]
PEERS = {  # name of a variant: package it needs
    "dltrain": "dltrain",
    "dltrain-auto": "dltrain",
    "dltrain-compiled": "dltrain",
    "loop": "torch",
    "loader": "torch",
    "lightning": "lightning",
    "ignite": "ignite",
    "accelerate": "accelerate",
    "keras": "keras",
    "skorch": "skorch",
    "skorch-plain": "skorch",
    "skorch-tensors": "skorch",
}
MODELS = ("mlp", "lenet", "cnn", "lstm", "attention")
DATA = {"mnist": 60_000, "cifar10": 50_000}  # numbers of training images
RATES = {64: 0.02, 512: 0.05}
EXAMPLES = ((1, 1_000), (1, 5_000), (1, 20_000), (1, 60_000))  # (epochs, images) for the growth of cost
EPOCHS = ((2, 20_000), (4, 20_000), (8, 20_000))
PARTS = ("commands", "networks", "large", "growth")
CHOICES = {"models": MODELS, "peers": PEERS, "data": DATA, "batch": RATES}
LOGGED = re.compile(r"(?P<time>\S+ \S+) INFO (folder |epoch +\d+/)")


@dataclass(frozen=True)
class Work:
    """A training that one variant runs `rounds` times."""

    part: str
    peer: str
    model: str
    data: str
    batch: int
    epochs: int
    examples: int
    rounds: int


def plan(part: str) -> Iterator[Work]:
    """Yield all work of a part, first the variant that the others are compared with."""
    if part == "commands":
        for model in ("mlp", "lenet"):
            for peer in ("dltrain", "loop", "skorch", "skorch-plain", "lightning"):
                yield Work(part, peer, model, "mnist", 64, 3, 60_000, 7)
            for peer in ("skorch-tensors", "loader", "ignite", "accelerate", "keras"):  # need less precision
                yield Work(part, peer, model, "mnist", 64, 3, 60_000, 2)
    elif part == "networks":
        for model, peer in itertools.product(MODELS[2:], ("dltrain", "loop", "skorch", "lightning")):
            # An epoch of half a second would measure the start of a process, not training.
            yield Work(part, peer, model, "mnist", 64, 2, 20_000 if model == "lstm" else 4_000, 3)
    elif part == "large":
        for model, peer in itertools.product(MODELS, ("dltrain-auto", "dltrain", "loop")):
            examples = {"mlp": 60_000, "lenet": 30_000}.get(model, 6_000)
            yield Work(part, peer, model, "mnist", 512, 2, examples, 5 if examples > 6_000 else 3)
    elif part == "growth":
        for peer in ("dltrain", "loop", "loader"):
            for epochs, examples in itertools.chain(EXAMPLES, EPOCHS):
                yield Work(part, peer, "mlp", "mnist", 64, epochs, examples, 3)
    else:
        for data, model, batch, peer in itertools.product(DATA, MODELS, RATES, PEERS):
            yield Work(part, peer, model, data, batch, 2, 4_000, 1)


def command(work: Work, seed: int, workers: int) -> list[str]:
    """Return the command line of one run."""
    lr = RATES.get(work.batch, RATES[64])
    if not work.peer.startswith("dltrain"):
        peer, _, variant = work.peer.partition("-")
        script = "" if peer in ("loop", "loader") else "with_"
        options = {"model": work.model, "data": work.data, "batch": work.batch, "epochs": work.epochs}
        options |= {"examples": work.examples, "lr": lr, "seed": seed, "workers": workers}
        options |= {"variant": variant} if variant else {}
        path = ROOT / "benchmarks" / "peers" / f"{script}{peer}.py"
        return [sys.executable, str(path), *(part for key in options for part in (f"--{key}", str(options[key])))]
    return [
        *(sys.executable, "-m", "dltrain", "train", f"model={work.model}", f"data={work.data}", "data.val=0"),
        *(f"data.limit={work.examples}", "data.crop=0", "data.flip=false", "schedule=constant", f"optim.lr={lr}"),
        *("optim=sgd", "optim.momentum=0.9", f"epochs={work.epochs}", f"batch_size={work.batch}", f"seed={seed}"),
        *("device=cpu", f"device.precision={'auto' if work.peer == 'dltrain-auto' else 'fp32'}"),
        f"device.compile={str(work.peer == 'dltrain-compiled').lower()}",
    ]


def epoch_rates(log: Iterable[str], examples: int) -> list[float]:
    """Return the images per second of each epoch, including all that dltrain does between two ends of epochs.

    Times are those of lines in train.log; the first epoch begins with the line that names the folder.
    """
    matches = (LOGGED.match(line) for line in log)
    times = [datetime.datetime.strptime(line["time"], "%Y-%m-%d %H:%M:%S,%f") for line in matches if line]
    return [examples / (end - begin).total_seconds() for begin, end in itertools.pairwise(times)]


def result_of(work: Work, folder: Path) -> dict[str, Any]:
    """Return the rates and the accuracy of a finished run."""
    if not work.peer.startswith("dltrain"):
        return json.loads((folder / "out").read_text().splitlines()[-1])
    (run,) = folder.glob("outputs/*/*/metrics.jsonl")
    records = [json.loads(line) for line in run.read_text().splitlines()]
    log = run.with_name("train.log").read_text().splitlines()
    return {"images_per_second": epoch_rates(log, work.examples), "accuracy": records[-1]["accuracy"]}


def run(work: Work, seed: int, workers: int) -> dict[str, Any]:
    """Run work in a new process and folder; measure its seconds and peak memory from outside."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
            began = perf_counter()
            process = subprocess.Popen(command(work, seed, workers), cwd=folder, stdout=out, stderr=err)
            _, status, usage = os.wait4(process.pid, 0)  # unlike getrusage, for this child only
            seconds = perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        result = {**asdict(work), "seed": seed, "seconds": seconds, "peak_mib": usage.ru_maxrss / 1024}
        result["processor_seconds"] = usage.ru_utime + usage.ru_stime
        if process.returncode:
            lines = (folder / "err").read_text().strip().splitlines() or ["no message"]
            return result | {"error": f"exit {process.returncode}: {lines[-1]}"}
        return result | result_of(work, folder)


def chosen(arguments: argparse.Namespace) -> list[Work]:
    """Return the work that the command line selects."""
    works = [work for part in arguments.parts or PARTS for work in plan(part)]
    for key, known in CHOICES.items():
        if wanted := getattr(arguments, key):
            if unknown := set(wanted.split(",")) - {str(each) for each in known}:
                sys.exit(f"--{key}: unknown {', '.join(sorted(unknown))}; choose from {', '.join(map(str, known))}")
            field = key.removesuffix("s")
            works = [work for work in works if str(getattr(work, field)) in wanted.split(",")]
    if arguments.examples:
        works = [replace(work, examples=min(work.examples, arguments.examples)) for work in works]
    works = [replace(work, examples=min(work.examples, DATA[work.data])) for work in works]
    works = [replace(work, rounds=arguments.rounds or work.rounds) for work in works]
    return list(dict.fromkeys(works))  # a lower limit of examples makes some work of growth equal


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join((*PARTS, 'grid'))}")
    options.add_argument("--models", help=f"only these, such as {','.join(MODELS)}")
    options.add_argument("--peers", help=f"only these, such as {','.join(PEERS)}")
    options.add_argument("--data", help=f"only these, such as {','.join(DATA)}")
    options.add_argument("--batch", help=f"only these, such as {','.join(map(str, RATES))}")
    options.add_argument(
        "--rounds", type=int, help="rounds of every variant; the seed is the number of the round, from 0"
    )
    options.add_argument("--examples", type=int, help="at most so many training images")
    options.add_argument("--threads", type=int, help="threads of every variant; default: torch's choice")
    options.add_argument("--workers", type=int, default=0, help="processes of each DataLoader")
    options.add_argument(
        "--to", type=Path, metavar="STEM", help="of the files; default: a dated one in docs/benchmarks"
    )
    return options


def main() -> None:
    arguments = parser().parse_args()
    if unknown := set(arguments.parts) - {*PARTS, "grid"}:
        sys.exit(f"unknown part {', '.join(sorted(unknown))}; choose from {', '.join((*PARTS, 'grid'))}")
    works = chosen(arguments)
    if not works:
        sys.exit("no part has such work: drop some of --models, --peers, --data and --batch, or name another part")
    if missing := {PEERS[work.peer] for work in works if importlib.util.find_spec(PEERS[work.peer]) is None}:
        sys.exit(f"{', '.join(sorted(missing))} missing: pip install -e '.[dev,peers]', or choose other --peers")
    os.environ["DLTRAIN_DATA"] = str(Path(os.environ.get("DLTRAIN_DATA", "data")).resolve())
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # some peers would use a GPU by default
    if arguments.threads:
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # read by torch in every process
    today = datetime.date.today().isoformat()
    name = "-".join([today, f"{os.cpu_count()}-core", "training", *arguments.parts])
    stem = (arguments.to or ROOT / "docs" / "benchmarks" / name).resolve()
    path = stem.with_name(f"{stem.name}.jsonl")
    try:
        with path.open("x") as file:
            file.write(json.dumps(training_runs.header(sys.argv[1:])) + "\n")
    except FileExistsError:
        sys.exit(f"{path}: already holds runs; remove it, or name other files with --to")
    total, began = sum(work.rounds for work in works), perf_counter()
    most = max(work.rounds for work in works)
    in_turn = ((seed, work) for seed in range(most) for work in works if seed < work.rounds)
    for count, (seed, work) in enumerate(in_turn, 1):
        result = run(work, seed, arguments.workers)
        with path.open("a") as file:  # at once, so that an interruption loses nothing
            file.write(json.dumps(result) + "\n")
        print(f"{count:4}/{total} {perf_counter() - began:6.0f} s  {training_runs.line(result)}", flush=True)
    training_results.write(path)
    print(path.with_suffix(".md"))


if __name__ == "__main__":
    main()
