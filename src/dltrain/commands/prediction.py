"""`dltrain predict`: classifies image files with a checkpoint."""

import csv
import glob
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.table import Table
from torch import Tensor

from dltrain.config import registry
from dltrain.config.resolution import Config
from dltrain.data import drawings, image_files, image_search
from dltrain.data.splits import Examples
from dltrain.engine import predict as outputs_of
from dltrain.report import console
from dltrain.runtime.devices import memory_errors
from dltrain.runtime.errors import ConfigError, InputError, OutputError, PartialFailure, printable
from dltrain.runtime.folders import expand_user
from dltrain.training import build, checks
from dltrain.training.restore import TrainedModel, load_trained

log = logging.getLogger(__name__)

SHOWN_ROWS = 40
OVERSHOOT = 0.1  # beyond 0 to 1, as resampled images have
Prepare = Callable[[Image.Image], tuple[Image.Image, dict[str, bool]]]


def predict(config: Config) -> list[dict[str, Any]]:
    """Print, write as CSV and return the most likely classes of each image; a damaged image gets a row too.

    `invert` is for drawings on paper, dark on light, as input of a network trained on data such as MNIST. With `auto`
    an image with a light edge is inverted if the mean of the training images, which the checkpoint has, is below 1/3,
    one with a dark edge if it is above 2/3; its row has the key `inverted`.
    Raises UserError, whose `exit_code` tells the kind of error.
    """
    values = config.values
    loaded = load_trained(values["ckpt"], config)
    if loaded.values["task"]["name"] != "classification":
        raise ConfigError(f"predict needs a classifier, {loaded.path} was trained with another task")
    low, high = loaded.content["data"].get("range") or (0, 1)
    if not -OVERSHOOT <= low <= high <= 1 + OVERSHOOT:
        raise ConfigError(
            f"{loaded.path}: trained on values from {low:.4g} to {high:.4g}, not on bytes or values from 0 to 1\n"
            "The bytes of an image file cannot be mapped to that range; use dltrain eval with such data"
        )
    paths = find(values["input"])
    classes = loaded.content["data"]["classes"]
    task, shape = registry.partial_call("task", loaded.values["task"])(), loaded.content["data"]["input_shape"]
    checks.check_fit(loaded.model, loaded.values["model"], task, torch.zeros(1, dtype=torch.int64), shape, len(classes))
    top_k = min(values["top_k"], len(classes))
    auto = values["invert"] == "auto"
    knows_dark = auto and drawings.knows_dark(loaded.statistics[0])

    def prepared(image: Image.Image) -> tuple[Image.Image, dict[str, bool]]:
        """Return an image inverted and centered as asked for, and the keys that this adds to its row."""
        invert = drawings.is_dark(image) != knows_dark if auto else values["invert"]
        image = drawings.inverted(image) if invert else image
        center = invert if values["center"] is None else values["center"]
        image = drawings.centered(image, (shape[1], shape[2])) if center else image
        return image, {"inverted": invert} if auto else {}

    rows = []
    with image_files.without_pillow_warnings():
        for start in range(0, len(paths), values["batch_size"]):
            with memory_errors("Lower batch_size"):
                rows += _predict_batch(loaded, paths[start : start + values["batch_size"]], prepared, top_k)
    _write(expand_user(values["output"]), rows, top_k)
    _show(rows, top_k)
    damaged = sum(bool(row["error"]) for row in rows)
    log.info("%d %s, %d damaged: %s", len(rows), "image" if len(rows) == 1 else "images", damaged, values["output"])
    if damaged == len(rows):
        message = f"input={values['input']}: no image can be read: {rows[0]['error']}"
        raise PartialFailure(message, InputError.exit_code, rows)
    return rows


def find(text: str) -> list[Path]:
    """Return the files that an input names, of a folder also those that are no images. Raises InputError for none."""
    path = expand_user(text)
    if path.is_dir():
        images, left_out = image_search.find_images(path)
        left_out = {name: why for name, why in left_out.items() if why != image_search.NO_FILE}  # a pipe would block
        paths = sorted(map(Path, [*images, *left_out]))
    elif path.is_file():
        paths = [path]
    else:
        matches = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207  (any folder)
        paths = [match for match in matches if match.is_file()]
    if not paths:
        problem = "no image found" if path.is_dir() or glob.has_magic(text) else "no such file or folder"
        raise InputError(f"input={text}: {problem}. Give a file, a folder or a pattern such as 'shots/*.png'")
    return paths


def _predict_batch(loaded: TrainedModel, paths: list[Path], prepared: Prepare, top_k: int) -> list[dict[str, Any]]:
    classes = loaded.content["data"]["classes"]
    channels, height, width = loaded.content["data"]["input_shape"]
    fit, levels = loaded.values["data"].get("fit", "resize"), loaded.content["data"]["levels"]
    decoded: list[Tensor] = []
    errors: dict[Path, str] = {}
    added: dict[Path, dict[str, bool]] = {}
    for path in paths:
        try:
            image, added[path] = prepared(image_files.open_image(path, channels=channels, levels=levels))
            decoded.append(image_files.resized(image, size=(height, width), fit=fit))
        except ValueError as error:
            errors[path] = str(error)
    probabilities: Iterator[Tensor] = iter(_probabilities(loaded, decoded) if decoded else [])
    rows = []
    for path in paths:
        row: dict[str, Any] = {"file": str(path), "error": errors.get(path, ""), **added.get(path, {})}
        if path not in errors:
            best = next(probabilities).topk(top_k)
            for rank, (probability, index) in enumerate(zip(best.values, best.indices, strict=True), start=1):
                row |= {f"class_{rank}": classes[index], f"probability_{rank}": float(probability)}
        rows.append(row)
    return rows


def _probabilities(loaded: TrainedModel, images: list[Tensor]) -> Tensor:
    """Return the probabilities of the classes (N, K)."""
    examples = Examples(torch.stack(images), torch.zeros(len(images)), ())
    batches = build.evaluation_batches(examples, loaded.runtime, loaded.statistics, len(images))
    return outputs_of(loaded.model, batches, loaded.runtime).softmax(dim=1)


def _write(path: Path, rows: list[dict[str, Any]], top_k: int) -> None:
    ranks = [name for rank in range(1, top_k + 1) for name in (f"class_{rank}", f"probability_{rank}")]
    try:
        with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            added = ["inverted"] if any("inverted" in row for row in rows) else []
            writer = csv.DictWriter(file, ["file", *ranks, *added, "error"])
            writer.writeheader()
            writer.writerows(rows)
    except (OSError, ValueError) as error:  # ValueError for a NUL byte in the name
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"output={path}: cannot be written ({reason})") from error


def _show(rows: list[dict[str, Any]], top_k: int) -> None:
    table = Table("image", *(f"{rank}." for rank in range(1, top_k + 1)))
    for row in rows[:SHOWN_ROWS]:
        ranked = [f"{row[f'class_{r}']} {row[f'probability_{r}']:.4f}" for r in range(1, top_k + 1) if not row["error"]]
        table.add_row(*map(printable, (row["file"], *(ranked or [f"damaged: {row['error']}"]))))
    console.show_table(table)
    if len(rows) > SHOWN_ROWS:
        log.info("… and %d more in the file", len(rows) - SHOWN_ROWS)
