"""Measure what saving checkpoints costs, as a fraction of the training time inside one run.

    python benchmarks/saving.py [OVERRIDE …]        # such as model=mlp epochs=3; needs MNIST in DLTRAIN_DATA

Times everything that a save does (collecting the state, flushing metrics.jsonl, writing, flushing and renaming both
files) relative to the training time of the same run, so that the speed of the machine cancels out.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from dltrain.checkpoints import checkpoint
from dltrain.config.composition import compose
from dltrain.report import run_files
from dltrain.training import snapshot
from dltrain.training.run import train


def timed(owner: Any, name: str, seconds: list[float]) -> None:
    """Replace a function by one that appends its seconds to a list."""
    function: Callable[..., Any] = getattr(owner, name)

    def measured(*arguments: Any, **keywords: Any) -> Any:
        began = perf_counter()
        try:
            return function(*arguments, **keywords)
        finally:
            seconds.append(perf_counter() - began)

    setattr(owner, name, measured)


def main(overrides: list[str]) -> None:
    os.environ["DLTRAIN_DATA"] = str(Path(os.environ.get("DLTRAIN_DATA", "data")).resolve())
    saves: list[float] = []
    flushes: list[float] = []
    contents: list[float] = []
    timed(checkpoint, "save", saves)
    timed(run_files.Metrics, "flush", flushes)
    timed(snapshot, "last_checkpoint", contents)
    timed(snapshot, "best_checkpoint", contents)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        os.chdir(folder)
        summary = train(compose("train", ["data=mnist", *overrides]))
        os.chdir("..")
    cost = sum(saves) + sum(flushes) + sum(contents)
    print(
        f"\n{summary['steps']} steps, {summary['train_seconds']:.1f} s of training, {len(flushes)} saves: "
        f"{1000 * cost:.0f} ms, {1000 * sorted(saves)[len(saves) // 2]:.1f} ms per file (median): "
        f"{100 * cost / summary['train_seconds']:.2f} % of the training time"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
