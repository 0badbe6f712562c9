"""Lines of metrics.jsonl, which is what every tracker shows; and a config as a tracker shows it. Imports no torch."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dltrain.config.dotted import leaves
from dltrain.runtime.errors import printable

Line = dict[str, Any]

PLACE = ("split", "step", "epoch")
SPLITS = ("train", "val", "test")
NAME = re.compile(r"[^\W\d][\w.-]{0,99}")
UNSHOWN = ("logger", "sweep", "resume", "trust")  # keys of a config that say nothing about a figure


def read(path: Path) -> Iterator[Line]:
    """The lines of a metrics.jsonl. Raises ValueError for one that no run writes: it may be a stranger's."""
    with path.open(encoding="utf-8") as file:
        for number, text in enumerate(file, start=1):
            line = json.loads(text)
            if not (isinstance(line, dict) and line.get("split") in SPLITS and type(line.get("step")) is int):
                raise ValueError(f"line {number} of {path.name} is no record")
            for key, value in line.items():
                if not NAME.fullmatch(key) or (key != "split" and type(value) not in (int, float, type(None))):
                    raise ValueError(f"line {number} of {path.name} is no record")
            yield line


def figures(line: Line) -> dict[str, float]:
    """Figures of a line as `train/loss`; what was NaN or infinite is null in the file, and left out here."""
    return {f"{line['split']}/{key}": value for key, value in line.items() if key not in PLACE and value is not None}


def flat(config: dict[str, Any]) -> dict[str, Any]:
    """The values of a config by dotted key, as it is stored: references to the environment are not filled in."""
    told = leaves({key: value for key, value in config.items() if key not in UNSHOWN})
    return {printable(key): it if isinstance(it, bool | int | float) else _shown(it) for key, it in told.items()}


def _shown(value: Any) -> str:
    return "null" if value is None else printable(str(value))
