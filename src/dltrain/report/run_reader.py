"""What the folder of a run says of it, as plain data; whoever wrote it, nothing of it is run."""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dltrain.config.dotted import leaves
from dltrain.runtime import atomic_files
from dltrain.runtime.errors import InputError

MOST_BYTES = 2**28  # of a file that is read whole


@dataclass(frozen=True)
class RunRecord:
    """A run as its files tell it; empty where one of them is not there."""

    folder: Path
    summary: dict[str, Any]
    records: list[dict[str, Any]]
    analysis: dict[str, Any]
    origins: dict[str, str]


def read_run(folder: Path) -> RunRecord:
    """Read what a run has written. Raises InputError with the file that cannot be read."""
    origins = {str(key): str(value) for key, value in _object(folder / ".hydra" / "origins.json").items()}
    return RunRecord(
        folder,
        _object(folder / "summary.json"),
        read_records(folder / "metrics.jsonl"),
        _object(folder / "analysis.json"),
        origins,
    )


def write_origins(
    folder: Path, config: Mapping[str, Any], origin: Callable[[str], str], typed: Collection[str] | None
) -> None:
    """Note where each value of a config comes from; in a run that is resumed only those that were `typed` now.

    Of a file its name and folder are kept, such as optim/sgd.yaml: where it lies is nobody's business.
    """
    path = folder / ".hydra" / "origins.json"
    try:
        before = _object(path) if typed is not None else {}
    except InputError:  # it is not worth a resume that fails
        before = {}
    if typed is not None and not before:
        return  # the others are not known
    keys = [key for key in leaves(config) if typed is None or any(f"{key}.".startswith(f"{it}.") for it in typed)]
    found = {key: "/".join(Path(origin(key)).parts[-2:]) for key in keys}
    told = {key: place + ("" if typed is None else ", on resume") for key, place in found.items() if place}
    if told:  # from Python nobody says
        atomic_files.atomic_write(path, json.dumps(before | told, indent=2).encode())


def read_records(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; half a line at its end, which a kill may leave, counts as none."""
    lines = (text(path) or "").splitlines()
    found = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise InputError(f"{path}: line {number} is no record") from error
        found.append(record)
    return found


def text(path: Path) -> str | None:
    """The text of a plain file, None where there is none. Raises InputError for what a run does not leave."""
    try:
        if path.is_symlink() or (path.exists() and not path.is_file()):  # a pipe would be waited for, for ever
            raise InputError(f"{path}: is no plain file")
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"{path}: is larger than what a run writes")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__})") from error


def write_analysis(folder: Path, analysis: dict[str, Any]) -> None:
    """Write analysis.json, whole or not at all. Raises OutputError."""
    atomic_files.atomic_write(folder / "analysis.json", json.dumps(analysis).encode())


def _object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(text(path) or "{}")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: is not what a run writes")
    return content
