"""Ablation of the recipe cifar10_attention: short runs with one part changed, over paired seeds.

    python benchmarks/ablation.py FOLDER            # the runs that FOLDER lacks, and the table; about 30 minutes
    python benchmarks/ablation.py FOLDER --table    # runs nothing
    python benchmarks/ablation.py FOLDER --quick    # some seconds: digits, two seeds, one epoch

Each run trains a network half as wide as the recipe's for four epochs on nine tenths of the training set (of CIFAR-10,
in DLTRAIN_DATA); its accuracy is that on the rest after the last epoch. Differences are to the baseline with the same
seed; p is of a paired t-test, not corrected for their number.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
from pathlib import Path

from scipy.stats import ttest_rel

VARIANTS = {
    "baseline": [],
    "patches in place of convolutions": ["model.tokens=patches"],
    "AdamW, rate 0.001, in place of Muon": ["optim=adamw", "optim.lr=0.001", "optim.weight_decay=0.1"],
    "no shifts, no mirror images": ["data.crop=0", "data.flip=false"],
    "with the policy augmentation": ["data.policy=trivial"],
    "no label smoothing": ["task.label_smoothing=0"],
    "with stochastic depth of 0.1": ["model.drop_path=0.1"],
    "with EMA of 0.998": ["ema=0.998"],
}
# Written out, since an experiment's own keys of `optim` would not fit another optimizer.
RECIPE = (
    "model=attention data=cifar10 optim=muon schedule=onecycle model.tokens=convolutions model.width=64 optim.lr=0.01 "
    "optim.weight_decay=0.1 schedule.warmup=0.1 task.label_smoothing=0.1 device.precision=auto device.threads=1"
)
WHOLE = "batch_size=128 epochs=4 seed=range(3) sweep.workers=2"
QUICK = "data=digits model.patch=2 model.width=8 model.depth=1 epochs=1 seed=range(2) sweep.workers=1"
Accuracies = dict[str, dict[str, float]]  # by variant and seed


def run(folder: Path, *, quick: bool) -> None:
    """Run a sweep over seeds for each variant, or what is left of it."""
    os.environ["DLTRAIN_DATA"] = str(Path(os.environ.get("DLTRAIN_DATA", "data")).resolve())
    for name, changes in VARIANTS.items():
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        overrides = [*RECIPE.split(), *(QUICK if quick else WHOLE).split(), *changes]
        if list(place.glob("outputs/sweeps/*/*/sweep.json")):
            overrides = ["sweep.resume=last"]
        subprocess.run([sys.executable, "-m", "dltrain", "train", "-m", *overrides], cwd=place, check=True)


def accuracies(folder: Path) -> Accuracies:
    """Read the validation accuracy of each finished run, in percent."""
    found: Accuracies = {}
    for name in VARIANTS:
        found[name] = {}
        for path in folder.glob(f"{name}/outputs/sweeps/*/*/results.csv"):
            with path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if row["status"] == "done"]
            found[name] |= {seed(row["overrides"]): 100 * float(row["val_accuracy"]) for row in rows}
    return found


def seed(overrides: str) -> str:
    return next(each for each in overrides.split() if each.startswith("seed="))


def shown(values: list[float]) -> str:
    return f"{statistics.fmean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def table(found: Accuracies) -> str:
    """Return means and standard deviations over seeds, and the differences to the baseline with the same seed."""
    lines = ["| | n | validation accuracy, % | difference, points | p |", "|---|---|---|---|---|"]
    baseline = found[next(iter(VARIANTS))]
    for name, runs in found.items():
        cells = [name, str(len(runs)), shown(list(runs.values())) if runs else "", "", ""]
        seeds = sorted(runs.keys() & baseline.keys())
        if runs is not baseline and len(seeds) > 1:  # else there is no t-test
            pair = [[each[seed] for seed in seeds] for each in (runs, baseline)]
            cells[3] = shown([after - before for after, before in zip(*pair, strict=True)])
            cells[4] = f"{ttest_rel(*pair).pvalue:.2g}"
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    if not arguments.table:
        run(folder, quick=arguments.quick)
    print(table(accuracies(folder)))


if __name__ == "__main__":
    main()
