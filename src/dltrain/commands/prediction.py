"""`dltrain predict`: picture files to the classes a checkpoint sees in them."""

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
from dltrain.data import drawings, image_files
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
OVERSHOOT = 0.1  # by which numbers from 0 to 1 may overshoot, as those of resampled pictures do
Prepare = Callable[[Image.Image], tuple[Image.Image, dict[str, bool]]]


def predict(config: Config) -> list[dict[str, Any]]:
    """The likeliest classes of each picture, printed, written as CSV, and returned; a damaged picture is a row as well.

    `invert` is for drawings as people make them, dark on light and anywhere on the paper, given to a network such as
    MNIST's. With `auto` a picture whose edge is light is inverted where the mean of the training's pictures, which the
    checkpoint knows, is below 1/3, one whose edge is dark where it is above 2/3; its row tells it as `inverted`.
    Raises UserError, whose `exit_code` says of which kind.
    """
    values = config.values
    loaded = load_trained(values["ckpt"], config)
    if loaded.values["task"]["name"] != "classification":
        raise ConfigError(f"predict needs a classifier, {loaded.path} was trained with another task")
    low, high = loaded.content["data"].get("range") or (0, 1)
    if not -OVERSHOOT <= low <= high <= 1 + OVERSHOOT:
        raise ConfigError(
            f"{loaded.path}: trained on numbers from {low:.4g} to {high:.4g}, not on bytes or numbers from 0 to 1\n"
            "What a picture file's bytes are among these is not known; use dltrain eval with such data"
        )
    paths = find(values["input"])
    classes = loaded.content["data"]["classes"]
    task, shape = registry.partial_call("task", loaded.values["task"])(), loaded.content["data"]["input_shape"]
    checks.check_fit(loaded.model, loaded.values["model"], task, torch.zeros(1, dtype=torch.int64), shape, len(classes))
    top_k = min(values["top_k"], len(classes))
    auto = values["invert"] == "auto"
    knows_dark = auto and drawings.knows_dark(loaded.statistics[0])

    def prepared(picture: Image.Image) -> tuple[Image.Image, dict[str, bool]]:
        """A picture as the network knows them, and what its row is to tell of that."""
        invert = drawings.is_dark(picture) != knows_dark if auto else values["invert"]
        picture = drawings.inverted(picture) if invert else picture
        center = invert if values["center"] is None else values["center"]
        picture = drawings.centered(picture, (shape[1], shape[2])) if center else picture
        return picture, {"inverted": invert} if auto else {}

    rows = []
    with image_files.without_pillow_warnings():
        for start in range(0, len(paths), values["batch_size"]):
            with memory_errors("Lower batch_size"):
                rows += _predict_batch(loaded, paths[start : start + values["batch_size"]], prepared, top_k)
    _write(expand_user(values["output"]), rows, top_k)
    _show(rows, top_k)
    damaged = sum(bool(row["error"]) for row in rows)
    log.info("%d pictures, %d damaged: %s", len(rows), damaged, values["output"])
    if damaged == len(rows):
        message = f"input={values['input']}: none of the {damaged} pictures can be read: {rows[0]['error']}"
        raise PartialFailure(message, InputError.exit_code, rows)
    return rows


def find(text: str) -> list[Path]:
    """The files that an input names; a single file is taken whatever its ending. Raises InputError for none."""
    path = expand_user(text)
    if path.is_dir():
        found = [Path(each) for each in image_files.find_images(path)]
    elif path.is_file():
        found = [path]
    else:
        matches = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207  (any folder)
        found = [match for match in matches if match.is_file()]
    if not found:
        raise InputError(f"input={text}: no picture found. Give a file, a folder or a pattern such as 'shots/*.png'")
    return found


def _predict_batch(loaded: TrainedModel, paths: list[Path], prepared: Prepare, top_k: int) -> list[dict[str, Any]]:
    classes = loaded.content["data"]["classes"]
    channels, height, width = loaded.content["data"]["input_shape"]
    fit = loaded.values["data"].get("fit", "resize")
    decoded: list[Tensor] = []
    errors: dict[Path, str] = {}
    told: dict[Path, dict[str, bool]] = {}
    for path in paths:
        try:
            picture, told[path] = prepared(image_files.open_image(path, channels=channels))
            decoded.append(image_files.resized(picture, size=(height, width), fit=fit))
        except ValueError as error:
            errors[path] = str(error)
    shares: Iterator[Tensor] = iter(_shares(loaded, decoded) if decoded else [])
    rows = []
    for path in paths:
        row: dict[str, Any] = {"file": str(path), "error": errors.get(path, ""), **told.get(path, {})}
        if path not in errors:
            best = next(shares).topk(top_k)
            for rank, (share, index) in enumerate(zip(best.values, best.indices, strict=True), start=1):
                row |= {f"class_{rank}": classes[index], f"probability_{rank}": float(share)}
        rows.append(row)
    return rows


def _shares(loaded: TrainedModel, images: list[Tensor]) -> Tensor:
    """Probability of each class (N, K)."""
    examples = Examples(torch.stack(images), torch.zeros(len(images)), ())
    batches = build.evaluation_batches(examples, loaded.runtime, loaded.statistics, len(images))
    return outputs_of(loaded.model, batches, loaded.runtime).softmax(dim=1)


def _write(path: Path, rows: list[dict[str, Any]], top_k: int) -> None:
    ranks = [name for rank in range(1, top_k + 1) for name in (f"class_{rank}", f"probability_{rank}")]
    try:
        with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            also = ["inverted"] if any("inverted" in row for row in rows) else []
            writer = csv.DictWriter(file, ["file", *ranks, *also, "error"])
            writer.writeheader()
            writer.writerows(rows)
    except (OSError, ValueError) as error:  # the latter for a zero byte in its name
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"output={path}: cannot be written ({reason})") from error


def _show(rows: list[dict[str, Any]], top_k: int) -> None:
    table = Table("picture", *(f"{rank}." for rank in range(1, top_k + 1)))
    for row in rows[:SHOWN_ROWS]:
        ranked = [f"{row[f'class_{r}']} {row[f'probability_{r}']:.4f}" for r in range(1, top_k + 1) if not row["error"]]
        table.add_row(*map(printable, (row["file"], *(ranked or [f"damaged: {row['error']}"]))))
    console.show_table(table)
    if len(rows) > SHOWN_ROWS:
        log.info("… and %d more in the file", len(rows) - SHOWN_ROWS)
