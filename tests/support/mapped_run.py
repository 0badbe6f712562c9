"""Train one epoch on a folder of images and print, in MB, how much anonymous memory that takes.

    PYTHONPATH=tests python -m support.mapped_run FOLDER MEGABYTES [WORD...]

The words are further overrides, such as data.memory=false. Prints the level after a small run, the peak of the run, and
its folder, as JSON.
"""

import contextlib
import io
import json
import os
import re
import sys
import threading
from pathlib import Path

from PIL import Image

SIDE = 64
DISTINCT = 60  # the other files are links to these


def write_images(root: Path, megabytes: int) -> None:
    """Write images in two classes that take so many MB decoded: each of one colour, bright or dark."""
    count = megabytes * 10**6 // (3 * SIDE**2)
    for index in range(count):
        path = root / ("bright" if index % 2 else "dark") / f"{index:06}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if index < DISTINCT:
            Image.new("RGB", (4, 4), (index, 2 * index, 128 * (index % 2) + index)).save(path)
        else:
            os.link(root / path.parent.name / f"{index % DISTINCT:06}.png", path)


def anonymous() -> float:
    """The anonymous memory of this process, in MB."""
    return int(re.findall(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 1000


def train(root: Path, *words: str) -> str:
    """Train one epoch; return the folder of the run."""
    from dltrain import cli

    options = ["model=linear", "epochs=1", "batch_size=32", "seed=1", "report=false", "logger=none", "device.threads=1"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = cli.main(["train", "data=folder", f"data.root={root}", f"data.size=[{SIDE},{SIDE}]", *options, *words])
    assert code == 0, printed.getvalue()
    return next(line.split()[1].rstrip(",") for line in printed.getvalue().splitlines() if line.startswith("folder "))


def main() -> None:
    folder, megabytes, *words = sys.argv[1:]
    os.chdir(folder)
    for name, size in (("few", 40), ("many", int(megabytes))):
        if not Path(name).exists():
            write_images(Path(name), size)
    train(Path("few"), *words)  # what any run needs: libraries, threads, the network
    level, samples, ended = anonymous(), [0.0], threading.Event()

    def sample() -> None:
        while not ended.wait(0.002):
            samples.append(anonymous())

    sampler = threading.Thread(target=sample)
    sampler.start()
    run = train(Path("many"), *words)
    ended.set()
    sampler.join()
    print(json.dumps({"level": level, "peak": max(samples), "run": str(Path(run).absolute()), "samples": len(samples)}))


if __name__ == "__main__":
    main()
