"""`train --json`: standard output is JSON and nothing else, whatever becomes of the run."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dltrain.report import run_files
from dltrain.training import run_dir
from support.command import Command

QUICK = ("model=linear", "epochs=2", "data.limit=40", "limit_steps=2", "report=false", "logger=none")


def test_the_document_of_a_run_is_its_summary_and_its_folder(dltrain: Command) -> None:
    result = dltrain("train", "--json", *QUICK)
    document = json.loads(result.out)
    folder = Path(document.pop("folder"))
    assert (result.code, document) == (0, json.loads((folder / "summary.json").read_text()))
    assert f"folder  {folder}" in result.err


def test_lines_are_the_records_of_the_run_and_then_its_summary(dltrain: Command) -> None:
    result = dltrain("train", *QUICK, "--json=lines")
    *records, last = map(json.loads, result.out.splitlines())
    folder = Path(last.pop("folder"))
    assert records == [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["split"] for record in records][-1] == "test"
    assert last == {"event": "summary"} | json.loads((folder / "summary.json").read_text())


def test_a_line_is_written_when_its_record_is(dltrain: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    write = run_dir.RunDir.write

    def noted(self: run_dir.RunDir, record: Any) -> None:
        write(self, record)
        flushed.append(Path("out").read_text().count("\n"))

    monkeypatch.setattr(run_dir.RunDir, "write", noted)
    with open("out", "w") as out:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", out)
        dltrain("train", *QUICK, "--json=lines")
    assert flushed == list(range(1, len(flushed) + 1))


def test_numbers_that_json_lacks_are_null() -> None:
    assert run_files.as_json({"a": float("nan"), "b": [float("inf")]}, indent=None) == '{"a": null, "b": [null]}'


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--json", "optim.lrr=1"], 2, "optim.lrr"),
        (["--json=lines", "-m", "seed=1,2"], 2, "--json: a sweep prints no document"),
        (["--json", "-m", "seed=1,2"], 2, "--json: a sweep prints no document"),
        (["--json=lines", "--summary"], 2, "--json"),
        (["--json=yaml"], 2, "--json"),
    ],
    ids=str,
)
def test_a_mistake_prints_nothing_on_standard_output(
    dltrain: Command, arguments: list[str], code: int, message: str
) -> None:
    result = dltrain("train", *arguments, *QUICK)
    assert (result.code, result.out) == (code, "")
    assert message in result.err


@pytest.mark.parametrize("flag", ["--json", "--json=lines"])
def test_an_interrupted_run_prints_its_summary(dltrain: Command, monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    write = run_dir.RunDir.write

    def interrupted(self: run_dir.RunDir, record: Any) -> None:
        write(self, record)
        if record.split == "train":  # once: a second one does not wait for the save
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(run_dir.RunDir, "write", interrupted)
    result = dltrain("train", flag, *QUICK)
    document = json.loads(result.out if flag == "--json" else result.out.splitlines()[-1])
    assert (result.code, document["status"]) == (130, "interrupted")
    assert json.loads(Path(document["folder"], "summary.json").read_text())["status"] == "interrupted"


def test_a_run_that_is_interrupted_before_it_starts_prints_its_status(
    dltrain: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dltrain.training.run.prepare", lambda *_: signal.raise_signal(signal.SIGINT))
    result = dltrain("train", "--json", *QUICK)
    assert (result.code, json.loads(result.out)) == (130, {"status": "interrupted"})


@pytest.mark.slow
def test_of_several_processes_only_the_first_prints(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "dltrain"]
    words = [*QUICK, "device=cpu", "device.threads=1", "--json=lines"]
    done = subprocess.run(
        [*launcher, "train", *words], cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=True
    )
    *records, last = map(json.loads, done.stdout.splitlines())
    assert last["event"] == "summary" and len({json.dumps(record) for record in records}) == len(records)
    assert done.stderr.count("folder  ") == 1
