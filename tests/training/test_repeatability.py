"""Same machine, same bits: one command gives the same weights and records in every process, folder and hash seed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dltrain.checkpoints import checkpoint

MODELS = ("mlp", "lenet", "lstm", "attention")
COMMAND = (
    *("train", "-m", f"model={','.join(MODELS)}", "data.limit=40", "data.crop=1", "data.flip=true", "epochs=2"),
    *("batch_size=12", "log_every=2", "device.threads=1"),
)
BUSY = "import torch\ntorch.set_num_threads(1)\na = torch.rand(300, 300)\nwhile True: a @ a"


def repeat(folder: Path, number: int, *, busy: bool) -> dict[str, Any]:
    """Weights and records of each model's run, in a process and a folder of its own."""
    place = folder / f"repeat {number}"
    place.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("DLTRAIN")}
    environment["PYTHONHASHSEED"] = str(number)
    other = subprocess.Popen([sys.executable, "-c", BUSY]) if busy else None
    try:
        command = [sys.executable, "-m", "dltrain", *COMMAND]
        subprocess.run(command, cwd=place, env=environment, check=True, capture_output=True, timeout=300)
    finally:
        if other is not None:
            other.kill()
            other.wait()
    found: dict[str, Any] = {}
    for path in place.rglob("last.pt"):
        content = checkpoint.load(path)
        lines = [json.loads(line) for line in (path.parent.parent / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            line.pop("examples_per_second", None)
        best = checkpoint.load(path.with_name("best.pt"))["model"]
        found[content["config"]["model"]["name"]] = {
            "records": lines,
            "weights": {key: value.numpy().tobytes() for key, value in content["model"].items()},
            "best": {key: value.numpy().tobytes() for key, value in best.items()},
        }
    assert sorted(found) == sorted(MODELS)
    return found


def check(folder: Path, repeats: int, *, busy: bool) -> None:
    first = repeat(folder, 0, busy=False)
    for number in range(1, repeats):
        again = repeat(folder, number, busy=busy and number % 3 == 1)
        for model in MODELS:
            assert again[model] == first[model], f"{model}, repeat {number}"


@pytest.mark.slow
def test_two_processes_give_the_same_bits_whatever_folder_and_hash_seed(tmp_path: Path) -> None:
    check(tmp_path, 2, busy=False)


@pytest.mark.torture
def test_twenty_processes_give_the_same_bits_whatever_folder_hash_seed_and_load(tmp_path: Path) -> None:
    check(tmp_path, 20, busy=True)
