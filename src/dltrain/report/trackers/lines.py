"""What trackers have in common: the lines of metrics.jsonl and the config as they show them. Imports no torch."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from dltrain.config.dotted import leaves
from dltrain.runtime.errors import printable

Line = dict[str, Any]

PLACE = ("split", "step", "epoch")
SPLITS = ("train", "val", "test")
NAME = re.compile(r"[^\W\d][\w.-]{0,99}")
UNSHOWN = ("logger", "sweep", "resume", "trust")  # keys of a config that do not affect a metric


class Tracker(Protocol):
    """Receives every line of metrics.jsonl, in a resumed run first the earlier ones."""

    def write(self, line: Line) -> None: ...

    def saved(self) -> None:
        """Called when a checkpoint covers all lines written so far: they will not be computed again."""

    def finish(self, summary: dict[str, Any], mistakes: list[tuple[Any, str]]) -> None:
        """Called at the end of the run; `mistakes` are images, uint8 (C, H, W), each with its title."""

    def close(self) -> None: ...


def read(path: Path) -> Iterator[Line]:
    """Yield the lines of a metrics.jsonl. Raises ValueError for one that no run writes: the file may be untrusted."""
    with path.open(encoding="utf-8") as file:
        for number, text in enumerate(file, start=1):
            line = json.loads(text)
            if not (isinstance(line, dict) and line.get("split") in SPLITS and type(line.get("step")) is int):
                raise ValueError(f"line {number} of {path.name} is not a record")
            for key, value in line.items():
                if not NAME.fullmatch(key) or (key != "split" and type(value) not in (int, float, type(None))):
                    raise ValueError(f"line {number} of {path.name} is not a record")
            yield line


def metrics(line: Line) -> dict[str, float]:
    """Return the metrics of a line as `train/loss`; null, which stands for NaN and infinity, is left out."""
    return {f"{line['split']}/{key}": value for key, value in line.items() if key not in PLACE and value is not None}


def flat(config: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a config, as stored, by dotted key: references to the environment are not resolved."""
    values = leaves({key: value for key, value in config.items() if key not in UNSHOWN})
    return {printable(key): _shown(value) for key, value in values.items()}


def _shown(value: Any) -> Any:
    if isinstance(value, bool | int | float):
        return value
    return "null" if value is None else printable(str(value))
