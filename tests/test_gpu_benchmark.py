"""benchmarks/gpu.py keeps what its parts found, whatever becomes of one of them; how it counts waits is right."""

import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
PARTS = """
import os, time

class Day:
    def __init__(self, dry, seconds, began):
        self.has_device = lambda: dry

def machine(day):
    yield "answer", 42, True
    yield "doubtful", 1, False
    yield "answer", 43, True

def waits(day):
    yield "answer", 44, True
    raise ValueError("no such thing")

def bits(day):
    yield "answer", 45, True
    os._exit(9)

def graph(day):
    time.sleep(600)

parts = lambda: {each.__name__: each for each in (machine, waits, bits, graph)}
"""


@pytest.fixture
def gpu(tmp_path: Path) -> ModuleType:
    """Return a copy of the script, whose parts are those above."""
    (tmp_path / "benchmarks").mkdir()
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copy(ROOT / "benchmarks" / "gpu.py", tmp_path / "benchmarks")
    (tmp_path / "benchmarks" / "gpu_parts.py").write_text(PARTS)
    spec = importlib.util.spec_from_file_location("gpu", tmp_path / "benchmarks" / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.PARTS = {"waits": 60, "bits": 60, "graph": 0.02, "machine": 60}  # type: ignore[attr-defined]
    return module


def results(gpu: ModuleType, path: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, dict[str, Any]]:
    """Return the exit code and the lines that were written, by part."""
    monkeypatch.setattr(sys, "argv", ["gpu.py", "-o", str(path), *words])
    code = gpu.main()
    lines = path.read_text().splitlines() if path.exists() else []
    return code, {line["part"]: line for line in map(json.loads, lines)}


def test_a_part_that_fails_hangs_or_is_killed_costs_only_what_it_had_not_found(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = results(gpu, tmp_path / "gpu.jsonl", monkeypatch, "--dry")
    assert code == 1
    assert [line["ok"] for line in found.values()] == [False] * 4
    assert found["waits"]["figures"] == {"answer": 44}
    assert found["waits"]["error"].splitlines()[0] == "exit code 1"
    assert found["waits"]["error"].endswith("ValueError: no such thing")
    assert (found["bits"]["figures"], found["bits"]["code"]) == ({"answer": 45}, 9)
    assert found["graph"]["error"].startswith("not done after 0.2 s")
    assert found["machine"]["figures"] == {"answer": 43, "doubtful": 1}
    assert found["machine"]["failed"] == ["doubtful"]
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == list(found.values())


def test_a_part_for_which_no_time_is_left_is_not_run(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, found = results(gpu, tmp_path / "gpu.jsonl", monkeypatch, "--dry", "--part", "machine", "--seconds", "0")
    assert (code, found["machine"]) == (1, {"part": "machine", "ok": False, "error": "no time left"})


def test_without_a_gpu_the_first_part_says_so_and_no_other_is_run(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, found = results(gpu, tmp_path / "gpu.jsonl", monkeypatch)
    assert (code, list(found)) == (2, ["waits"])
    assert "no usable GPU; --dry computes on the CPU" in found["waits"]["error"]


def test_missing_packages_and_data_are_named_before_anything_runs(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed = {"torch": "2.9.1+cu130", "torchvision": "0.26.0", "numpy": "2.4.6"}

    def version(name: str) -> str:
        if name == "rich":
            raise metadata.PackageNotFoundError
        return installed.get(name, "99.0")

    monkeypatch.setattr(metadata, "version", version)
    assert results(gpu, tmp_path / "gpu.jsonl", monkeypatch) == (2, {})
    assert capsys.readouterr().err == "missing packages: pip install 'torch>=2.11' 'rich>=14'\n"
    monkeypatch.setattr(metadata, "version", lambda name: "99.0")
    monkeypatch.setenv("DLTRAIN_DATA", str(tmp_path))
    assert gpu.missing(["recipes"], dry=False).startswith("missing data: MNIST/raw/train-images-idx3-ubyte, cifar-10")
    assert gpu.missing(["recipes"], dry=True) == gpu.missing(["speed"], dry=False) == ""


def test_each_part_of_the_command_is_a_function_and_has_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script, parts = (importlib.import_module(name) for name in ("gpu", "gpu_parts"))
    assert list(script.PARTS) == list(parts.parts())
    assert script.TOTAL < 8 * 60
    assert all(f"\n{name} " in script.__doc__ for name in script.PARTS)


def test_waits_of_the_host_are_counted_where_they_are_allowed_and_end_the_steps_where_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    parts = importlib.import_module("gpu_parts")
    mode, read = ["default"], torch.Tensor.item

    def item(tensor: torch.Tensor) -> Any:
        if mode[-1] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        if mode[-1] == "warn":
            warnings.warn("called a synchronizing CUDA operation", stacklevel=2)
        return read(tensor)

    monkeypatch.setattr(torch.Tensor, "item", item)  # which on a CPU each step calls, for its loss
    monkeypatch.setattr(parts.Day, "on_waits", lambda day, name: mode.append(name))
    value, ok = parts._waits(parts.Day(True, 60), ["model=mlp", "model.hidden=[4]"], 1)
    assert (value["allowed"], list(value["where"].values()), ok) == (2, [2], True)
    assert next(iter(value["where"])).startswith("step.py:")
    figure = parts.attempt("plain", lambda: parts._waits(parts.Day(True, 60), ["model=mlp", "model.hidden=[4]"], 0))
    assert not figure.ok
    assert figure.value.startswith("RuntimeError at step.py:")
    assert mode == ["default", "warn", "default", "error", "default"]


@pytest.mark.slow
def test_a_dry_run_does_every_part_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--dry"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OUT": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert done.returncode == 0, [line for line in lines if not line["ok"]]
    assert len(lines) == 10
    assert all(line["figures"] for line in lines)
