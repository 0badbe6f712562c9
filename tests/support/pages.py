"""Run folders for the tests of reports, written without training."""

import base64
import io
import json
import math
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from dltrain.report.run_rows import RunRow


def grey_image(shade: int = 120) -> str:
    """Return a small grey image as a data URL, the form that pages embed."""
    file = io.BytesIO()
    Image.new("L", (8, 8), shade).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def analysis(classes: list[str]) -> dict[str, Any]:
    """Return the content of analysis.json for a network that made three mistakes."""
    count = len(classes)
    confusion = [[10 if true == claimed else 0 for claimed in range(count)] for true in range(count)]
    confusion[0][1] = 3
    mistakes = [
        {"index": index, "true": classes[0], "predicted": classes[1], "probability": 0.9, "image": grey_image()}
        for index in range(3)
    ]
    return {
        "task": "classification",
        "split": "test",
        "examples": 10 * count + 3,
        "classes": classes,
        "confusion": confusion,
        "per_class": {name: {"precision": 0.9, "recall": 0.8, "f1": 0.85, "examples": 10} for name in classes},
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
                "image": grey_image(),
                "weights": [[0.1, 0.4], [0.5, 0]],
            }
        ],
    }


def records(epochs: int = 3, end: float = 0.9) -> list[dict[str, Any]]:
    """Return the records of a run that improves."""
    lines: list[dict[str, Any]] = []
    for epoch in range(1, epochs + 1):
        accuracy = end * (1 - math.exp(-epoch))
        metrics = {"step": 10 * epoch, "epoch": float(epoch), "loss": 1 / epoch, "accuracy": accuracy}
        lines += [
            {"split": "train", **metrics, "lr": 0.1, "examples_per_second": 1000.0},
            {"split": "val", **metrics},
        ]
    return lines


def write_run(folder: Path, classes: list[str], config: dict[str, Any] | None = None) -> Path:
    """Write the folder of a finished run; return it."""
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
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records()))
    (folder / "analysis.json").write_text(json.dumps(analysis(classes)))
    return folder


def write_set(folder: Path, count: int) -> list[RunRow]:
    """Write runs of two models with several learning rates and seeds, one in ten of them failed."""
    members = []
    for number in range(count):
        run = folder / f"{number}_job"
        run.mkdir(parents=True)
        failed = number % 10 == 3
        accuracy = 0.5 + 0.4 * ((number * 37) % 101) / 101
        lines = [] if failed else records(epochs=20, end=accuracy)
        (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in lines))
        config = {"model": ["mlp", "lenet"][number % 2], "optim.lr": 10.0 ** -(number % 3 + 1), "seed": number // 6}
        metrics = {} if failed else {"val_accuracy": accuracy, "test_accuracy": accuracy - 0.01, "test_loss": 0.3}
        reason = "exit code 1: RuntimeError: <b>no</b>" if failed else ""
        members.append(RunRow(run, f"job {number}", config, "failed" if failed else "done", metrics, 1.5, reason))
    return members
