"""Ray and Slurm (through submitit's local executor): same folders, same table, same faults."""

import json
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
    assert "lost: its worker died" in found[1]["status"]
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


@pytest.mark.slow
def test_time_in_the_queue_of_an_executor_does_not_count_as_job_time(tmp_path: Path) -> None:
    write_faulty(tmp_path)
    naps = ",".join(f"nap-{job}" for job in range(8))  # 3 s each, one after another: the last one waits for 21 s
    overrides = [*MODEL, f"+model.how={naps}", "device=cpu", "device.threads=1", "sweep.job_timeout=20"]
    engine = ["sweep.executor=ray", "sweep.workers=8", "sweep.options={num_cpus: 1}"]
    process = run_alone("train", "-m", *overrides, *engine, cwd=tmp_path)
    assert process.returncode == 0, process.stdout + process.stderr


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
        (["sweep.executor=slurm"], 69, "there is no sbatch here"),
        (["sweep.executor=slurm", "sweep.options={cluster: local, nodez: 3}"], 2, "nodez"),
        (["sweep.executor=ray", "sweep.options={address: '127.0.0.1:1'}"], 69, "sweep.executor=ray"),
        (["sweep.executor=ray", "sweep.options={adress: auto}"], 69, "adress"),
        (["sweep.executor=ray", "sweep.options={num_cpus: 1}", "device.threads=2"], 69, "needs 2 CPUs"),
        (["sweep.executor=slurm", "sweep.options={cluster: local, timeout_min: 0.2}"], 2, "timeout_min"),
    ],
)
def test_a_missing_executor_is_reported(tmp_path: Path, overrides: list[str], code: int, message: str) -> None:
    process = run_alone("train", "-m", "seed=1,2", *overrides, cwd=tmp_path)
    assert (process.returncode, message in process.stderr) == (code, True), process.stderr
    assert not list(tmp_path.glob("outputs/sweeps/*/*"))


@pytest.mark.parametrize("name", ["ray", "slurm", "search"])
def test_an_executor_that_is_not_installed_is_named_with_its_extra(
    dltrain: Command, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import importlib.util
    import sys

    module = {"ray": "ray", "slurm": "submitit", "search": "optuna"}[name]
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda it: None if it == module else real(it))
    monkeypatch.setitem(sys.modules, "optuna", None)
    override = "sweep.search=tpe" if name == "search" else f"sweep.executor={name}"
    result = dltrain("train", "-m", "seed=1,2", override)
    assert (result.code, f"pip install '.[{name}]'" in result.err) == (2, True)
