"""Metrics and verdicts travel through files: none is lost, none counts twice, no job waits for a dead sweep."""

import json
import math
import threading
from pathlib import Path

import pytest

from dltrain.engine import Record
from dltrain.sweeps.executors import remote
from dltrain.sweeps.executors.remote import VERDICTS, JobFiles, verdicts


def line(split: str, epoch: float, loss: float | None = 0.5) -> str:
    return json.dumps({"split": split, "step": 1, "epoch": epoch, "loss": loss}) + "\n"


def new(files: JobFiles) -> list[tuple[str, float]]:
    return [(metrics.split, metrics.epoch) for metrics in files.new_metrics()]


def validated(epoch: float) -> Record:
    return Record("val", 1, epoch, {"loss": 0.5})


def test_metrics_are_yielded_once_as_they_are_written(tmp_path: Path) -> None:
    files, path = JobFiles(tmp_path), tmp_path / "metrics.jsonl"
    assert new(files) == []  # the job has not begun
    path.write_text(line("train", 0.5) + line("val", 1.0)[:20])
    assert new(files) == [("train", 0.5)]
    path.write_text(line("train", 0.5) + line("val", 1.0) + line("train", 1.5))
    assert new(files) == [("val", 1.0), ("train", 1.5)]
    assert new(files) == []


def test_a_metric_that_is_no_number_is_nan_and_no_line_stops_the_sweep(tmp_path: Path) -> None:
    broken = 'nonsense\n[]\n{}\n{"split": "val"}\n{"split": "val", "step": 1, "epoch": null}\n'
    (tmp_path / "metrics.jsonl").write_text(broken + line("val", 1.0, None))
    (metrics,) = JobFiles(tmp_path).new_metrics()
    assert metrics.values.keys() == {"step", "loss"}
    assert math.isnan(metrics.values["loss"])


@pytest.mark.parametrize("last", [3, 4, 6])
def test_the_metrics_of_a_job_that_goes_on_from_its_checkpoint_are_read_from_the_start(
    tmp_path: Path, last: int
) -> None:
    files, path = JobFiles(tmp_path), tmp_path / "metrics.jsonl"
    path.write_text("".join(line("val", epoch) for epoch in (1.0, 2.0, 3.0, 4.0)))
    assert new(files) == [("val", epoch) for epoch in (1.0, 2.0, 3.0, 4.0)]
    # It was cut back to epoch 2 and has written more, of another length.
    path.write_text("".join(line("val", float(epoch), 0.25) for epoch in range(1, last + 1)))
    assert new(files) + new(files) == [("val", float(epoch)) for epoch in range(1, last + 1)]


def test_a_job_waits_for_the_verdict_on_its_own_epoch(tmp_path: Path) -> None:
    files, watch = JobFiles(tmp_path), verdicts(tmp_path)
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(watch(validated(2.0))))
    thread.start()
    (tmp_path / "metrics.jsonl").write_text(line("val", 1.0))
    for _ in files.new_metrics():
        files.answer("")
    thread.join(0.2)
    assert thread.is_alive()  # the answer is about epoch 1
    (tmp_path / "metrics.jsonl").write_text(line("val", 1.0) + line("val", 2.0))
    for _ in files.new_metrics():
        files.answer("pruned")
    thread.join(60)
    assert answers == ["pruned"]


def test_a_verdict_holds_for_a_job_that_is_tried_again_at_the_same_epoch(tmp_path: Path) -> None:
    (tmp_path / VERDICTS).write_text("1.0 \n2.0 \n3.0 pruned\n4.0 \n")
    watch = verdicts(tmp_path)
    assert [watch(validated(epoch)) for epoch in (1.0, 2.0, 3.0)] == ["", "", "pruned"]


def test_a_job_goes_on_if_its_sweep_has_died_and_waits_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    naps: list[float] = []
    monkeypatch.setattr(remote, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr("time.sleep", naps.append)
    watch = verdicts(tmp_path)
    assert watch(validated(1.0)) == ""
    assert naps
    naps.clear()
    assert [watch(validated(epoch)) for epoch in (2.0, 3.0)] == ["", ""]
    assert len(naps) <= 2
