"""Compare class weights and balanced epochs with plain training on uneven classes, over paired seeds.

    python benchmarks/imbalance.py FOLDER            # the runs of 15 that FOLDER lacks, and the table; 25 min
    python benchmarks/imbalance.py FOLDER --table    # runs nothing
    python benchmarks/imbalance.py FOLDER --quick    # a minute: digits, two seeds, two epochs

CIFAR-10 (in DLTRAIN_DATA) is cut to 5,000 training images of every other class and to 100, the same for all seeds, of
the five classes between; the test set is whole. Balanced accuracy is the mean over classes of the recall, after the
last epoch. Differences are of runs with the same seed, p is of a paired t-test, not corrected for their number.
"""

import argparse
import importlib
import itertools
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy
import torch
import yaml
from scipy.stats import ttest_rel

SETTINGS = {
    "plain": {},
    "weights": {"task": {"class_weights": "balanced"}},
    "balance": {"data": {"balance": 1}},
}
COMMON = (
    "data=custom data.name=imbalance:uneven data.val=0 seed=range({seeds}) +experiment={settings} device.threads=1 "
    "device.precision=fp32 report=true logger=none"
)
WHOLE = "model=cnn model.batch_norm=true data.crop=4 data.flip=true batch_size=128 epochs=8 sweep.workers=2"
QUICK = "model=mlp model.hidden=[16] +data.source=digits +data.common=100 +data.rare=5 epochs=2 sweep.workers=1"
Recalls = dict[str, dict[int, numpy.ndarray]]  # of each class, by setting and seed


def uneven(split: str, *, source: str = "cifar10", common: int = 5000, rare: int = 100):
    """Return a split of a data set, of whose training images few of the second, fourth, … class are left."""
    function = getattr(importlib.import_module(f"dltrain.data.datasets.{source}"), source)
    found = function(split, root=None) if source == "cifar10" else function(split)
    if split != "train":
        return found
    generator = torch.Generator().manual_seed(0)
    shuffled = torch.randperm(len(found.targets), generator=generator)
    parts = [
        shuffled[found.targets[shuffled] == label][: rare if label % 2 else common]
        for label in range(len(found.classes))
    ]
    kept = torch.cat(parts).sort().values
    return found._replace(images=found.images[kept], targets=found.targets[kept])


def run(folder: Path, *, quick: bool) -> None:
    """Run a sweep over settings and seeds in a folder, or what is left of it."""
    configs = folder / "configs" / "experiment"
    configs.mkdir(parents=True, exist_ok=True)
    for name, keys in SETTINGS.items():
        (configs / f"{name}.yaml").write_text(f"# @package _global_\n{yaml.safe_dump(keys)}")
    overrides = COMMON.format(seeds=2 if quick else 5, settings=",".join(SETTINGS)).split()
    overrides += (QUICK if quick else WHOLE).split()
    if list(folder.glob("outputs/sweeps/*/*/sweep.json")):
        overrides = ["sweep.resume=last", "trust=[imbalance]"]
    command = [sys.executable, "-m", "dltrain", "train", "-m", "--config-dir", str(configs.parent), *overrides]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    os.environ["DLTRAIN_DATA"] = str(Path(os.environ.get("DLTRAIN_DATA", "data")).resolve())
    subprocess.run(command, cwd=folder, check=True)


def recalls(folder: Path) -> Recalls:
    """Read the recall of each class from the analyses of all finished runs."""
    found: Recalls = {name: {} for name in SETTINGS}
    for path in sorted(folder.glob("outputs/sweeps/*/*/*/analysis.json")):
        config = yaml.safe_load((path.parent / ".hydra" / "config.yaml").read_text())
        name = "balance" if config["data"]["balance"] else "weights" if config["task"]["class_weights"] else "plain"
        confusion = numpy.array(json.loads(path.read_text())["confusion"])
        found[name][config["seed"]] = 100 * confusion.diagonal() / confusion.sum(axis=1)
    return found


def shown(values: list[float]) -> str:
    return f"{statistics.fmean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def table(found: Recalls) -> str:
    """Return the means and standard deviations over seeds, and the paired differences, in percent."""
    lines = ["| | n | balanced accuracy | recall of the large classes | of the small ones |", "|---|---|---|---|---|"]
    for name, runs in found.items():
        parts = (slice(None), slice(0, None, 2), slice(1, None, 2))
        cells = (
            [shown([float(each[part].mean()) for each in runs.values()]) for part in parts] if runs else ["", "", ""]
        )
        lines.append(f"| {name} | {len(runs)} | {' | '.join(cells)} |")
    lines += ["", "| difference in balanced accuracy | n | mean ± sd | better in | p |", "|---|---|---|---|---|"]
    for first, second in itertools.combinations(found, 2):
        seeds = sorted(found[first].keys() & found[second].keys())
        if len(seeds) > 1:  # else there is no t-test
            pair = [[float(found[name][seed].mean()) for seed in seeds] for name in (second, first)]
            gains = [after - before for after, before in zip(*pair, strict=True)]
            better = f"{sum(gain > 0 for gain in gains)} of {len(seeds)}"
            p = ttest_rel(*pair).pvalue
            lines.append(f"| {second} − {first} | {len(seeds)} | {shown(gains)} | {better} | {p:.2g} |")
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
    print(table(recalls(folder)))


if __name__ == "__main__":
    main()
