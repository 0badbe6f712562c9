"""Reads the folder of a run as plain data; the folder may be untrusted, and no code in it is executed."""

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dltrain.config.dotted import leaves
from dltrain.config.metric_names import smaller_is_better
from dltrain.report.run_rows import Metric
from dltrain.runtime import atomic_files
from dltrain.runtime.errors import InputError

MOST_BYTES = 2**28  # of a file, as it is read into memory


@dataclass(frozen=True)
class RunRecord:
    """A run as read from its files; what belongs to a missing file is empty."""

    folder: Path
    summary: dict[str, Any]
    records: list[dict[str, Any]]
    analysis: dict[str, Any]
    origins: dict[str, str]


def read_run(folder: Path, metric: Any = None) -> RunRecord:
    """Read the files of a run, whose config has `metric`. Raises InputError with the file that cannot be read."""
    origins = {str(key): str(value) for key, value in _object(folder / ".hydra" / "origins.json").items()}
    records = read_records(folder / "metrics.jsonl")
    summary = _object(folder / "summary.json") or so_far(records, metric)
    return RunRecord(folder, summary, records, _object(folder / "analysis.json"), origins)


def so_far(records: Sequence[Mapping[str, Any]], metric: Any = None) -> dict[str, Any]:
    """Return what a summary would say of a run that has none, as it was killed or still runs."""
    validated = [record for record in records if record.get("split") == "val"]
    name = next((key for key in (metric, "accuracy") if any(key in record for record in validated)), "loss")
    best = {"best": min(validated, key=Metric(name, smaller_is_better(name)).key)} if validated else {}
    return {"status": "not done", **best, "steps": records[-1].get("step") if records else None}


def is_finite(value: Any) -> bool:
    """True for a finite number, which can be plotted and compared."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def write_origins(
    folder: Path, config: Mapping[str, Any], origin: Callable[[str], str], typed: Collection[str] | None
) -> None:
    """Write the origin of each value, as optim/sgd.yaml: its path is private. On resume only of keys `typed` now."""
    path = folder / ".hydra" / "origins.json"
    try:
        before = _object(path) if typed is not None else {}
    except InputError:  # not worth failing the resume
        before = {}
    if typed is not None and not before:
        return  # those of the other keys are unknown
    keys = [key for key in leaves(config) if typed is None or f"{key}.".startswith(tuple(f"{k}." for k in typed))]
    places = {key: "/".join(Path(origin(key)).parts[-2:]) for key in keys}
    origins = {key: place + ("" if typed is None else ", on resume") for key, place in places.items() if place}
    if origins:  # empty for a config made in Python
        atomic_files.atomic_write(path, json.dumps(before | origins, indent=2).encode())


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a metrics.jsonl; an incomplete last line, which a kill may leave, is ignored."""
    lines = (text(path) or "").splitlines()
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise InputError(f"{path}: line {number} is not a record") from error
        records.append(record)
    return records


def text(path: Path) -> str | None:
    """Return the text of a regular file, None if it is missing. Raises InputError for anything else."""
    try:
        if path.is_symlink() or (path.exists() and not path.is_file()):  # reading a pipe could block forever
            raise InputError(f"{path}: is not a regular file")
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"{path}: is larger than any file a run writes")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__})") from error


def write_analysis(folder: Path, analysis: dict[str, Any]) -> None:
    """Write analysis.json atomically. Raises OutputError."""
    atomic_files.atomic_write(folder / "analysis.json", json.dumps(analysis).encode())


def _object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(text(path) or "{}")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: has content that no run writes")
    return content
