"""Weights & Biases holds exactly the figures of metrics.jsonl, whatever happens to a run; nothing is asked or left."""

import contextlib
import json
import os
import signal
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dltrain import cli
from dltrain.config import saved_config
from dltrain.report.trackers import run_trackers
from dltrain.report.trackers.wandb import WandB
from dltrain.runtime.errors import ConfigError
from support.command import Command
from support.faults import forked
from support.tiers import mostly_slow

QUICK = ("train", "model=mlp", "model.hidden=[8]", "data.limit=100", "epochs=3", "batch_size=25", "device.threads=1")
OFFLINE = (*QUICK, "log_every=2", "checkpoint_every=3", "logger=wandb", "logger.wandb.mode=offline")


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WANDB_ERROR_REPORTING", "WANDB_CACHE_DIR"):  # so that they are removed after the test
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def records(path: Path) -> Iterator[Any]:
    """The records of a run-*.wandb: blocks of 32 KiB with a header before each piece of a record."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of the only file of a run in the form of the lines of metrics.jsonl."""
    (path,) = folder.glob("wandb/*run-*/run-*.wandb")
    found = []
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            assert row["_step"] == len(found)
            (split,) = {key.partition("/")[0] for key in row if "/" in key}
            row = {key.removeprefix(f"{split}/"): value for key, value in row.items() if key[0] != "_"}
            found.append({"split": split} | row)
    return found


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def killed_at(number: int) -> Any:
    def act() -> int:
        real, calls = WandB.saved, 0

        def saved(tracker: WandB) -> None:
            nonlocal calls
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            real(tracker)

        WandB.saved = saved  # type: ignore[method-assign]
        return cli.main([*OFFLINE, "tags=[a,b]", "note=why"])

    return act


@pytest.mark.parametrize("number", mostly_slow([2, 3, 5], fast=[3]))
def test_a_killed_and_resumed_run_is_in_wandb_as_in_metrics_jsonl(
    dltrain: Command, number: int, tmp_path: Path
) -> None:
    assert forked(killed_at(number)).code == -signal.SIGKILL
    (folder,) = Path("outputs").glob("*/*")
    before, hooks = (folder / "wandb_run_id").read_text(), (sys.exit, sys.excepthook)
    result = dltrain("train", f"resume={folder}")
    assert result.err == ""
    assert (result.code, "switched off" in result.out) == (0, False)
    assert len(lines(folder)) == 10
    assert rows(folder) == lines(folder)
    assert (folder / "wandb_run_id").read_text() == before
    (path,) = folder.glob("wandb/*run-*/run-*.wandb")
    (shown,) = [record.run for record in records(path) if record.WhichOneof("record_type") == "run"]
    assert (list(shown.tags), shown.notes) == (["a", "b"], "why")
    assert hooks == (sys.exit, sys.excepthook)
    assert not (tmp_path / "home").exists()


class Remote:
    """A run that W&B has `step` rows of."""

    def __init__(self, step: int) -> None:
        self.step, self.rows, self.summary, self.ended = step, list[Any](), dict[str, Any](), list[int]()

    def define_metric(self, *_: Any, **__: Any) -> None: ...

    def log(self, row: dict[str, Any], *, step: int, commit: bool) -> None:
        assert commit and step == self.step
        self.step += 1
        self.rows.append((step, row))

    def finish(self, exit_code: int) -> None:
        self.ended.append(exit_code)


def tracker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, step: int) -> tuple[WandB, Remote]:
    remote = Remote(step)
    fake = SimpleNamespace(login=lambda **_: True, init=lambda **_: remote, Settings=lambda **_: None)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return WandB(tmp_path, {}, project="p", entity=None, mode="online"), remote


def line(step: int) -> dict[str, Any]:
    return {"split": "train", "step": step, "epoch": 1.0, "loss": float(step), "accuracy": None}


def test_a_resumed_run_sends_only_the_rows_that_the_server_lacks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found, remote = tracker(monkeypatch, tmp_path, step=2)
    for step in (10, 20, 30):
        found.write(line(step))
    assert remote.rows == []  # no checkpoint covers them yet
    found.saved()
    found.write(line(40))
    best = {"split": "val", "step": 40, "epoch": 1.0, "loss": 0.5}
    found.finish({"best": best, "status": "done", "device": "cpu"}, [])
    assert remote.rows == [(n, {"train/loss": 10.0 * (n + 1), "step": 10 * (n + 1), "epoch": 1.0}) for n in (2, 3)]
    assert remote.summary == {"best/loss": 0.5, "status": "done", "device": "cpu"}
    assert remote.ended == [0]


def test_an_untrusted_run_id_is_not_used_as_a_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "wandb_run_id").write_text("../../secret")
    with pytest.raises(ValueError, match="holds no W&B run ID"):
        tracker(monkeypatch, tmp_path, step=0)


def test_without_an_api_key_nothing_is_asked_and_the_run_continues(
    dltrain: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_trackers, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(login=lambda prompt: prompt))
    result = dltrain(*QUICK, "logger=wandb")
    assert result.code == 0
    assert "logger=wandb failed and is switched off for the rest of the run: RuntimeError: no API key" in result.out


@pytest.mark.parametrize("typed", [(), ("logger",), ("logger.wandb",), ("logger.wandb.entity",)])
def test_a_team_named_by_a_checkpoint_gets_metrics_only_if_overridden(typed: tuple[str, ...]) -> None:
    values = {"logger": {"wandb": {"project": "p", "entity": "strangers", "mode": None}}}
    refused = contextlib.nullcontext() if typed else pytest.raises(ConfigError, match="WANDB_ENTITY")
    with refused:
        saved_config.require_typed_address(values, typed)


def test_a_missing_extra_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_trackers, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"logger=wandb: needs wandb; in dltrain's checkout: pip install -e '\.\[wandb\]'"
    ):
        run_trackers.require({"logger": {"wandb": {}}})
