"""journal.jsonl: a line for each job planned, begun or ended, from which a killed sweep continues.

A line counts once it is whole: a partial last line, left by a kill, is cut off.
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
    """A job in the journal."""

    number: int
    overrides: list[str]
    digest: str
    folder: str  # its name in the folder of the sweep
    begun: int = 0  # attempts
    outcome: JobResult | None = None  # of the last attempt; None while it runs
    params: dict[str, Any] = field(default_factory=dict)
    cluster_id: str = ""  # of the last attempt, on Slurm

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the last attempt; empty while it runs."""
        return self.outcome.metrics if self.outcome else {}

    @property
    def failed(self) -> bool:
        return self.outcome is not None and self.outcome.failed


def _apply(entries: dict[int, Entry], event: str, job: int, **content: Any) -> None:
    if event == "planned":
        entries[job] = _checked(Entry(job, **content))
    elif event == "begun":
        entries[job].begun += 1
        entries[job].outcome, entries[job].cluster_id = None, ""
    elif event == "submitted":
        entries[job].cluster_id = str(content["id"])
    else:
        entries[job].outcome = _possible(JobResult(metrics=content.pop("figures", {}), **content))


def _checked(entry: Entry) -> Entry:
    """Raise ValueError for a job that no sweep has written: its folder could lie anywhere."""
    is_plain = isinstance(entry.folder, str) and Path(entry.folder).name == entry.folder
    texts = [entry.digest, *entry.overrides, *entry.params]
    if type(entry.number) is not int or not is_plain or not all(isinstance(text, str) for text in texts):
        raise ValueError("an impossible job")
    return entry


def _possible(outcome: JobResult) -> JobResult:
    """Raise ValueError for a result that no job has: no table could show it."""
    numbers = (outcome.seconds, *outcome.metrics.values())
    if type(outcome.code) is not int or not all(isinstance(number, int | float) for number in numbers):
        raise ValueError("an impossible result")
    return replace(outcome, status=str(outcome.status), folder=str(outcome.folder))


def _parsed(path: Path) -> tuple[dict[int, Entry], int]:
    """Return the jobs in a journal, and the length of its whole lines."""
    content = path.read_bytes()
    content = content[: content.rfind(b"\n") + 1]
    entries: dict[int, Entry] = {}
    for number, line in enumerate(content.splitlines(), 1):
        try:
            _apply(entries, **json.loads(line))
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise InputError(f"{path}, line {number}: cannot be read. Remove the line, or start a new sweep") from error
    return entries, len(content)


def read(folder: Path) -> list[Entry]:
    """Return the jobs of a sweep, which may be running; none if it has no journal. Raises InputError if damaged."""
    try:
        return list(_parsed(folder / "journal.jsonl")[0].values())
    except FileNotFoundError:
        return []


class Journal:
    """The jobs of a sweep by number; each change is written to the file first. Only one process may write at a time."""

    def __init__(self, path: Path) -> None:
        with atomic_files.output_errors(path):
            path.touch()
            self.entries, size = _parsed(path)
            self.file = path.open("r+b", buffering=0)
            self.file.truncate(size)
            self.file.seek(size)

    def _write(self, *lines: dict[str, Any], flush: bool = True) -> None:
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        with atomic_files.output_errors(Path(self.file.name), len(content)):
            atomic_files.write_all(self.file.fileno(), content)
            if flush:
                os.fsync(self.file.fileno())
        for line in lines:
            _apply(self.entries, **line)

    def plan(self, entries: list[Entry]) -> None:
        """Add new jobs."""
        keys = ("overrides", "digest", "folder", "params")
        lines = ({"event": "planned", "job": job.number} | {key: getattr(job, key) for key in keys} for job in entries)
        self._write(*lines)

    def begin(self, number: int) -> None:
        """Record the start of a job. Not flushed to disk: if a power cut loses the line, the job just starts again."""
        self._write({"event": "begun", "job": number}, flush=False)

    def submit(self, number: int, cluster_id: str) -> None:
        """Record the id of a job that a cluster has queued."""
        self._write({"event": "submitted", "job": number, "id": cluster_id}, flush=False)

    def end(self, number: int, outcome: JobResult) -> None:
        """Record that a job is done, has failed or was interrupted."""
        line = {"event": "ended", "job": number} | asdict(_possible(outcome))
        line["figures"] = line.pop("metrics")  # the key of earlier sweeps
        self._write(line)

    def require(self, *, drawn: bool) -> None:
        """Raise ConfigError if a search would continue the jobs of a grid, or a grid those of a search."""
        if others := [job.number for job in self.entries.values() if bool(job.params) != drawn]:
            kind = "a grid" if drawn else "a search (sweep.search)"
            advice = "Continue it that way, or start a new sweep"
            raise ConfigError(f"{self.file.name}: job {others[0]} belongs to {kind}. {advice}")

    def close(self) -> None:
        self.file.close()
