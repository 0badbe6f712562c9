"""Folders of many different runs, as a month of work leaves them: composed configs and made-up metrics, no training."""

import json
import math
import random
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from dltrain.config.composition import compose
from dltrain.config.dotted import leaves
from dltrain.report.run_rows import RunRow

KINDS = (
    "model=mlp data=digits",
    "model=lenet data=digits optim=adam",
    "model=lenet data=mnist",
    "model=cnn data=mnist optim=adamw schedule=cosine device=cpu",
    "model=torchvision data=folder data.root=/home/someone/a/rather/long/path/to/pictures/photos data.size=[224,224]",
    "model=torchvision model.arch=mobilenet_v3_small data=folder data.root=/data/photos optim=adamw",
    "model=cnn data=cifar10 optim=muon data.flip=true data.crop=4 logger=none",
    "model=attention data=cifar10 optim=adamw ema=0.999",
    "model=mlp data=line task=regression",
)


@cache
def _composed(kind: str) -> str:
    return json.dumps(compose("train", kind.split()))


def mixed_config(number: int) -> dict[str, Any]:
    """Return the config of run `number`: a kind of run, with other values of keys that users vary."""
    draw = random.Random(number)
    config = json.loads(_composed(KINDS[number % len(KINDS)]))
    config["seed"] = draw.choice([0, 0, 1, 2])
    config["epochs"] = draw.choice([2, 10, 20])
    config["batch_size"] = draw.choice([64, 64, 64, 128, 512])
    config["optim"]["lr"] = draw.choice([0.5, 0.1, 0.05, 0.01, 0.001, 3e-4])
    if draw.random() < 0.2:
        config["optim"]["weight_decay"] = 5e-4
    if draw.random() < 0.2 and "hidden" in config["model"]:
        config["model"]["hidden"] = [512, 256, 128]
    if draw.random() < 0.1:
        config["init"] = f"/home/someone/outputs/2026-11-0{number % 9 + 1}/12-00-00/checkpoints/best.pt"
    return config


def write_mixed(folder: Path, count: int, epochs: int = 10) -> list[Path]:
    """Write `count` runs under folder/DATE/TIME; one in eleven was killed, one in seven has a custom option."""
    return [_write(folder, number, epochs) for number in range(count)]


def mixed_rows(count: int) -> list[RunRow]:
    """Return the rows of such runs without their folders."""
    rows = []
    for number in range(count):
        end = 0.5 + 0.5 * random.Random(number).random()
        metrics = {
            "test_loss": 1 - end / 2,
            "test_accuracy": end - 0.01234,
            "val_loss": 1 - end / 2,
            "val_accuracy": end,
        }
        rows.append(RunRow(Path(str(number)), f"run {number}", leaves(mixed_config(number)), "done", metrics, 12.5))
    return rows


def _write(folder: Path, number: int, epochs: int) -> Path:
    draw = random.Random(number)
    config, end = mixed_config(number), 0.5 + 0.5 * draw.random()
    if number % 7 == 6:
        config["model"] = {"name": "shop.nets.Wide", "width": 32}
    time = f"{number // 60 % 24:02}-{number % 60:02}-00{'-trial' * (number % 5 == 4)}"
    run = folder / f"2026-11-{number % 28 + 1:02}" / time
    (run / ".hydra").mkdir(parents=True)
    (run / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    score = "r2" if config["task"]["name"] == "regression" else "accuracy"
    records: list[dict[str, Any]] = []
    for epoch in range(1, epochs + 1):
        metrics = {"step": 100 * epoch, "epoch": float(epoch), "loss": 2 / epoch, score: end * (1 - math.exp(-epoch))}
        records += [{"split": "train", **metrics, "lr": 0.1, "examples_per_second": 9e3}, {"split": "val", **metrics}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if number % 11 == 10:  # killed
        return run
    best = {key: value for key, value in records[-1].items() if key != "split"}
    summary = {
        "status": "stopped early" if number % 13 == 12 else "done",
        "test": {"loss": best["loss"] + 0.01, score: best[score] - 0.0123},
        "val": {"loss": best["loss"], score: best[score]},
        "best": {"split": "val"} | best,
        "steps": 100 * epochs,
        "train_seconds": 1000 * draw.random(),
        "total_seconds": 1100 * draw.random(),
        "examples_per_second": 9000.0,
        "parameters": 12345,
    }
    (run / "summary.json").write_text(json.dumps(summary))
    return run
