"""Folders of runs as a run leaves them, for the tests of reports: some honest, some a stranger's."""

import base64
import io
import json
import math
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from dltrain.report.run_rows import RunRow


def picture(shade: int = 120) -> str:
    """A small grey picture, as a page holds it."""
    file = io.BytesIO()
    Image.new("L", (8, 8), shade).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def analysis(classes: list[str]) -> dict[str, Any]:
    """What a network of three mistakes gets right and wrong."""
    count = len(classes)
    confusion = [[10 if true == claimed else 0 for claimed in range(count)] for true in range(count)]
    confusion[0][1] = 3
    mistakes = [
        {"index": index, "true": classes[0], "predicted": classes[1], "probability": 0.9, "image": picture()}
        for index in range(3)
    ]
    return {
        "task": "classification",
        "split": "test",
        "examples": 10 * count + 3,
        "classes": classes,
        "confusion": confusion,
        "per_class": {it: {"precision": 0.9, "recall": 0.8, "f1": 0.85, "examples": 10} for it in classes},
        "calibration": {
            "error": 0.0312,
            "bins": [{"from": 0.9, "to": 1.0, "count": 33, "confidence": 0.95, "accuracy": 0.91}],
        },
        "mistakes": mistakes,
        "attention": [
            {
                "index": 0,
                "true": classes[0],
                "predicted": classes[0],
                "image": picture(),
                "weights": [[0.1, 0.4], [0.5, 0]],
            }
        ],
    }


def records(epochs: int = 3, end: float = 0.9) -> list[dict[str, Any]]:
    """Records of a run that gets better."""
    found: list[dict[str, Any]] = []
    for epoch in range(1, epochs + 1):
        accuracy = end * (1 - math.exp(-epoch))
        own = {"step": 10 * epoch, "epoch": float(epoch), "loss": 1 / epoch, "accuracy": accuracy}
        found += [{"split": "train", **own, "lr": 0.1, "examples_per_second": 1000.0}, {"split": "val", **own}]
    return found


def write_run(folder: Path, classes: list[str], config: dict[str, Any] | None = None) -> Path:
    """The folder of a run that is done."""
    (folder / ".hydra").mkdir(parents=True)
    config = config or {"model": {"name": "mlp", "width": 8}, "data": {"name": "digits"}, "seed": 3}
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    origins = {"model.width": "the command line", "seed": "configs/train.yaml", "data.name": "data/digits.yaml"}
    (folder / ".hydra" / "origins.json").write_text(json.dumps(origins))
    best = {"split": "val", "step": 30, "epoch": 3.0, "loss": 0.3, "accuracy": 0.875}
    summary = {
        "status": "done",
        "test": {"loss": 0.25, "accuracy": 0.8765},
        "best": best,
        "steps": 30,
        "train_seconds": 1.5,
        "total_seconds": 2.0,
        "examples_per_second": 1000.0,
        "parameters": 1234,
        "device": "cpu, 1 thread, fp32",
        "versions": {"torch": "2.15.0"},
        "hardware": {"cpu": "a processor", "cores": 2, "gpu": None},
        "git": "abc123",
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(it) + "\n" for it in records()))
    (folder / "analysis.json").write_text(json.dumps(analysis(classes)))
    return folder


def write_set(folder: Path, count: int) -> list[RunRow]:
    """Runs of two models, several rates and four seeds, every tenth of which failed."""
    members = []
    for number in range(count):
        own = folder / f"{number}_job"
        own.mkdir(parents=True)
        failed = number % 10 == 3
        accuracy = 0.5 + 0.4 * ((number * 37) % 101) / 101
        lines = [] if failed else records(epochs=20, end=accuracy)
        (own / "metrics.jsonl").write_text("".join(json.dumps(it) + "\n" for it in lines))
        config = {"model": ["mlp", "lenet"][number % 2], "optim.lr": 10.0 ** -(number % 3 + 1), "seed": number // 6}
        metrics = {} if failed else {"val_accuracy": accuracy, "test_accuracy": accuracy - 0.01, "test_loss": 0.3}
        reason = "exit code 1: RuntimeError: <b>no</b>" if failed else ""
        members.append(RunRow(own, f"job {number}", config, "failed" if failed else "done", metrics, 1.5, reason))
    return members
