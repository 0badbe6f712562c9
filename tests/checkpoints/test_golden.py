"""A run of each checkpoint format that is still read is evaluated, resumed to its end and started from."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dltrain.checkpoints import checkpoint
from support.command import Command

FIXTURES = Path(__file__).parents[1] / "fixtures"
FORMATS = range(2, checkpoint.FORMAT + 1)


@pytest.fixture
def run(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of the run of a format: a small network on 100 digits, stopped at step 5 of 9."""
    return shutil.copytree(FIXTURES / f"format-{request.param}", tmp_path / "run")


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def test_every_format_has_its_run() -> None:
    assert sorted(path.name for path in FIXTURES.glob("format-*")) == [f"format-{number}" for number in FORMATS]


@pytest.mark.parametrize("number", FORMATS)
@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_the_run_of_a_format_is_in_that_format_and_is_read_as_the_newest(number: int, name: str) -> None:
    path = FIXTURES / f"format-{number}" / "checkpoints" / name
    assert checkpoint._read(path)["format"] == number
    assert checkpoint.load(path)["format"] == checkpoint.FORMAT


@pytest.mark.parametrize("run", FORMATS, indirect=True)
def test_a_run_of_a_format_evaluates_to_the_accuracy_of_its_summary(dltrain: Command, run: Path) -> None:
    result = dltrain("eval", f"ckpt={run}", "device=cpu")
    assert (result.code, result.err) == (0, "")
    found = json.loads((run / "checkpoints" / "eval.json").read_text())
    # Of 359 examples one or two may be on the edge on another CPU or in another torch.
    assert found["accuracy"] == pytest.approx(summary(run)["test"]["accuracy"], abs=2.5 / 359)
    assert found["loss"] == pytest.approx(summary(run)["test"]["loss"], rel=1e-4)


@pytest.mark.parametrize("run", FORMATS, indirect=True)
def test_a_run_of_a_format_resumes_to_its_end(dltrain: Command, run: Path) -> None:
    result = dltrain("train", f"resume={run}", "limit_steps=null", "device=cpu")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert (result.code, result.err) == (0, "")
    assert (summary(run)["status"], summary(run)["steps"]) == ("done", 9)
    assert sorted({record["step"] for record in records if record["split"] == "train"}) == [2, 3, 4, 6, 8, 9]
    assert [record["step"] for record in records if record["split"] == "val"] == [3, 6, 9]
    assert [record["split"] for record in records].count("test") == 1
    assert checkpoint._read(run / "checkpoints" / "last.pt")["format"] == checkpoint.FORMAT


@pytest.mark.parametrize("run", FORMATS, indirect=True)
def test_the_weights_of_a_format_can_initialize_a_run(dltrain: Command, run: Path) -> None:
    arguments = ("train", "model=mlp", "model.hidden=[2]", "model.dropout=0.1", "data.limit=100", "epochs=1")
    result = dltrain(*arguments, f"init={run}", "device=cpu")
    assert (result.code, result.err) == (0, "")
    assert "init:" not in result.out
