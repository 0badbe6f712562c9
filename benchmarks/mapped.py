"""Measure images in a mapped file against images in memory, and the second start against decoding.

    python benchmarks/mapped.py                # about five minutes
    python benchmarks/mapped.py --count 500

Trains one network on the same folder, in turn from memory and from the mapped file, which is in the page cache; then
reads all images again. Both ratios are of times within this run; exits with 1 if one is below its floor.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from folder import write_images

RATE_FLOOR, START_FLOOR = 0.8, 20.0


def images_per_second(root: Path, memory: str, epochs: int) -> float:
    """Train from memory, or from the mapped file; return the rate that the run reports."""
    from dltrain import cli

    words = [f"data.root={root}", f"data.memory={memory}", "data.size=[64,64]", "data.flip=true", "data.crop=4"]
    words += ["model=lenet", f"epochs={epochs}", "report=false", "logger=none"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = cli.main(["train", "data=folder", *words])
    if code:
        sys.exit(printed.getvalue())
    run = next(line.split()[1].rstrip(",") for line in printed.getvalue().splitlines() if line.startswith("folder "))
    return float(json.loads(Path(run, "summary.json").read_text())["examples_per_second"])


def seconds_to_read(root: Path, memory: bool | None) -> float:
    """Read both splits of small images as a start does, decoded or from the cache."""
    from dltrain.data.datasets.folder import folder

    began = perf_counter()
    for split in ("train", "test"):
        folder(split, root=str(root), size=[32, 32], channels=3, fit="resize", range=None, memory=memory)
    return perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        root = Path(name, "photos")
        write_images(root, options.count, damaged=20)
        os.environ["DLTRAIN_CACHE"] = str(Path(name, "kept"))
        images_per_second(root, "false", 1)  # decodes, and warms up
        rates: dict[str, list[float]] = {"true": [], "false": []}
        for _ in range(options.rounds):
            for memory, found in rates.items():
                found.append(images_per_second(root, memory, options.epochs))
        decoding = seconds_to_read(root, None)
        again = {memory: [seconds_to_read(root, memory) for _ in range(options.rounds)] for memory in (None, False)}
    ratio = statistics.median(rates["false"]) / statistics.median(rates["true"])
    for memory, place in (("true", "memory"), ("false", "mapped")):
        low, median, high = min(rates[memory]), statistics.median(rates[memory]), max(rates[memory])
        print(f"{place}: {median:,.0f} images/s ({low:,.0f} to {high:,.0f}), n={options.rounds}")
    print(f"mapped / memory: {ratio:.2f}, floor {RATE_FLOOR}")
    starts = {memory: decoding / statistics.median(found) for memory, found in again.items()}
    print(f"decoding {decoding:.1f} s; second start {starts[None]:.0f} times as fast, mapped {starts[False]:.0f} times")
    if ratio < RATE_FLOOR or min(starts.values()) < START_FLOOR:
        sys.exit(f"below a floor: {RATE_FLOOR} of the rate in memory, {START_FLOOR:.0f} times as fast as decoding")


if __name__ == "__main__":
    main()
