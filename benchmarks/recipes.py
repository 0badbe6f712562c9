"""Measure the accuracy over seeds and the duration of the recipes, the experiments named after their data.

    python benchmarks/recipes.py mnist_lenet mnist_mlp              # three seeds of each; default: all recipes
    python benchmarks/recipes.py cifar10_cnn --overrides epochs=2   # a shorter run
    python benchmarks/recipes.py --check mnist_lenet                # one new seed: within the 95 % prediction interval?
    python benchmarks/recipes.py --tables                           # runs nothing, only rewrites the tables

Seed 0 is the plain command from the shell, timed as a whole on all cores; the other seeds run as a sweep. Runs are
appended to docs/benchmarks/…-recipes.jsonl and replace older ones of the same command. From them it writes the page
next to it, the table in docs/results.md and the result in each recipe's header. Needs the data in DLTRAIN_DATA.

A run is recorded with a digest of its recipe's settings and with its overrides: runs of a recipe that has since
changed fail a test, and are to be measured again.
"""

import argparse
import datetime
import hashlib
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
from scipy import stats

Run = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = ROOT / "configs" / "experiment"
RUNS = ROOT / "docs" / "benchmarks" / "2026-11-22-2-core-recipes.jsonl"
BEGIN, END = "<!-- recipes: begin -->\n", "<!-- recipes: end -->\n"
RESULTS = ROOT / "docs" / "results.md"
EXPECTED = re.compile(r"(?m)^# Expected: .*$")


def names() -> list[str]:
    return sorted(path.stem for path in EXPERIMENTS.glob("*.yaml") if path.stem.startswith(("mnist_", "cifar10_")))


def name_of(command: str) -> str:
    return shlex.split(command)[2].removeprefix("experiment=")


def digest(name: str) -> str:
    """Return a digest of the settings of a recipe's file, which comments do not change."""
    settings = yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text())
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def outdated(run: Run) -> str:
    """Return why a recorded run is not one of its command as it is now; empty if it is. Versions may differ."""
    name, overrides = name_of(run["command"]), shlex.split(run["command"])[2:]
    if name not in names():
        return f"there is no recipe {name}"
    if run["recipe"] != digest(name):
        return f"{name}.yaml has changed"
    if run["overrides"] != overrides:
        return f"the run had {shlex.join(run['overrides'])}, its command has {shlex.join(overrides)}"
    return ""


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
    overrides = [each for each in shlex.split(summary["command"])[2:] if each != "-m" and not each.startswith("seed=")]
    return {
        "command": command,
        "recipe": digest(name_of(command)),
        "overrides": overrides,
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


def spread(runs: list[Run]) -> tuple[float, float]:
    """Return the interval that should contain 19 of 20 new seeds, if accuracies are normally distributed."""
    values = [each["accuracy"] for each in runs]
    if len(values) < 2:
        raise SystemExit(f"{runs[0]['command']}: one recorded seed has no spread; measure more with --seeds")
    middle, deviation = statistics.fmean(values), statistics.stdev(values)
    half = float(stats.t.ppf(0.975, len(values) - 1)) * deviation * (1 + 1 / len(values)) ** 0.5
    return middle - half, middle + half


def check(command: str, runs: list[Run]) -> bool:
    """Run a command with a seed that was not recorded; print and return whether its accuracy is in the spread."""
    low, high = spread(runs)
    seed = max(each["seed"] for each in runs) + 1
    with tempfile.TemporaryDirectory() as folder:
        (path,), seconds = run(f"{command} seed={seed}", folder)
        accuracy = row(command, path, seconds)["accuracy"]
    verdict = "inside" if low <= accuracy <= high else "OUTSIDE"
    interval = f"{100 * low:.2f} to {100 * high:.2f} %, the 95 % prediction interval of {len(runs)} recorded seeds"
    print(f"{command} seed={seed}: {100 * accuracy:.2f} %, {verdict} {interval}; {duration(seconds)}", flush=True)
    return low <= accuracy <= high


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
    yield "| `dltrain train …` | test accuracy | n | in the loop | whole command | computed in | measured |"
    yield "|---|---|---|---|---|---|---|"
    for command, runs in grouped.items():
        overrides = command.removeprefix("dltrain train ")
        precision = next(part for part in runs[0]["device"].split() if part in ("fp32", "bf16", "tf32", "fp16"))
        taken = f"{duration(runs[0]['loop_seconds'])} | {duration(runs[0]['command_seconds'])}"
        yield f"| `{overrides}` | {accuracy(runs)} | {len(runs)} | {taken} | {precision} | {runs[0]['date']} |"


def page(grouped: dict[str, list[Run]]) -> Iterator[str]:
    """Yield the lines of the page in docs/benchmarks/: the table and the accuracy of each seed."""
    found = defaultdict(set)
    for name, number in (item for runs in grouped.values() for each in runs for item in each["versions"].items()):
        found[name].add(number)
    versions = ", ".join(f"{name} {' or '.join(sorted(numbers))}" for name, numbers in found.items())
    dates = {each["date"] for runs in grouped.values() for each in runs}
    days = " to ".join(sorted({min(dates), max(dates)}))
    computed = [each["hardware"] for runs in grouped.values() for each in runs]
    machines = sorted({f"{hardware['cores']} cores of an {hardware['cpu']}" for hardware in computed})
    yield "# Recipes\n"
    yield f"{' or '.join(machines)}; {versions}; {days}. Written by `python benchmarks/recipes.py`.\n"
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
        path = EXPERIMENTS / f"{name_of(command)}.yaml"
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
    parser.add_argument("--check", action="store_true", help="run one new seed of each; exit code 1 if one is outside")
    parser.add_argument("--tables", action="store_true")
    arguments = parser.parse_args()
    if unknown := set(arguments.recipes) - set(names()):
        parser.error(f"unknown recipe: {', '.join(sorted(unknown))}; choose from {', '.join(names())}")
    os.environ["DLTRAIN_DATA"] = str(Path(os.environ.get("DLTRAIN_DATA", "data")).resolve())
    runs = [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.exists() else []
    commands = [
        f"dltrain train experiment={name} {arguments.overrides}".strip() for name in arguments.recipes or names()
    ]
    if arguments.check:
        recorded = by_command(runs)
        several = [command for command, its_runs in recorded.items() if len(its_runs) > 1]
        chosen = commands if arguments.recipes else several
        for command in chosen:
            if reason := outdated(recorded[command][0]) if command in recorded else "not recorded":
                parser.error(f"{command}: {reason}")
            spread(recorded[command])  # before the first run
        results = [check(command, recorded[command]) for command in chosen]
        sys.exit(not all(results))
    for command in [] if arguments.tables else commands:
        runs = [each for each in runs if each["command"] != command]
        for each in measured(command, arguments.seeds):
            runs.append(each)
            RUNS.write_text("".join(json.dumps(one) + "\n" for one in runs))
        print(command, accuracy(by_command(runs)[command]), flush=True)
    write_tables(runs)


if __name__ == "__main__":
    main()
