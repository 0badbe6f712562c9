"""journal.jsonl of a sweep: what was planned, begun and ended, a line each; all that is needed to go on after a kill.

A line is written in one call and counts once it is whole: what a kill leaves of the last one is cut off.
"""

import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dltrain.commands.jobs import JobResult
from dltrain.runtime import atomic_files
from dltrain.runtime.errors import ConfigError, InputError


@dataclass
class Entry:
    """A job as the journal knows it."""

    number: int
    overrides: list[str]
    digest: str
    folder: str  # its name in that of the sweep
    begun: int = 0  # attempts
    outcome: JobResult | None = None  # of the last attempt, None while it runs
    params: dict[str, Any] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """Those of the last attempt; none while it runs."""
        return self.outcome.metrics if self.outcome else {}

    @property
    def failed(self) -> bool:
        return self.outcome is not None and self.outcome.failed


def _apply(entries: dict[int, Entry], event: str, job: int, **content: Any) -> None:
    if event == "planned":
        entries[job] = _checked(Entry(job, **content))
    elif event == "begun":
        entries[job].begun += 1
        entries[job].outcome = None
    else:
        entries[job].outcome = _possible(JobResult(metrics=content.pop("figures", {}), **content))


def _checked(entry: Entry) -> Entry:
    """Raise ValueError for a job that was not written by a sweep: its folder would be another's."""
    is_plain = isinstance(entry.folder, str) and Path(entry.folder).name == entry.folder
    texts = [entry.digest, *entry.overrides, *entry.params]
    if type(entry.number) is not int or not is_plain or not all(isinstance(text, str) for text in texts):
        raise ValueError("a job that cannot be")
    return entry


def _possible(outcome: JobResult) -> JobResult:
    """Raise ValueError for an outcome that no job has: its table could not be drawn."""
    numbers = (outcome.seconds, *outcome.metrics.values())
    if type(outcome.code) is not int or not all(isinstance(number, int | float) for number in numbers):
        raise ValueError("an outcome that cannot be")
    return replace(outcome, status=str(outcome.status), folder=str(outcome.folder))


def _parsed(path: Path, content: bytes) -> dict[int, Entry]:
    entries: dict[int, Entry] = {}
    for number, line in enumerate(content.splitlines(), 1):
        try:
            _apply(entries, **json.loads(line))
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise InputError(f"{path}, line {number}: cannot be read; take it out, or start a new sweep") from error
    return entries


def _whole(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]


def read(folder: Path) -> list[Entry]:
    """The jobs of a sweep, also while it runs; none where there is no journal. Raises InputError for a damaged one."""
    path = folder / "journal.jsonl"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    return list(_parsed(path, _whole(content)).values())


class Journal:
    """The jobs of a sweep by number, each change in the file before it is here. One process at a time may write."""

    def __init__(self, path: Path) -> None:
        with atomic_files.output_errors(path):
            path.touch()
            content = _whole(path.read_bytes())
            self.entries = _parsed(path, content)
            self.file = path.open("r+b", buffering=0)
            self.file.truncate(len(content))
            self.file.seek(len(content))

    def _write(self, *lines: dict[str, Any], flush: bool = True) -> None:
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        with atomic_files.output_errors(Path(self.file.name), len(content)):
            while content:
                content = content[self.file.write(content) :]
            if flush:
                os.fsync(self.file.fileno())
        for line in lines:
            _apply(self.entries, **line)

    def plan(self, entries: list[Entry]) -> None:
        """New jobs."""
        keys = ("overrides", "digest", "folder", "params")
        self._write(
            *({"event": "planned", "job": it.number} | {key: getattr(it, key) for key in keys} for it in entries)
        )

    def begin(self, number: int) -> None:
        """A job starts, or starts again. Not flushed to the disk: forgotten in a power cut it just starts once more."""
        self._write({"event": "begun", "job": number}, flush=False)

    def end(self, number: int, outcome: JobResult) -> None:
        """A job is done, has failed, or is interrupted."""
        line = {"event": "ended", "job": number} | asdict(_possible(outcome))
        line["figures"] = line.pop("metrics")  # as the files of earlier sweeps have it
        self._write(line)

    def require(self, *, drawn: bool) -> None:
        """Raise ConfigError where the jobs are those of a grid and further ones are to be drawn, or the reverse."""
        if others := [it.number for it in self.entries.values() if bool(it.params) != drawn]:
            how = "a grid" if drawn else "a search (sweep.search)"
            raise ConfigError(
                f"{self.file.name}: job {others[0]} is one of {how}. Go on with that, or start a new sweep"
            )

    def close(self) -> None:
        self.file.close()
