"""Ray, and the trial of a sweep for Slurm on this machine: same folders, same table, same faults."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.command import Command
from support.sweeping import MODEL, processes_in, rows, run_alone, write_faulty

ENGINES = {
    "local": ["sweep.workers=2"],
    "ray": ["sweep.executor=ray", "sweep.workers=2", "sweep.options={num_cpus: 2}"],
    "slurm": ["sweep.executor=slurm", "sweep.workers=2", "sweep.options={cluster: local}"],
}


def table(folder: Path, name: str) -> list[dict[str, str]]:
    (found,) = folder.glob("outputs/sweeps/*/*")
    for row in rows(found):
        if row["status"] == "done":
            summary = json.loads((found / row["folder"] / "summary.json").read_text())
            assert float(row["test_loss"]) == summary["test"]["loss"], name
            assert (found / row["folder"] / "checkpoints" / "last.pt").is_file()
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows(found)]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    folder = tmp_path_factory.mktemp("reference")
    return swept(folder, "local")


def swept(folder: Path, name: str) -> list[dict[str, str]]:
    """The table of a sweep of three jobs of which the middle one is killed."""
    write_faulty(folder)
    overrides = [*MODEL, "+model.how=none-1,kill,none-2", "device=cpu", "device.threads=1", *ENGINES[name]]
    process = run_alone("train", "-m", *overrides, cwd=folder)
    assert process.returncode == 1, process.stdout + process.stderr
    assert "Traceback" not in process.stderr
    return table(folder, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ray", "slurm"])
def test_an_executor_gives_the_same_table_and_a_killed_worker_is_a_row(
    tmp_path: Path, reference: list[dict[str, str]], name: str
) -> None:
    found = swept(tmp_path, name)
    assert [row["status"].split(" ")[0] for row in found] == ["done", "failed", "done"]
    assert {"ray": "lost: its worker died", "slurm": "killed by SIGKILL"}[name] in found[1]["status"]
    assert [row for row in found if row["status"] == "done"] == [row for row in reference if row["status"] == "done"]
    assert processes_in(tmp_path) == []


@pytest.mark.slow
def test_a_hanging_job_of_an_executor_fails_like_a_local_one(tmp_path: Path) -> None:
    write_faulty(tmp_path)
    overrides = [*MODEL, "+model.how=hang", "seed=1", "device=cpu", "device.threads=1", "sweep.job_timeout=8"]
    process = run_alone("train", "-m", *overrides, *ENGINES["ray"], cwd=tmp_path)
    (folder,) = tmp_path.glob("outputs/sweeps/*/*")
    assert process.returncode == 1, process.stderr
    assert [row["status"] for row in rows(folder)] == ["failed (124): timed out after 8 (sweep.job_timeout)"]


AGES = """
import json, sys
from pathlib import Path

import dltrain
from dltrain.commands.jobs import JobResult
from dltrain.sweeps.executors.ray import Ray
from dltrain.sweeps.executors.worker import Task

executor = Ray(2, 1, 0, {"num_cpus": 1})
for number in range(2):
    folder = Path(f"job-{number}").absolute()
    folder.mkdir()
    executor.start(Task("train", number, dltrain.compose("train", sys.argv[1:]), [], folder, folder / "train.log"))
ages, ended = {0: [], 1: []}, []
while len(ended) < 2:
    for number in ages.keys() - set(ended):
        ages[number].append(max(executor.age(number), -1.0))
    for number, message in executor.wait():
        if isinstance(message, JobResult):
            assert not message.code, message
            ended.append(number)
executor.close()
first, second = ages[ended[0]], ages[ended[1]]
print(json.dumps({"first": first, "queued": second[: len(first) - 1], "second": second[len(first) :]}))
"""


@pytest.mark.slow
def test_time_in_the_queue_of_an_executor_does_not_count_as_job_time(tmp_path: Path) -> None:
    write_faulty(tmp_path)
    words = [*MODEL, "+model.how=nap", "device=cpu", "device.threads=1"]  # 3 s each, on one CPU
    command, settings = [sys.executable, "-c", AGES, *words], {"capture_output": True, "text": True, "timeout": 300}
    process = subprocess.run(command, cwd=tmp_path, check=False, **settings)
    assert process.returncode == 0, process.stdout + process.stderr
    found = json.loads(process.stdout.splitlines()[-1])
    assert {*found["queued"]} == {-1.0}
    assert max(found["first"]) > 1
    assert max(found["second"]) > 1


@pytest.mark.slow
def test_a_job_that_runs_out_of_time_on_slurm_saves_and_can_be_resumed(tmp_path: Path) -> None:
    write_faulty(tmp_path)
    mark = tmp_path / "mark"
    overrides = [*MODEL, "+model.how=usr2", f"+model.mark={mark}", "seed=1", "device=cpu", "device.threads=1"]
    process = run_alone("train", "-m", *overrides, *ENGINES["slurm"], cwd=tmp_path)
    (folder,) = tmp_path.glob("outputs/sweeps/*/*")
    assert [row["status"] for row in rows(folder)] == ["interrupted"], process.stdout + process.stderr
    resumed = run_alone("train", "sweep.resume=last", "trust=[faulty_nets]", cwd=tmp_path)
    assert [row["status"] for row in rows(folder)] == ["done"], resumed.stdout + resumed.stderr


def test_a_launcher_of_hydras_is_refused_with_the_executors_that_there_are(dltrain: Command) -> None:
    for sweep in (["-m", "seed=1,2"], []):
        result = dltrain("train", *sweep, "hydra/launcher=joblib")
        assert (result.code, "choose sweep.executor=local, ray or slurm" in result.err) == (2, True), result.err


@pytest.mark.parametrize(
    "content", ["hydra: {launcher: {n_jobs: 7}}\n", "defaults:\n  - override /hydra/launcher: joblib\n"]
)
def test_no_file_chooses_a_launcher_of_hydras(dltrain: Command, tmp_path: Path, content: str) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "gift.yaml").write_text(f"# @package _global_\n{content}")
    result = dltrain("train", "-m", "--config-dir", "mine", "experiment=gift", "seed=1,2")
    assert (result.code, "hydra" in result.err) == (2, True), result.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "code", "message"),
    [
        (["sweep.executor=ray", "sweep.options={address: '127.0.0.1:1'}"], 69, "sweep.executor=ray"),
        (["sweep.executor=ray", "sweep.options={adress: auto}"], 69, "adress"),
        (["sweep.executor=ray", "sweep.options={num_cpus: 1}", "device.threads=2"], 69, "needs 2 CPUs"),
    ],
)
def test_a_missing_executor_is_reported(tmp_path: Path, overrides: list[str], code: int, message: str) -> None:
    process = run_alone("train", "-m", "seed=1,2", *overrides, cwd=tmp_path)
    assert (process.returncode, message in process.stderr) == (code, True), process.stderr
    assert not list(tmp_path.glob("outputs/sweeps/*/*"))


def test_a_sweep_on_slurm_needs_sbatch(dltrain: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "")
    result = dltrain("train", "-m", "seed=1,2", "sweep.executor=slurm")
    assert (result.code, "there is no sbatch here" in result.err) == (69, True), result.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["ray", "search"])
def test_an_executor_that_is_not_installed_is_named_with_its_extra(
    dltrain: Command, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import importlib.util
    import sys

    module = {"ray": "ray", "search": "optuna"}[name]
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda it: None if it == module else real(it))
    monkeypatch.setitem(sys.modules, "optuna", None)
    override = "sweep.search=tpe" if name == "search" else f"sweep.executor={name}"
    result = dltrain("train", "-m", "seed=1,2", override)
    assert (result.code, f"pip install -e '.[{name}]'" in result.err) == (2, True)
