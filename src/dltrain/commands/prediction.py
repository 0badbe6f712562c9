"""`dltrain predict`: the classes of image files, or the numbers for them, by a checkpoint."""

import csv
import glob
import io
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import ImageOps
from rich.table import Table
from torch import Tensor

from dltrain.config import registry
from dltrain.config.resolution import Config
from dltrain.data import drawings, image_files, image_search
from dltrain.data.image_reader import in_threads
from dltrain.data.splits import Examples
from dltrain.engine import predict as outputs_of
from dltrain.report import console
from dltrain.runtime.atomic_files import atomic_write, require_folder
from dltrain.runtime.devices import memory_errors
from dltrain.runtime.errors import ConfigError, InputError, OutputError, PartialFailure, printable
from dltrain.runtime.folders import expand_user
from dltrain.training import build, checks
from dltrain.training.restore import TrainedModel, load_trained

log = logging.getLogger(__name__)

SHOWN_ROWS = 40
OVERSHOOT = 0.1  # beyond 0 to 1, as resampled images have
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a cell begins that a spreadsheet would run


def predict(config: Config) -> list[dict[str, Any]]:
    """Print, write as CSV and return the most likely classes, or the numbers, of each image, a damaged one included.

    With `invert=auto` an image with a light edge is inverted if the mean of the training images, which the checkpoint
    has, is below 1/3, one with a dark edge if it is above 2/3; its row has the key `inverted`. Raises UserError.
    """
    values, output = config.values, expand_user(config.values["output"])
    require_folder(output)
    loaded = load_trained(values["ckpt"], config)
    known, name = loaded.content["data"], require_predictable(loaded)
    require_bytes(loaded)
    inputs = values["input"]
    paths = [path for text in ([inputs] if isinstance(inputs, str) else inputs) for path in find(text)]
    classes, shape = known["classes"], known["input_shape"]
    columns = [f"value_{number}" for number in range(1, known["outputs"] + 1)]
    if name == "classification":
        ranks = range(1, min(values["top_k"], len(classes)) + 1)
        columns = [column for rank in ranks for column in (f"class_{rank}", f"probability_{rank}")]
    size, fit = (shape[1], shape[2]), loaded.values["data"].get("fit", "resize")
    auto = values["invert"] == "auto"
    knows_dark = auto and drawings.knows_dark(loaded.statistics[0])

    def read(path: Path) -> tuple[Tensor, dict[str, bool]]:
        """Return an image, inverted and centered as asked for, and what its row has more."""
        image = image_files.open_image(path, channels=shape[0], levels=known["levels"])
        invert = drawings.is_dark(image) != knows_dark if auto else values["invert"]
        image = ImageOps.invert(image) if invert else image
        center = invert if values["center"] is None else values["center"]
        image = drawings.centered(image, size) if center else image
        return image_files.resized(image, size=size, fit=fit), {"inverted": invert} if auto else {}

    rows: list[dict[str, Any]] = []
    with image_files.without_pillow_warnings(), memory_errors("Lower batch_size"):
        reads = zip(paths, in_threads(read, paths, "reading images"), strict=True)
        while batch := list(itertools.islice(reads, values["batch_size"])):
            rows += _rows(loaded, batch, columns)
    _write(output, rows, ["file", *columns, *(["inverted"] if auto else []), "error"])
    _show(rows, columns)
    damaged = sum(bool(row["error"]) for row in rows)
    log.info("%d %s, %d damaged: %s", len(rows), "image" if len(rows) == 1 else "images", damaged, values["output"])
    if damaged == len(rows):
        message = f"input={values['input']}: no image can be read: {rows[0]['error']}"
        raise PartialFailure(message, InputError.exit_code, rows)
    return rows


def require_predictable(loaded: TrainedModel) -> str:
    """Return the task of a network; raise ConfigError for one that neither classifies nor predicts numbers."""
    known, name = loaded.content["data"], loaded.task
    if name not in ("classification", "regression"):
        raise ConfigError(f"predict needs task=classification or regression, {loaded.path} was trained with {name}")
    task = registry.partial_call("task", loaded.values["task"], class_counts=known.get("class_counts"))()
    targets = torch.zeros(1, known["outputs"]) if name == "regression" else torch.zeros(1, dtype=torch.int64)
    checks.check_fit(loaded.model, loaded.values["model"], task, targets, known["input_shape"], len(known["classes"]))
    return name


def require_bytes(loaded: TrainedModel) -> None:
    """Raise ConfigError for a network that was not trained on bytes or values from 0 to 1."""
    low, high = loaded.content["data"].get("range") or (0, 1)
    if not -OVERSHOOT <= low <= high <= 1 + OVERSHOOT:
        raise ConfigError(
            f"{loaded.path}: trained on values from {low:.4g} to {high:.4g}, not on bytes or values from 0 to 1\n"
            "The bytes of an image file cannot be mapped to that range; use dltrain eval with such data"
        )


def find(text: str) -> list[Path]:
    """Return the files that an input names, of a folder also those that are no images. Raises InputError for none."""
    path = expand_user(text)
    if path.is_dir():
        images, left_out = image_search.find_images(path)
        left_out = {name: why for name, why in left_out.items() if why != image_search.NO_FILE}  # a pipe would block
        paths = sorted(map(Path, [*images, *left_out]))
    else:  # a file may have a name that is also a pattern
        names = [path] if path.is_file() else glob.glob(str(path), recursive=True)  # noqa: PTH207  (any folder)
        paths = sorted(path for path in map(Path, names) if path.is_file())
    if not paths:
        problem = "no image found" if path.is_dir() or glob.has_magic(text) else "no such file or folder"
        raise InputError(f"input={text}: {problem}. Give a file, a folder or a pattern such as 'shots/*.png'")
    return paths


def _rows(loaded: TrainedModel, batch: list[tuple[Path, Any]], columns: list[str]) -> Iterator[dict[str, Any]]:
    images = [read[0] for _, read in batch if not isinstance(read, ValueError)]
    cells = iter(_cells(loaded, images, len(columns)) if images else [])
    for path, read in batch:
        if isinstance(read, ValueError):
            yield {"file": str(path), "error": str(read)}
        else:
            yield {"file": str(path), "error": "", **read[1], **dict(zip(columns, next(cells), strict=True))}


def _cells(loaded: TrainedModel, images: list[Tensor], count: int) -> list[list[Any]]:
    """Return `count` cells for each image: classes, each with its probability, or the network's outputs as they are."""
    examples = Examples(torch.stack(images), torch.zeros(len(images)), ())
    batches = build.evaluation_batches(examples, loaded.runtime, loaded.statistics, len(images))
    outputs = outputs_of(loaded.model, batches, loaded.runtime)
    if not (classes := loaded.content["data"]["classes"]):
        return outputs.tolist()
    best = outputs.softmax(dim=1).topk(count // 2)
    pairs = (zip(*row, strict=True) for row in zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return [[cell for index, probability in row for cell in (classes[index], probability)] for row in pairs]


def _write(path: Path, rows: list[dict[str, Any]], header: list[str]) -> None:
    """Write the table, whole or not at all; a text that a spreadsheet would take for a formula is preceded by '."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, header)
    writer.writeheader()
    for row in rows:
        texts = {key: f"'{cell}" for key, cell in row.items() if isinstance(cell, str) and cell.startswith(FORMULA)}
        writer.writerow(row | texts)
    content = text.getvalue().encode(errors="backslashreplace")
    try:
        if path.is_symlink() or (path.exists() and not path.is_file()):  # not to be replaced, such as /dev/stdout
            path.write_bytes(content)
        else:
            atomic_write(path, content)
    except (OSError, OutputError, ValueError) as error:  # ValueError for a NUL byte in the name
        raise OutputError(f"output={error if isinstance(error, OutputError) else f'{path}: {error}'}") from error


def _show(rows: list[dict[str, Any]], columns: list[str]) -> None:
    size, form = (2, ".4f") if columns[0] == "class_1" else (1, ".6g")
    groups = [columns[first : first + size] for first in range(0, len(columns), size)]
    table = Table("image", *(f"{number}." for number in range(1, len(groups) + 1)))
    for row in rows[:SHOWN_ROWS]:
        parts = ([cell if isinstance(cell, str) else format(cell, form) for cell in map(row.get, it)] for it in groups)
        cells = [f"damaged: {row['error']}"] if row["error"] else map(" ".join, parts)
        table.add_row(*map(printable, (row["file"], *cells)))
    console.show_table(table)
    if len(rows) > SHOWN_ROWS:
        log.info("… and %d more in the file", len(rows) - SHOWN_ROWS)
