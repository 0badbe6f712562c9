"""Measure the accuracy over seeds and the duration of the recipes, the experiments named after their data.

    python benchmarks/recipes.py mnist_lenet mnist_mlp              # three seeds of each; default: all recipes
    python benchmarks/recipes.py cifar10_cnn --overrides epochs=2   # a shorter run
    python benchmarks/recipes.py --tables                           # runs nothing, only rewrites the tables

Seed 0 is the plain command from the shell, timed as a whole on all cores; the other seeds run as a sweep. Runs are
appended to docs/benchmarks/…-recipes.jsonl and replace older ones of the same command. From them it writes the page
next to it, the table in docs/results.md and the result in each recipe's header. Needs the data in DLTRAIN_DATA.
"""

import argparse
import datetime
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import yaml

Run = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = ROOT / "configs" / "experiment"
RUNS = ROOT / "docs" / "benchmarks" / "2026-11-22-2-core-recipes.jsonl"
BEGIN, END = "<!-- recipes: begin -->\n", "<!-- recipes: end -->\n"
RESULTS = ROOT / "docs" / "results.md"
EXPECTED = re.compile(r"(?m)^# Expected: .*$")


def names() -> list[str]:
    return sorted(path.stem for path in EXPERIMENTS.glob("*.yaml") if path.stem.startswith(("mnist_", "cifar10_")))


def run(command: str, folder: str) -> tuple[list[Path], float]:
    """Run a command in an empty folder; return its run folders and its seconds."""
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # this environment's dltrain
    began = perf_counter()
    subprocess.run(shlex.split(command), cwd=folder, env=os.environ | path, check=True, stdout=subprocess.DEVNULL)
    seconds = perf_counter() - began
    return sorted(path.parent for path in Path(folder).rglob("summary.json")), seconds


def row(command: str, folder: Path, seconds: float | None) -> Run:
    """Return the results of a run, read from its files."""
    summary = json.loads((folder / "summary.json").read_text())
    config = yaml.safe_load((folder / ".hydra" / "config.yaml").read_text())
    return {
        "command": command,
        "seed": config["seed"],
        "accuracy": summary["test"]["accuracy"],
        "loop_seconds": summary["train_seconds"],
        "command_seconds": seconds,
        "device": summary["device"],
        "hardware": summary["hardware"],
        "versions": summary["versions"],
        "date": datetime.date.today().isoformat(),
    }


def measured(command: str, seeds: int) -> Iterator[Run]:
    """Run a command with each seed."""
    _, verb, *overrides = shlex.split(command)
    others = ",".join(map(str, range(1, seeds)))
    with tempfile.TemporaryDirectory() as folder:
        (single,), seconds = run(command, folder)
        yield row(command, single, round(seconds, 1))
    if others:
        with tempfile.TemporaryDirectory() as folder:
            folders, _ = run(shlex.join(["dltrain", verb, "-m", *overrides, f"seed={others}"]), folder)
            yield from (row(command, path, None) for path in folders)


def by_command(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Group runs by command, each group sorted by seed."""
    grouped = defaultdict(list)
    for each in runs:
        grouped[each["command"]].append(each)
    return {command: sorted(grouped[command], key=lambda each: each["seed"]) for command in sorted(grouped)}


def accuracy(runs: list[Run]) -> str:
    """Format mean and standard deviation over seeds, in percent."""
    values = [100 * each["accuracy"] for each in runs]
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{deviation} %"


def duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def table(grouped: dict[str, list[Run]]) -> Iterator[str]:
    """Yield the lines of the table; the times are those of seed 0."""
    yield "| `dltrain train …` | test accuracy | n | in the loop | whole command | computed in |"
    yield "|---|---|---|---|---|---|"
    for command, runs in grouped.items():
        overrides = command.removeprefix("dltrain train ")
        precision = next(part for part in runs[0]["device"].split() if part in ("fp32", "bf16", "tf32", "fp16"))
        taken = f"{duration(runs[0]['loop_seconds'])} | {duration(runs[0]['command_seconds'])}"
        note = f", {runs[0]['note']}" if "note" in runs[0] else ""  # of a result that a later version would not repeat
        yield f"| `{overrides}` | {accuracy(runs)} | {len(runs)} | {taken} | {precision}{note} |"


def page(grouped: dict[str, list[Run]]) -> Iterator[str]:
    """Yield the lines of the page in docs/benchmarks/: the table and the accuracy of each seed."""
    first = next(iter(grouped.values()))[0]
    versions = ", ".join(f"{name} {number}" for name, number in first["versions"].items())
    days = sorted({each["date"] for runs in grouped.values() for each in runs})
    computed = [each["hardware"] for runs in grouped.values() for each in runs]
    machines = sorted({f"{hardware['cores']} cores of an {hardware['cpu']}" for hardware in computed})
    yield "# Recipes\n"
    yield f"{' or '.join(machines)}; {versions}; {' to '.join(days)}. Written by `python benchmarks/recipes.py`.\n"
    yield (
        "Accuracy on the test set: mean and standard deviation over seeds. Times are those of seed 0, the command\n"
        "from the shell, on all cores: in the loop, and as a whole with start, test and report. Other seeds were\n"
        "jobs of a sweep, with one thread each.\n"
    )
    yield from table(grouped)
    yield "\n| `dltrain train …` | accuracy of seeds 0, 1, … in % |\n|---|---|"
    for command, runs in grouped.items():
        each = ", ".join(f"{100 * one['accuracy']:.2f}" for one in runs)
        yield f"| `{command.removeprefix('dltrain train ')}` | {each} |"


def write_tables(runs: Iterable[Run]) -> None:
    grouped = by_command(runs)
    if not grouped:
        return
    RUNS.with_suffix(".md").write_text("\n".join(page(grouped)) + "\n")
    before, rest = RESULTS.read_text().split(BEGIN)
    _, after = rest.split(END)
    RESULTS.write_text(before + BEGIN + "\n".join(table(grouped)) + "\n" + END + after)
    for command, group in reversed(grouped.items()):  # of several commands of a recipe the shortest is written last
        path = EXPERIMENTS / f"{shlex.split(command)[2].removeprefix('experiment=')}.yaml"
        hardware, overrides = group[0]["hardware"], " ".join(shlex.split(command)[3:])
        line = (
            f"# Expected: {accuracy(group)} test accuracy over {len(group)} seed{'s' * (len(group) > 1)}, "
            f"{duration(group[0]['command_seconds'])} on {hardware['cores']} cores of an {hardware['cpu']}"
            + (f" with {overrides}" if overrides else "")
        )
        path.write_text(EXPECTED.sub(line, path.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--overrides", default="", help="further overrides of the command")
    parser.add_argument("--tables", action="store_true")
    arguments = parser.parse_args()
    if unknown := set(arguments.recipes) - set(names()):
        parser.error(f"unknown recipe: {', '.join(sorted(unknown))}; choose from {', '.join(names())}")
    os.environ["DLTRAIN_DATA"] = str(Path(os.environ.get("DLTRAIN_DATA", "data")).resolve())
    runs = [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.exists() else []
    for name in [] if arguments.tables else arguments.recipes or names():
        command = f"dltrain train experiment={name} {arguments.overrides}".strip()
        runs = [each for each in runs if each["command"] != command]
        for each in measured(command, arguments.seeds):
            runs.append(each)
            RUNS.write_text("".join(json.dumps(one) + "\n" for one in runs))
        print(command, accuracy(by_command(runs)[command]), flush=True)
    write_tables(runs)


if __name__ == "__main__":
    main()
