"""The recipes, experiments that are called after their data: how accurate they are over seeds, and how long they take.

    python benchmarks/recipes.py mnist_lenet mnist_mlp        # three seeds of each; all recipes where none is named
    python benchmarks/recipes.py cifar10_cnn --words epochs=2 # a shorter form
    python benchmarks/recipes.py --tables                     # runs nothing, writes the tables anew

Seed 0 is the command as it is typed, from the shell, timed as a whole, on all cores; the other seeds are a sweep. Runs
are added to docs/benchmarks/…-recipes.jsonl and replace older ones of the same command. From them it writes the
page beside it, the table in docs/results.md and the result in each recipe's header. Needs the data in DLTRAIN_DATA.
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
    """The run folders that a command leaves in a new folder, and the seconds it takes."""
    here = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # this environment's dltrain
    began = perf_counter()
    subprocess.run(shlex.split(command), cwd=folder, env=os.environ | here, check=True, stdout=subprocess.DEVNULL)
    seconds = perf_counter() - began
    return sorted(path.parent for path in Path(folder).rglob("summary.json")), seconds


def row(command: str, folder: Path, seconds: float | None) -> Run:
    """What a run's own files say of it."""
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
    """A run for each seed."""
    _, verb, *words = shlex.split(command)
    others = ",".join(map(str, range(1, seeds)))
    with tempfile.TemporaryDirectory() as folder:
        (alone,), seconds = run(command, folder)
        yield row(command, alone, round(seconds, 1))
    if others:
        with tempfile.TemporaryDirectory() as folder:
            found, _ = run(shlex.join(["dltrain", verb, "-m", *words, f"seed={others}"]), folder)
            yield from (row(command, path, None) for path in found)


def by_command(runs: Iterable[Run]) -> dict[str, list[Run]]:
    found = defaultdict(list)
    for each in runs:
        found[each["command"]].append(each)
    return {command: sorted(found[command], key=lambda each: each["seed"]) for command in sorted(found)}


def accuracy(runs: list[Run]) -> str:
    """Mean and standard deviation over seeds, in percent."""
    values = [100 * each["accuracy"] for each in runs]
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{deviation} %"


def duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def table(found: dict[str, list[Run]]) -> Iterator[str]:
    """Lines of the table; seed 0 is the command that was timed."""
    yield "| `dltrain train …` | test accuracy | n | in the loop | whole command | computed in |"
    yield "|---|---|---|---|---|---|"
    for command, runs in found.items():
        words = command.removeprefix("dltrain train ")
        precision = next(word for word in runs[0]["device"].split() if word in ("fp32", "bf16", "tf32", "fp16"))
        taken = f"{duration(runs[0]['loop_seconds'])} | {duration(runs[0]['command_seconds'])}"
        note = f", {runs[0]['note']}" if "note" in runs[0] else ""  # of a result that a later version would not repeat
        yield f"| `{words}` | {accuracy(runs)} | {len(runs)} | {taken} | {precision}{note} |"


def page(found: dict[str, list[Run]]) -> Iterator[str]:
    """A page of docs/benchmarks/ with the table, and each seed's accuracy."""
    first = next(iter(found.values()))[0]
    versions = ", ".join(f"{name} {number}" for name, number in first["versions"].items())
    days = sorted({each["date"] for runs in found.values() for each in runs})
    computed = [each["hardware"] for runs in found.values() for each in runs]
    machines = sorted({f"{hardware['cores']} cores of an {hardware['cpu']}" for hardware in computed})
    yield "# Recipes\n"
    yield f"{' or '.join(machines)}; {versions}; {' to '.join(days)}. Written by `python benchmarks/recipes.py`.\n"
    yield (
        "Accuracy on the test set: mean and standard deviation over seeds. Times are those of seed 0, the command\n"
        "from the shell, on all cores: in the loop, and as a whole with start, test and report. Other seeds were\n"
        "jobs of a sweep, with one thread each.\n"
    )
    yield from table(found)
    yield "\n| `dltrain train …` | accuracy of seeds 0, 1, … in % |\n|---|---|"
    for command, runs in found.items():
        each = ", ".join(f"{100 * one['accuracy']:.2f}" for one in runs)
        yield f"| `{command.removeprefix('dltrain train ')}` | {each} |"


def write_tables(runs: Iterable[Run]) -> None:
    found = by_command(runs)
    if not found:
        return
    RUNS.with_suffix(".md").write_text("\n".join(page(found)) + "\n")
    before, rest = RESULTS.read_text().split(BEGIN)
    _, after = rest.split(END)
    RESULTS.write_text(before + BEGIN + "\n".join(table(found)) + "\n" + END + after)
    for command, own in reversed(found.items()):  # of several commands of a recipe the shortest has the last word
        path = EXPERIMENTS / f"{shlex.split(command)[2].removeprefix('experiment=')}.yaml"
        hardware, words = own[0]["hardware"], " ".join(shlex.split(command)[3:])
        line = (
            f"# Expected: {accuracy(own)} of the test set right over {len(own)} seed{'s' * (len(own) > 1)}, "
            f"{duration(own[0]['command_seconds'])} on {hardware['cores']} cores of an {hardware['cpu']}"
            + (f" with {words}" if words else "")
        )
        path.write_text(EXPECTED.sub(line, path.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--words", default="", help="more words of the command")
    parser.add_argument("--tables", action="store_true")
    own = parser.parse_args()
    if unknown := set(own.recipes) - set(names()):
        parser.error(f"no recipe {', '.join(sorted(unknown))}; there are {', '.join(names())}")
    os.environ["DLTRAIN_DATA"] = str(Path(os.environ.get("DLTRAIN_DATA", "data")).resolve())
    runs = [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.exists() else []
    for name in [] if own.tables else own.recipes or names():
        command = f"dltrain train experiment={name} {own.words}".strip()
        runs = [each for each in runs if each["command"] != command]
        for each in measured(command, own.seeds):
            runs.append(each)
            RUNS.write_text("".join(json.dumps(one) + "\n" for one in runs))
        print(command, accuracy(by_command(runs)[command]), flush=True)
    write_tables(runs)


if __name__ == "__main__":
    main()
