"""What a process imports, and when: the first step waits for nothing but torch, Hydra and the data."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dltrain.runtime.startup import spin_count

# Of the machine's; what a run of a built-in model on MNIST has no use for.
FOREIGN = ("torchvision", "sklearn", "scipy", "matplotlib", "pandas", "optuna", "ray", "mlflow", "onnx")
FOREIGN += ("wandb",)
FOREIGN += ("tensorboard", "torch._dynamo", "torch._inductor", "torch.onnx", "sympy", "triton")
AT_THE_END = ("jinja2", "PIL", "dltrain.report.analysis", "dltrain.training.finish", "dltrain.report.html.page")

# Runs command lines, one after another, and notes which of some modules there are at the first step and at each end.
NOTED = """
import functools, json, pathlib, sys
from dltrain import cli
from dltrain.commands import jobs

names, lines, noted = *map(json.loads, sys.argv[1:3]), []

def loaded():
    return [name for name in names if name in sys.modules]

@functools.cache
def import_torch():
    own()
    from dltrain import engine
    from dltrain.data import idx
    idx.SUMS = {}  # the files are generated
    def step(*arguments, **keywords):
        sums = train_step(*arguments, **keywords)
        noted.append(loaded())
        return sums
    train_step, engine.train_step = engine.train_step, step

own, jobs.import_torch = jobs.import_torch, import_torch
for line in lines:
    first = next(pathlib.Path("outputs").glob("*/*-first"), "")
    line = [word.replace("FIRST", str(first)) for word in line]
    assert cli.main(line) == 0, line
    noted.append(loaded())
print("NOTED", json.dumps(noted))
"""


def python(code: str, *arguments: str, folder: Path, **environment: str) -> str:
    """What a fresh process prints that runs `code`."""
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def noted(folder: Path, data: Path, names: tuple[str, ...], *lines: list[str]) -> list[list[str]]:
    """Which modules there are at each step and after each command line."""
    printed = python(NOTED, json.dumps(names), json.dumps(lines), folder=folder, DLTRAIN_DATA=str(data))
    found: list[list[str]] = json.loads(printed.rpartition("NOTED ")[2])
    return found


def test_no_command_on_mnist_imports_unneeded_packages(tmp_path: Path, data_root: Path) -> None:
    train = ["train", "data=mnist", "model=mlp", "epochs=1", "device.threads=1"]
    found = noted(
        tmp_path,
        data_root,
        FOREIGN,
        [*train, "optim=adam", "clip_norm=1", "device.precision=bf16", "limit_steps=2", "name=first"],
        [*train, "model=lstm", "optim=rmsprop", "accumulate=2", "limit_steps=1", "on_nonfinite=skip", "name=second"],
        ["train", "resume=FIRST", "limit_steps=3"],
        ["eval", "ckpt=FIRST"],
        ["export", "ckpt=FIRST", "format=state_dict", "output=w.pth"],
        [*train, "init=w.pth", "optim=adamw", "limit_steps=1"],
    )
    assert len(found) == 6 + 5
    assert found == [[]] * 11


@pytest.mark.slow
def test_the_report_code_is_imported_after_the_last_step(tmp_path: Path, data_root: Path) -> None:
    line = ["train", "data=mnist", "model=mlp", "epochs=1", "limit_steps=1", "device.threads=1"]
    at_the_step, at_the_end = noted(tmp_path, data_root, AT_THE_END, line)
    assert at_the_step == []
    assert at_the_end == list(AT_THE_END)


@pytest.mark.slow
def test_a_sweep_imports_before_forking_what_its_jobs_need_at_the_end() -> None:
    code = """
import sys
from dltrain.config.composition import compose
from dltrain.sweeps.executors import select
select.prepare([compose("train", ["data=cifar10"])], "train")
print({"dltrain.training.finish", "jinja2", "torchvision.datasets", "dltrain.models.lenet"} <= set(sys.modules))
"""
    assert python(code, folder=Path.cwd()) == "True\n"


# A torch that tells in which surroundings it was imported.
TOLD = "import gc, os\nprint(gc.isenabled(), os.environ.get('OMP_WAIT_POLICY'), os.environ.get('GOMP_SPINCOUNT'))\n"


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({}, f"False None {spin_count()}"),
        ({"GOMP_SPINCOUNT": "7"}, "False None 7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "False ACTIVE None"),
    ],
    ids=["nothing set", "spins", "policy"],
)
def test_waiting_openmp_threads_sleep_soon_unless_the_user_set_it(
    environment: dict[str, str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text(TOLD)
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    code = (
        "import gc, subprocess, sys\nfrom dltrain.runtime.startup import import_torch\nimport_torch()\nimport_torch()\n"
        "print(gc.isenabled(), gc.get_freeze_count() > 1000)\n"
        "sys.stdout.flush()\nsubprocess.run([sys.executable, '-c', 'import torch'])"  # a worker of a cluster
    )
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2] / "src")])
    printed = python(code, folder=tmp_path, PYTHONPATH=path, **environment)
    assert printed.splitlines() == [told, "True True", told.replace("False", "True")]


def test_waiting_threads_poll_less_often_on_cpus_with_avx_512(tmp_path: Path) -> None:
    (tmp_path / "long").write_text("processor : 0\nflags : fpu avx2 avx512f avx512dq\n")
    (tmp_path / "short").write_text("processor : 0\nflags : fpu avx2\n")
    (tmp_path / "odd").write_bytes(b"\xff\xfe")
    counts = [spin_count(tmp_path / name) for name in ("long", "short", "odd", "missing")]
    assert counts == ["2000", "4000", "4000", "4000"]


@pytest.mark.parametrize("imported", ["import torch", ""], ids=["by own code", "by dltrain"])
def test_garbage_collection_is_enabled_again_with_and_without_torch(imported: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("")
    code = f"""
import gc
from dltrain.runtime.startup import import_torch, gc_paused
with gc_paused():
    print(gc.isenabled())
print(gc.isenabled())
with gc_paused():
    {imported or "pass"}
    import_torch()
    print(gc.isenabled())
"""
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2] / "src")])
    assert python(code, folder=tmp_path, PYTHONPATH=path).split() == ["False", "True", "True"]
