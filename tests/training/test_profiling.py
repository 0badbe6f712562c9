"""`profile=N` traces N steps of a run, changes none of its bits, and does nothing where it is off."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dltrain.training import profiling
from support.command import Command

QUICK = ("train", "model=mlp", "model.hidden=[8]", "data.limit=300", "epochs=2", "batch_size=25", "device.threads=1")
BARE = (*QUICK, "logger=none", "report=false")  # 22 steps


def steps(folder: Path) -> int:
    trace: dict[str, Any] = json.loads((folder / "profile.json").read_text())
    found = {event["name"] for event in trace["traceEvents"] if event.get("cat") == "user_annotation"}
    return sum(name.startswith("ProfilerStep#") for name in found)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["model"]


def test_a_profiled_run_has_the_same_bits_and_a_trace_of_as_many_steps(dltrain: Command) -> None:
    plain, result = dltrain(*BARE).folder, dltrain(*BARE, "profile=3")
    one, other = weights(plain), weights(result.folder)
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert (result.code, result.err, steps(result.folder)) == (0, "", 3)
    table = (result.folder / "profile.txt").read_text().splitlines()
    assert any(row.endswith("  aten::addmm") for row in table)
    costs = [float(row.split()[0]) for row in table[1:]]
    assert costs == sorted(costs, reverse=True)
    assert table[1] in result.out
    assert sum(float(row.split()[1].rstrip("%")) for row in table[1:]) == pytest.approx(100, abs=3)
    assert not list(plain.glob("profile.*"))


def test_a_run_that_stops_earlier_writes_what_it_has(dltrain: Command) -> None:
    assert steps(dltrain(*BARE, "profile=9", "limit_steps=8").folder) == 2
    short = dltrain(*BARE, "profile=9", "limit_steps=4")
    assert (short.code, "profile: not written, after 0 traced steps" in short.out) == (0, True)


def test_a_profile_that_cannot_be_written_does_not_stop_the_run(
    dltrain: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(profiling, "_write", fail)
    result = dltrain(*BARE, "profile=1")
    assert (result.code, "profile: not written" in result.out) == (0, True)


def test_without_profile_nothing_wraps_the_steps_and_a_resume_may_turn_it_on(
    dltrain: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = profiling.profiled
    monkeypatch.setattr(profiling, "profiled", lambda *all: calls.append(all[1]) or real(*all))  # type: ignore[func-returns-value]
    folder = dltrain(*BARE, "limit_steps=5").folder
    assert calls == []
    result = dltrain("train", f"resume={folder}", "limit_steps=null", "profile=2")
    assert (result.code, calls, steps(folder), "resume: " in result.out) == (0, [2], 2, False)
