"""What saving costs: its share of the training time, measured inside one run.

    python benchmarks/saving.py [OVERRIDE …]        # such as model=mlp epochs=3; needs MNIST in DLTRAIN_DATA

Everything a save does is timed where it happens (image of the run, flush of metrics.jsonl, both files, their flushes
and renames) and put in relation to the training time of the same run, so that the machine's speed cancels out.
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
    """Add up the seconds that a function takes."""
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
    images: list[float] = []
    timed(checkpoint, "save", saves)
    timed(run_files.Metrics, "flush", flushes)
    timed(snapshot, "content", images)
    timed(snapshot, "best", images)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        os.chdir(folder)
        summary = train(compose("train", ["data=mnist", *overrides]))
        os.chdir("..")
    cost = sum(saves) + sum(flushes) + sum(images)
    print(
        f"\n{summary['steps']} steps, {summary['train_seconds']:.1f} s of training, {len(flushes)} times saved: "
        f"{1000 * cost:.0f} ms, {1000 * sorted(saves)[len(saves) // 2]:.1f} ms a file (median): "
        f"{100 * cost / summary['train_seconds']:.2f} % of the training time"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
