"""Which jobs of a sweep run again, with an executor that answers at once."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from dltrain.commands.jobs import JobResult
from dltrain.sweeps.scheduler import Scheduler


@pytest.mark.parametrize(
    ("saves", "retries", "starts"),
    [((False,), 0, 1), ((True, True, True, False), 0, 4), ((False, False, False), 2, 3), ((True, False, True), 1, 4)],
)
def test_a_stopped_job_is_submitted_again_after_it_has_saved_else_as_a_retry(
    tmp_path: Path, saves: tuple[bool, ...], retries: int, starts: int
) -> None:
    checkpoint = tmp_path / "job" / "checkpoints" / "last.pt"
    started: list[Any] = []

    def wait() -> list[tuple[int, JobResult]]:
        if len(started) <= len(saves) and saves[len(started) - 1]:
            checkpoint.parent.mkdir(exist_ok=True)
            checkpoint.write_text(str(len(started)))
        return [(0, JobResult(143, "interrupted"))]

    entry = SimpleNamespace(number=0, folder="job", outcome=None)
    settings: Any = SimpleNamespace(requeue=True, retries=retries, job_timeout=None, stop_on_failure=False)
    composed: Any = {0: SimpleNamespace(config={"resume": None}, typed=[])}
    executor = Mock(free=1, start=started.append, wait=wait)
    journal = Mock(entries={0: entry})
    scheduler = Scheduler("train", tmp_path, journal, composed, executor, settings, Mock())
    scheduler.queue.append(0)
    assert scheduler.run([]) is True
    assert len(started) == starts
    (ended,) = journal.end.call_args_list
    assert ended.args[1].status == "interrupted"
