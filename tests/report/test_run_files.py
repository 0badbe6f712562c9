"""What a run leaves behind: metrics cut back and continued, files written whole, a log and a folder of its own."""

import json
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from dltrain.config import composition
from dltrain.engine import Record
from dltrain.report import run_files
from dltrain.runtime import folders


def record(step: int, split: str = "train", **values: float) -> Record:
    return Record(split, step, step / 3, values or {"loss": 0.5}, examples=4, seconds=1.0)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_metrics_are_a_json_line_for_each_record(tmp_path: Path) -> None:
    metrics = run_files.Metrics(tmp_path / "metrics.jsonl")
    metrics.write(record(1, loss=0.25, lr=0.1))
    metrics.write(record(3, "val", accuracy=1.0))
    metrics.close()
    assert lines(tmp_path / "metrics.jsonl") == [
        {"split": "train", "step": 1, "epoch": 0.333333, "loss": 0.25, "lr": 0.1},
        {"split": "val", "step": 3, "epoch": 1.0, "accuracy": 1.0},
    ]


def test_a_record_is_in_the_file_before_it_is_closed(tmp_path: Path) -> None:
    metrics = run_files.Metrics(tmp_path / "metrics.jsonl")
    metrics.write(record(1))
    written = lines(tmp_path / "metrics.jsonl")
    metrics.close()
    assert len(written) == 1


def test_reopened_metrics_are_cut_back_to_the_position_and_continued(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = run_files.Metrics(path)
    first.write(record(1))
    position = first.position
    first.write(record(2, loss=123456789.0))  # after the checkpoint: lost by a kill, computed again
    first.close()
    again = run_files.Metrics(path, position)
    cut = [line["step"] for line in lines(path)]
    again.write(record(2))
    again.close()
    assert cut == [1]
    assert [line["step"] for line in lines(path)] == [1, 2]


def test_metrics_of_a_new_run_begin_empty(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("left from another run\n")
    run_files.Metrics(path).close()
    assert path.read_text() == ""


def test_the_position_counts_bytes_from_the_start_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = run_files.Metrics(path)
    metrics.write(record(1))
    position = metrics.position
    metrics.close()
    again = run_files.Metrics(path, position)
    again.write(record(2))
    end = again.position
    again.close()
    assert (position, end) == (path.stat().st_size // 2, path.stat().st_size)


def test_a_long_name_is_short_in_bytes_too() -> None:
    assert 0 < len(folders.safe_name("日" * 100).encode()) <= 100


@pytest.mark.parametrize("text", ["1e3", "1_000", ".5", "-1E-2", "nan", "0x1f", "true", "12:30", "a", "", "~", "1e"])
def test_a_text_like_a_number_is_a_text_to_hydra_too(tmp_path: Path, text: str) -> None:
    run_files.write_config(tmp_path / ".hydra" / "config.yaml", {"name": text})
    assert OmegaConf.load(tmp_path / ".hydra" / "config.yaml").name == text


TEXTS = ["a: b", "- x", "#", "x" * 300, "two words " * 30, "é 日 🙂", "a\nb\n", "\t", "\x85\ufeff", "'\"", "*x"]


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_is_read_back_as_it_was(tmp_path: Path, text: str) -> None:
    run_files.write_config(tmp_path / ".hydra" / "config.yaml", {"name": text, "tags": [text]})
    assert OmegaConf.load(tmp_path / ".hydra" / "config.yaml") == {"name": text, "tags": [text]}


def test_a_config_is_the_file_that_pyyaml_itself_writes(tmp_path: Path) -> None:
    config = composition.preview("train", ["+experiment=textbook/lenet_mnist"]).config
    run_files.write_config(tmp_path / ".hydra" / "config.yaml", config)
    written = (tmp_path / ".hydra" / "config.yaml").read_text()

    class Plain(yaml.SafeDumper):
        """The dumper in Python, which is used where libyaml is not there."""

    Plain.add_representer(str, run_files._Dumper.represent_text)
    assert written == yaml.dump(config, Dumper=Plain, sort_keys=False, allow_unicode=True)


def test_metrics_are_on_the_disk_before_a_checkpoint_unless_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr("os.fsync", synced.append)
    metrics = run_files.Metrics(tmp_path / "metrics.jsonl")
    metrics.flush()
    assert synced == []
    metrics.write(record(1))
    metrics.flush()
    assert synced == [metrics.file.fileno()]
    metrics.close()
