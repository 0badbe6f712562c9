"""`dltrain doctor` says what there is to train with, and what would help."""

import json
import os
import tomllib
from pathlib import Path

import pytest
import torch

from dltrain.commands import doctor
from dltrain.runtime import system_info
from support.command import Command

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def test_the_text_has_what_the_document_has_in_eighty_columns(
    dltrain: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result, document = dltrain("doctor"), json.loads(dltrain("doctor", "--json").out)
    assert (result.code, result.err) == (0, "")
    assert max(map(len, result.out.splitlines())) <= 80
    assert list(document) == ["versions", "devices", "free", "data", "extras", "help"]
    for part in document.values():
        for name in part if isinstance(part, dict) else ():
            assert f"  {name} " in result.out
    assert document["versions"]["torch"] == torch.__version__
    assert document["devices"]["threads"] == torch.get_num_threads()


def test_unknown_arguments_are_refused(dltrain: Command) -> None:
    result = dltrain("doctor", "--yaml")
    assert (result.code, result.err) == (2, "error: doctor takes no arguments but --json. Received --yaml\n")


def test_every_extra_for_users_is_described_with_a_module_that_it_installs() -> None:
    extras = {
        name: " ".join(needed).replace("-", "_")
        for name, needed in PROJECT["optional-dependencies"].items()
        if name not in ("docs", "peers", "dev")
    }
    assert set(extras) <= set(doctor.EXTRAS)
    assert all(doctor.EXTRAS[name][0] in needed for name, needed in extras.items())


def test_an_extra_that_is_missing_has_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda module: None)
    assert "logger=mlflow: pip install -e '.[mlflow]' in dltrain's checkout" in doctor.text([])


def test_data_sets_are_found_where_they_may_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLTRAIN_DATA", str(tmp_path))
    (tmp_path / "train-images.idx3-ubyte.gz").touch()
    (tmp_path / "cifar-10-batches-bin").mkdir()
    data = doctor.examine()["data"]
    assert {name for name, place in data.items() if place} == {"root", "mnist", "cifar10"}
    assert data["cifar10"] == str(tmp_path / "cifar-10-batches-bin")


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000\n", 1e9), ("150000 100000\n", 1.5)], ids=["no quota", "a quota"]
)
def test_cores_are_those_of_the_affinity_and_of_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: float
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    monkeypatch.setattr(system_info, "CGROUPS", tmp_path)
    monkeypatch.setattr(system_info, "OWN_CGROUP", tmp_path / "own")
    (tmp_path / "job" / "step").mkdir(parents=True)
    (tmp_path / "own").write_text("0::/job/step\n")
    (tmp_path / "job" / "cpu.max").write_text(quota)
    assert system_info.usable_cores() == min(64, cores)


def test_help_names_what_would_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLTRAIN_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setattr(doctor.shutil, "which", lambda program: f"/usr/bin/{program}")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    monkeypatch.setattr(system_info, "usable_cores", lambda: 1.5)
    monkeypatch.setattr(doctor.memory, "free_memory", lambda: 2.0**20)
    examined = doctor.examine()
    assert examined["devices"]["threads"] == 1  # the most that a run takes by itself
    found = " ".join(examined["help"])
    for part in ("built without CUDA", "nowhere does not exist", "less than 1 GiB"):
        assert part in found
