"""Measure what reports cost: the page at the end of an MNIST run, and opening a page of 500 runs in a browser.

    python benchmarks/report.py [--runs 5]

DLTRAIN_DATA names the folder of the data. Chromium must be on the PATH for the second part.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))


def train(folder: Path, *overrides: str) -> float:
    """Run a training command and return its seconds."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "dltrain", "train", *overrides]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - began


def cost(runs: int) -> None:
    """Train with and without a page in turn and print what the page costs."""
    overrides = ("model=lenet", "data=mnist", "epochs=2", "device.threads=1", "logger=none")
    with tempfile.TemporaryDirectory() as name:
        pairs = [[train(Path(name), *overrides, f"report={value}") for value in ("true", "false")] for _ in range(runs)]
    more = [with_page - without for with_page, without in pairs]
    print(f"MNIST, LeNet-5, 2 epochs, {runs} pairs: {statistics.median(it[1] for it in pairs):.1f} s without a page")
    print(f"a page costs {statistics.median(more):.2f} s more (median; {min(more):.2f} to {max(more):.2f})")


def opening(runs: int) -> None:
    """Print the seconds of `dltrain report` for 500 mixed runs, and until its page is readable and drawn."""
    from browser import chromium, opened
    from mixed_runs import write_mixed

    with tempfile.TemporaryDirectory() as name, chromium() as browser:
        path = Path(name) / "report.html"
        write_mixed(Path(name) / "outputs", 500, epochs=20)
        began = time.perf_counter()
        command = [sys.executable, "-m", "dltrain", "report", "outputs"]
        subprocess.run(command, cwd=name, check=True, capture_output=True)
        print(f"500 mixed runs: {time.perf_counter() - began:.2f} s, page of {path.stat().st_size / 1e6:.2f} MB")
        seconds = []
        for _ in range(runs):
            began = time.perf_counter()
            with opened(browser, path) as page:
                drawn = time.perf_counter() - began
                timing = json.loads(page.evaluate("JSON.stringify(performance.getEntriesByType('navigation')[0])"))
            seconds.append((drawn, timing["domContentLoadedEventEnd"] / 1000))
        drawn, ready = (statistics.median(it) for it in zip(*seconds, strict=True))
        print(f"readable after {ready:.2f} s, all charts drawn after {drawn:.2f} s (median of {runs})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    opening(arguments.runs)
    cost(arguments.runs)
