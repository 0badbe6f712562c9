"""Files that a run writes: metrics.jsonl, train.log, config.yaml, summary.json."""

import contextlib
import json
import logging
import logging.handlers
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from dltrain.config.hints import is_number
from dltrain.engine import Record
from dltrain.runtime import atomic_files
from dltrain.runtime.errors import OutputError, located, sanitize_record
from dltrain.runtime.signals import as_user_error


@contextlib.contextmanager
def run_log() -> Iterator[Callable[[Path], None]]:
    """Hold the log lines of a run until its folder exists; the function it yields writes them and all later ones."""
    held = logging.handlers.MemoryHandler(capacity=sys.maxsize, flushLevel=sys.maxsize, flushOnClose=False)
    held.addFilter(sanitize_record)
    files: list[logging.FileHandler] = []

    def write_to(path: Path) -> None:
        files.append(_LogFile(path, encoding="utf-8", errors="backslashreplace"))
        files[0].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        held.setTarget(files[0])
        held.flush()
        held.capacity = 0  # from now on each line is written at once

    logger = logging.getLogger("dltrain")
    logger.setLevel(logging.DEBUG)  # details, such as the name of each file left out, are for train.log only
    logger.addHandler(held)
    try:
        yield write_to
    except Exception as error:  # to the file only: the caller prints it
        if (shown := as_user_error(error)) is not None:
            with contextlib.suppress(OutputError):
                text = located(str(shown), shown)
                held.handle(logging.LogRecord("dltrain", logging.ERROR, __file__, 0, text, None, None))
        raise
    finally:
        logger.removeHandler(held)
        for handler in (held, *files):
            handler.close()


class _LogFile(logging.FileHandler):
    """train.log; the base class would print a traceback and continue if a line cannot be written."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        reason = error.strerror if isinstance(error, OSError) else error
        raise OutputError(f"{self.baseFilename}: could not be written ({reason})") from error

    def close(self) -> None:
        with contextlib.suppress(OSError):  # a line that failed, and was reported, is still in the buffer
            super().close()


class Metrics:
    """metrics.jsonl, a line for each record; a resumed run truncates it to the position in its checkpoint."""

    def __init__(self, path: Path, position: int = 0) -> None:
        path.touch()
        self.file = path.open("r+b", buffering=0)  # a buffer would be written again on close
        self.file.truncate(min(position, path.stat().st_size))
        self.file.seek(0, os.SEEK_END)

    def write(self, record: Record) -> dict[str, Any]:
        """Append a record, unbuffered so that a kill loses none, and return the line as written."""
        values = {"split": record.split, "step": record.step, "epoch": round(record.epoch, 6), **record.values}
        line: dict[str, Any] = _without_nan(values)
        with atomic_files.output_errors(Path(self.file.name)):
            atomic_files.write_all(self.file.fileno(), (json.dumps(line, allow_nan=False) + "\n").encode())
        return line

    @property
    def position(self) -> int:
        """Bytes written so far, for the checkpoint."""
        return self.file.tell()

    def flush(self) -> None:
        """Sync the lines to disk, before a checkpoint that relies on them."""
        with atomic_files.output_errors(Path(self.file.name)):
            if self.position:
                os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file atomically."""
    atomic_files.atomic_write(path, (as_json(content) + "\n").encode())


def as_json(content: Any, indent: int | None = 2) -> str:
    """Return a tree of plain values as a JSON document, without `indent` in one line."""
    return json.dumps(_without_nan(content), indent=indent, allow_nan=False)


def _without_nan(value: Any) -> Any:
    """Return a tree of plain values with None for NaN and infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]  # by libyaml where it is there
    """Quotes texts like 1e3, which Hydra reads as a number and PyYAML does not."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="'" if is_number(text) else None)


_Dumper.add_representer(str, _Dumper.represent_text)


def write_config(path: Path, config: dict[str, Any]) -> None:
    """Write the config as YAML that Hydra can read again."""
    with atomic_files.output_errors(path):
        path.parent.mkdir(exist_ok=True)
    atomic_files.atomic_write(path, yaml.dump(config, Dumper=_Dumper, sort_keys=False, allow_unicode=True).encode())
