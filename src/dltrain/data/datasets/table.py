"""Your own images listed in a table: a column of paths, one or several of labels, and perhaps one of splits."""

import csv
import json
import logging
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval, Len

from dltrain.data.datasets.folder import SPLITS
from dltrain.data.image_reader import read_images
from dltrain.data.splits import Examples, fixed_part
from dltrain.runtime.errors import InputError, first_line
from dltrain.runtime.folders import expand_user

log = logging.getLogger(__name__)


def table(
    split: str,
    *,
    file: str,
    root: str | None,
    path: str | None,
    label: str | Annotated[list[str], Len(1, 1000)] | None,
    split_column: str | None,
    numbers: bool,
    size: Annotated[list[Annotated[int, Interval(ge=1, le=8192)]], Len(2, 2)],
    channels: Literal[1, 3],
    fit: Literal["resize", "crop"],
    range: Annotated[list[float], Len(2, 2)] | None,
    memory: bool | None,
) -> Examples | None:
    """Your own images listed with their labels in a table: CSV, TSV or JSON lines.

    Args:
        file: .csv or .tsv file whose first line names the columns, or .jsonl file; in UTF-8
        root: folder of the images, which the paths in the table are relative to; null for the folder of the table
        path: column of the paths; null to find it by its name, such as path, file or image
        label: column of the labels; null to find it by its name, such as label or class; a list for several numbers
        split_column: column of train, val or test; null to find it by its name. Without it a fixed 20 % is the test set
        numbers: true if the labels are numbers to predict, for task=regression; false if they are classes
        size: height and width that every image is resized to
        channels: 3 for colour, 1 for greyscale
        fit: `resize` may distort the image, `crop` keeps its aspect ratio and cuts off the edges
        range: numbers that become black and white in images of 16 bits, 32 bits or floats; null to find them
        memory: true to keep decoded images in memory, false to leave them in a file on disk; null: by their size
    """
    source, numbers = expand_user(file), numbers or isinstance(label, list)
    base = os.path.realpath(source.parent if root is None else expand_user(root))
    lines = _read(source)
    if not lines:
        raise InputError(f"{source}: has no rows")
    names = list(dict.fromkeys(name for _, cells in lines for name in cells if name))
    of_path = _column(names, "path", path, "path|(file|image|img)(name|path|file)?")
    of_split = _column(names, "split_column", split_column, "split|set|subset|partition")
    usual = "labels?|class(name)?|category|target"
    of_labels = [_column(names, "label", it, usual) for it in (label if isinstance(label, list) else [label])]
    columns = [of_path, of_split, *of_labels]
    rows: dict[str, tuple[str, list[Any], str]] = {}
    faults = []
    for number, cells in lines:
        try:
            row = _row(base, cells, columns, numbers=numbers)
            if rows.setdefault(row[0], row) != row:
                raise ValueError(f"{cells[of_path]} was listed with another label or split")
        except ValueError as error:
            faults.append(f"line {number}: {first_line(error)[:100]}")
    counted = "; ".join([f"{len(faults)} of {len(lines)} rows left out", *faults[:3], *["…"][: len(faults) - 3]])
    if 2 * len(faults) >= len(lines):
        advice = "Correct them, choose other columns, or set data.root to the folder of the images"
        raise InputError(f"{source}: {counted}. {advice}")
    paths, labels, parts = map(list, zip(*rows.values(), strict=True))
    targets, classes = (torch.tensor(labels), ()) if numbers else class_targets([name for (name,) in labels])
    if not of_split:
        parts = ["test" if is_test else "train" for is_test in fixed_part(targets, "test").tolist()]
    if split == "train":
        used = f"path {of_path}, split {of_split or 'none'}, label {', '.join(columns[2:])}; {len(classes)} classes"
        log.log(logging.WARNING if faults else logging.INFO, "%s: columns %s; %s", source.name, used, counted)
    if not (chosen := [index for index, part in enumerate(parts) if part == split]):
        return None
    train = [path for path, part in zip(paths, parts, strict=True) if part == "train" != split]
    decoded = read_images(Path(base), [paths[i] for i in chosen], split, train, size, channels, fit, range, memory)
    kept = [index for place, index in enumerate(chosen) if place not in decoded.left_out]
    return Examples(decoded.images, targets[kept], classes, decoded.levels)


def _read(source: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return the number of each row's line with its cells by column."""
    rows: list[tuple[int, dict[str, Any]]] = []
    if not source.is_file():
        raise InputError(f"data.file={source}: {'is a folder, not a table' if source.is_dir() else 'no such file'}")
    try:
        text = source.read_text("utf-8-sig")
        if source.suffix.lower() == ".jsonl":  # numbers stay as they are written
            parsed = (json.loads(line.strip() or "{}", parse_int=str, parse_float=str) for line in text.split("\n"))
            filled = ({name: str(cell) for name, cell in cells.items() if cell is not None} for cells in parsed)
            rows.extend((number, cells) for number, cells in enumerate(filled, 1) if cells)
        else:
            delimiter = "\t" if source.suffix.lower() == ".tsv" else max(",;\t", key=text.partition("\n")[0].count)
            reader = csv.DictReader(text.split("\n"), delimiter=delimiter, skipinitialspace=True, strict=True)
            rows.extend((reader.line_num, cells) for cells in reader)
    except (OSError, ValueError, AttributeError, RecursionError, csv.Error) as error:
        why = f"cannot be read after line {rows[-1][0] if rows else 0} ({first_line(error)})"
        raise InputError(f"{source}: {why}. Expected CSV, TSV or JSON lines in UTF-8") from error
    return rows


def _column(names: list[str], key: str, chosen: str | None, usual: str) -> str:
    """Return the chosen column, else the one with a usual name; empty if there is none of splits."""
    found = [name for name in names if re.fullmatch(usual, re.sub(r"[\W_]", "", name).lower())]
    found = [chosen] if chosen else found or [""] * (key == "split_column")
    if len(found) != 1 or found[0] not in ("", *names):
        wrong = (
            f"={chosen}: no such column; the table has" if chosen else ": set it to a column of the table's first line:"
        )
        raise InputError(f"data.{key}{wrong} {', '.join(names)[:200]}")
    return found[0]


def _row(base: str, cells: dict[str, Any], columns: list[str], *, numbers: bool) -> tuple[str, list[Any], str]:
    """Return path, labels and split of a row. Raises ValueError if it cannot be used."""
    if None in cells or None in cells.values():
        raise ValueError("another number of cells than columns")
    path, split, *labels = (cells.get(name, "").encode().decode().strip() for name in columns)  # no lone surrogates
    place = os.path.realpath(os.path.join(base, path))  # noqa: PTH118
    if os.path.commonpath([base, place]) != base or not os.path.isfile(place):  # noqa: PTH113
        raise ValueError(f"no such file in the folder of the images: {path}")
    values = [_number(label) for label in labels] if numbers else labels
    if not all(labels) or (numbers and not all(abs(value) < 3e38 for value in values)):  # the largest in float32
        raise ValueError(f"no {'finite number' if numbers else 'label'}")
    if columns[1] and split.lower() not in SPLITS:
        raise ValueError(f"{split} is no split: write train, val or test")
    return place, values, SPLITS.get(split.lower(), "train")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"{text[:40] or 'an empty cell'} is not a number") from error


def class_targets(labels: list[str]) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Return labels as indices (N,) of the sorted class names. Raises InputError for one class, or one per example."""
    classes = sorted({*labels}, key=lambda name: name.zfill(40) if name.isdecimal() else name)  # 2 before 10
    if len(classes) in (1, len(labels)):
        hint = "Choose another column; to predict numbers set data.numbers=true, or save arrays of floats"
        raise InputError(f"data: {len(classes)} classes in {len(labels)} examples, such as {classes[0][:40]}. {hint}")
    index = {name: label for label, name in enumerate(classes)}
    return torch.tensor([index[label] for label in labels]), tuple(classes)
