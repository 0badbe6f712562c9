"""What a run leaves behind: metrics cut back and continued, files written whole, a log and a folder of its own."""

import contextlib
import json
import logging
import math
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
import yaml

from dltrain import __version__, folders, records
from dltrain.engine import Record
from dltrain.errors import OutputError


def record(step: int, split: str = "train", **values: float) -> Record:
    return Record(split, step, step / 3, values or {"loss": 0.5}, examples=4, seconds=1.0)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_metrics_are_a_json_line_for_each_record(tmp_path: Path) -> None:
    metrics = records.Metrics(tmp_path / "metrics.jsonl")
    metrics.write(record(1, loss=0.25, lr=0.1))
    metrics.write(record(3, "val", accuracy=1.0))
    metrics.close()
    assert lines(tmp_path / "metrics.jsonl") == [
        {"split": "train", "step": 1, "epoch": 0.333333, "loss": 0.25, "lr": 0.1},
        {"split": "val", "step": 3, "epoch": 1.0, "accuracy": 1.0},
    ]


def test_a_record_is_in_the_file_before_it_is_closed(tmp_path: Path) -> None:
    metrics = records.Metrics(tmp_path / "metrics.jsonl")
    metrics.write(record(1))
    written = lines(tmp_path / "metrics.jsonl")
    metrics.close()
    assert len(written) == 1


def test_reopened_metrics_are_cut_back_to_the_position_and_continued(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = records.Metrics(path)
    first.write(record(1))
    position = first.position
    first.write(record(2, loss=123456789.0))  # after the checkpoint: lost by a kill, computed again
    first.close()
    again = records.Metrics(path, position)
    cut = [line["step"] for line in lines(path)]
    again.write(record(2))
    again.close()
    assert cut == [1]
    assert [line["step"] for line in lines(path)] == [1, 2]


def test_metrics_of_a_new_run_begin_empty(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("left from another run\n")
    records.Metrics(path).close()
    assert path.read_text() == ""


def test_the_position_counts_bytes_from_the_start_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = records.Metrics(path)
    metrics.write(record(1))
    position = metrics.position
    metrics.close()
    again = records.Metrics(path, position)
    again.write(record(2))
    end = again.position
    again.close()
    assert (position, end) == (path.stat().st_size // 2, path.stat().st_size)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_metrics_on_a_full_disk_are_an_output_error(tmp_path: Path) -> None:
    metrics = records.Metrics(tmp_path / "metrics.jsonl")
    metrics.close()
    metrics.file = Path("/dev/full").open("wb")  # noqa: SIM115  (closed below, which fails as well)
    with pytest.raises(OutputError, match=r"/dev/full: could not be written \(No space left on device\)"):
        metrics.write(record(1))
    with contextlib.suppress(OSError):  # what could not be written may be tried once more
        metrics.close()


def test_json_is_written_whole_and_replaces_the_file_before(tmp_path: Path) -> None:
    for number in (1, 2):
        records.write_json(tmp_path / "summary.json", {"figures": {"loss": number}, "none": None})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"figures": {"loss": 2}, "none": None}
    assert files(tmp_path) == ["summary.json"]


def test_json_that_cannot_be_written_leaves_the_old_file_whole_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "summary.json"
    records.write_json(path, {"old": True})

    def half(self: Path, text: str, encoding: str) -> None:
        self.write_bytes(text[: len(text) // 2].encode())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OutputError, match=r"summary.json: could not be written \(No space left on device\)") as caught:
        records.write_json(path, {"new": True})
    assert caught.value.exit_code == 74
    assert json.loads(path.read_text()) == {"old": True}
    assert files(tmp_path) == ["summary.json"]


def test_what_is_no_json_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    records.write_json(path, {"old": True})
    with pytest.raises(TypeError):
        records.write_json(path, {"new": object()})
    assert json.loads(path.read_text()) == {"old": True}
    assert files(tmp_path) == ["summary.json"]


def test_a_missing_folder_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file or directory"):
        records.write_json(tmp_path / "gone" / "summary.json", {})


def test_the_config_is_yaml_in_its_order_with_references_kept(tmp_path: Path) -> None:
    config = {"seed": 0, "data": {"root": "${oc.env:HOME}", "name": "ž"}, "clip_norm": None, "betas": [0.9, 0.999]}
    path = tmp_path / ".hydra" / "config.yaml"
    records.write_config(path, config)
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == config
    assert list(yaml.safe_load(path.read_text(encoding="utf-8"))) == list(config)
    assert "name: ž" in path.read_text(encoding="utf-8")


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """dltrain's logger, silent on the console."""
    logger = logging.getLogger("dltrain")
    level, propagate, handlers = logger.level, logger.propagate, logger.handlers[:]
    logger.setLevel(logging.INFO)
    logger.propagate, logger.handlers[:] = False, []
    yield logger
    logger.setLevel(level)
    logger.propagate, logger.handlers[:] = propagate, handlers


def messages(path: Path) -> list[str]:
    """The lines of a log without their date, time and level."""
    return [line.split(" ", 3)[3] for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_log_has_the_lines_of_its_run_those_from_before_the_folder_too(tmp_path: Path, log: logging.Logger) -> None:
    log.info("before")
    with records.run_log() as log_to:
        log.info("early")
        log_to(tmp_path / "train.log")
        logging.getLogger("dltrain.run").info("žluťoučký %d", 5)
        assert messages(tmp_path / "train.log") == ["early", "žluťoučký 5"]  # at once, not at the end
    log.info("after")
    assert messages(tmp_path / "train.log") == ["early", "žluťoučký 5"]


def test_a_run_that_never_gets_a_folder_leaves_no_log(tmp_path: Path, log: logging.Logger) -> None:
    with records.run_log():
        log.info("early")
    assert not list(tmp_path.iterdir())


def test_two_runs_that_follow_each_other_have_their_own_lines_once(tmp_path: Path, log: logging.Logger) -> None:
    for run in ("one", "two"):
        with records.run_log() as log_to:
            log_to(tmp_path / run)
            log.info(run)
    assert (messages(tmp_path / "one"), messages(tmp_path / "two")) == (["one"], ["two"])


def test_a_resumed_run_adds_to_its_log(tmp_path: Path, log: logging.Logger) -> None:
    for line in ("first", "resumed"):
        with records.run_log() as log_to:
            log_to(tmp_path / "train.log")
            log.info(line)
    assert messages(tmp_path / "train.log") == ["first", "resumed"]


def test_the_log_is_closed_after_an_error(tmp_path: Path, log: logging.Logger) -> None:
    before = log.handlers[:]
    with pytest.raises(ZeroDivisionError), records.run_log() as log_to:
        log_to(tmp_path / "train.log")
        raise ZeroDivisionError
    assert log.handlers == before


def test_a_line_of_the_log_begins_with_its_time_and_level(tmp_path: Path, log: logging.Logger) -> None:
    with records.run_log() as log_to:
        log_to(tmp_path / "train.log")
        log.warning("careful")
    text = (tmp_path / "train.log").read_text()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} WARNING careful\n", text)


def test_the_environment_names_versions_hardware_and_code() -> None:
    found = records.environment()
    assert found["versions"]["dltrain"] == __version__
    assert found["versions"]["torch"] == torch.__version__
    assert found["hardware"]["cores"] == os.cpu_count()
    assert found["hardware"]["cpu"]
    json.dumps(found)  # it goes into summary.json


def test_outside_a_checkout_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert records.environment()["git"] is None


def test_twenty_threads_that_ask_for_one_name_get_twenty_folders(tmp_path: Path) -> None:
    barrier = Barrier(20)

    def make(_: int) -> Path:
        barrier.wait()  # all at once
        return folders.new_folder(tmp_path / "runs", "run")

    with ThreadPoolExecutor(20) as pool:
        made = list(pool.map(make, range(20)))
    assert len(set(made)) == 20
    assert {path.name for path in made} == {"run", *(f"run-{number}" for number in range(2, 21))}
    assert all(path.is_dir() for path in made)


def test_a_file_of_the_same_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    assert folders.new_folder(tmp_path, "run") == tmp_path / "run-2"
    assert (tmp_path / "run").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError) as caught:
        folders.new_folder(tmp_path / "file" / "runs", "run")
    assert (caught.value.exit_code, len(str(caught.value).splitlines())) == (74, 1)


def test_a_dated_folder_lies_below_outputs_and_carries_the_runs_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = folders.dated("sweeps", name="a/b").as_posix()
    assert re.fullmatch(r"outputs/sweeps/\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d-a_b", made)
    assert (tmp_path / made).is_dir()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("plain", "plain"),
        ("model=mlp,optim.lr=0.1", "model=mlp,optim.lr=0.1"),
        ("..", "_"),
        (".", "_"),
        ("/", "_"),
        ("", "_"),
        ("../../etc/passwd", "etc_passwd"),
        ("a/../b", "a_.._b"),
        ("nul\0byte", "nul_byte"),
        ("two\nlines", "two_lines"),
        (".hidden", "hidden"),
        ("back\\slash", "back_slash"),
        ("žluťoučký", "žluťoučký"),
        ("日本", "日本"),
        ("💥", "_"),
        ("x" * 1000, "x" * 100),
    ],
    ids=repr,
)
def test_a_safe_name_is_one_part_of_a_path_and_not_long(tmp_path: Path, text: str, name: str) -> None:
    assert folders.safe_name(text) == name
    assert folders.new_folder(tmp_path, name).parent == tmp_path


def test_no_text_leaves_the_folder(tmp_path: Path) -> None:
    parts = ["..", "/", "\0", ".", "a", "\\", "~", "\u202e", "／", "\n", "C:", "é"]
    for first in parts:
        for second in parts:
            for third in parts:
                path = tmp_path / folders.safe_name(first + second + third)
                assert path.parent == tmp_path
                assert path.resolve().parent == tmp_path.resolve()
                assert path.name not in ("", ".", "..")


def test_figures_of_any_size_survive_the_way_through_the_file(tmp_path: Path) -> None:
    values = {"tiny": 5e-324, "third": 1 / 3, "large": 1.7976931348623157e308, "pi": math.pi}
    metrics = records.Metrics(tmp_path / "metrics.jsonl")
    metrics.write(record(1, **values))
    metrics.close()
    assert lines(tmp_path / "metrics.jsonl")[0].items() >= values.items()
