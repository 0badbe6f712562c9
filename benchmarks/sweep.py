"""Time a typical sweep, 64 jobs of two epochs of MNIST, as a whole command against peers.

    python benchmarks/sweep.py [mlp|lenet] [LETTERS] [SEEDS]      # needs MNIST in DLTRAIN_DATA; letters such as abc

a  dltrain train -m                            d  Hydra with the joblib launcher, loop over tensors
b  Hydra's basic launcher, DataLoader          e  Ray Tune, loop over tensors
c  Hydra's basic launcher, loop over tensors   f  a shell loop of single dltrain runs

Jobs are 4 rates x 4 momenta x SEEDS seeds (4). The variants run one after another; the ratios are what counts.
"""

import itertools
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

PEERS = Path(__file__).resolve().with_name("sweep_peers.py")
RATES = "0.005,0.01,0.02,0.05"
MOMENTA = "0.0,0.5,0.8,0.9"
EPOCHS = 2


def commands(model: str, seeds: str) -> dict[str, list[str]]:
    """Return the command lines of each variant."""
    overrides = f"model={model} data=mnist data.val=0 schedule=constant epochs={EPOCHS} device=cpu"
    script = shlex.join([sys.executable, str(PEERS)])
    peer = f"{script} -m +model={model} +lr={RATES} +momentum={MOMENTA} +seed={seeds} +epochs={EPOCHS}"
    ray = f"{script} ray model={model} lr={RATES} momentum={MOMENTA} seed={seeds} epochs={EPOCHS}"
    return {
        "a": [f"dltrain train -m {overrides} optim.lr={RATES} optim.momentum={MOMENTA} seed={seeds}"],
        "b": [f"{peer} +loop=loader"],
        "c": [f"{peer} +loop=tensors"],
        "d": [f"{peer} +loop=tensors hydra/launcher=joblib hydra.launcher.n_jobs={os.cpu_count()}"],
        "e": [ray],
        "f": [
            f"dltrain train {overrides} optim.lr={lr} optim.momentum={momentum} seed={seed}"
            for lr, momentum, seed in itertools.product(RATES.split(","), MOMENTA.split(","), seeds.split(","))
        ],
    }


def seconds(lines: list[str]) -> float:
    """Return the seconds that the command lines take, one after another, in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        began = perf_counter()
        for line in lines:
            subprocess.run(shlex.split(line), cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        return perf_counter() - began


def main(model: str = "mlp", letters: str = "abcdef", seeds: str = "4") -> None:
    os.environ["DLTRAIN_DATA"] = str(Path(os.environ.get("DLTRAIN_DATA", "data")).resolve())
    os.environ["PYTHONPATH"] = f"{PEERS.parent}:{os.environ.get('PYTHONPATH', '')}"  # for Ray's processes
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    lines = commands(model, ",".join(map(str, range(int(seeds)))))
    taken = {}
    for letter in letters:
        taken[letter] = seconds(lines[letter])
        print(f"{letter}  {taken[letter]:7.1f} s  {taken[letter] / taken[letters[0]]:5.2f} x {letters[0]}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
