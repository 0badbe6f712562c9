"""A job that dies, whatever it dies of, is a row with its reason; the others finish and nothing is left running."""

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dltrain.commands.jobs import JobResult
from dltrain.config.composition import compose
from dltrain.sweeps.executors import local
from dltrain.sweeps.executors.worker import Task
from support.command import Command
from support.faults import Child
from support.lives import Nursery
from support.sweeping import (
    MODEL,
    QUICK,
    processes_in,
    rows,
    run_alone,
    sweep_folder,
    wait_for_no_orphan,
    write_faulty,
)

# A model that meets its end in its first step: how is a key of its own.
REASONS = {
    "exit": "failed (1): its process ended with exit code 3",
    "leave": "failed (1): SystemExit: 4",
    "raise": "failed (1): RuntimeError: it was asked for",
    "kill": "failed (137): killed by SIGKILL (out of memory?)",
    "abort": "failed (134): killed by SIGABRT",
    "segv": "failed (139): killed by SIGSEGV",
    "hang": "failed (124): timed out after 5 (sweep.job_timeout)",
    "spin": "failed (124): timed out after 5 (sweep.job_timeout)",
    "children": "failed (137): killed by SIGKILL (out of memory?)",
}


def statuses(found: list[dict[str, str]]) -> list[str]:
    """Return the status of each job, without the line of the model that failed."""
    return [re.sub(r" \(\S*faulty_nets\.py:\d+: .*\)$", "", row["status"]) for row in found]


@pytest.fixture(autouse=True)
def _faulty(tmp_path: Path) -> None:
    write_faulty(tmp_path)


def test_jobs_that_die_in_several_ways_are_rows_and_the_others_finish(dltrain: Command, tmp_path: Path) -> None:
    ways = ["exit", "none", "children", "leave", "none"]
    how = ",".join(f"{way}-{place}" for place, way in enumerate(ways))
    result = dltrain("train", "-m", *MODEL, f"+model.how={how}", "sweep.workers=2", "device.threads=1")
    assert result.code == 1
    assert statuses(rows(sweep_folder(result))) == [REASONS.get(way, "done") for way in ways]
    assert processes_in(tmp_path) == []


def test_a_job_that_hangs_is_killed_and_a_row(dltrain: Command) -> None:
    result = dltrain("train", "-m", *MODEL, "+model.how=hang", "sweep.job_timeout=0.5", "device.threads=1")
    assert statuses(rows(sweep_folder(result))) == [REASONS["hang"].replace("after 5", "after 0.5")]


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3])
def test_twenty_jobs_with_nine_kinds_of_failures_all_become_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.chdir(tmp_path)
    ways = [*REASONS, *["none"] * 11]
    order = [f"{ways[7 * place % 20]}-{place}" for place in range(20)]
    overrides = [f"+model.how={','.join(order)}", "sweep.job_timeout=5", f"sweep.workers={count}", "device.threads=1"]
    process = run_alone("train", "-m", *MODEL, *overrides)
    assert process.returncode == 1, process.stderr
    (table,) = tmp_path.glob("outputs/sweeps/*/*/results.csv")
    found = rows(table.parent)
    assert [row["job"] for row in found] == [str(number) for number in range(20)]
    expected = [REASONS.get(way.partition("-")[0], "done") for way in order]
    assert statuses(found) == expected
    assert all(float(row["seconds"]) > 0 and (table.parent / row["folder"]).is_dir() for row in found)
    assert all(reason in process.stdout for reason in REASONS.values())
    assert processes_in(tmp_path) == []


@pytest.mark.parametrize("way", ["kill", "raise"])
def test_a_job_that_fails_once_is_retried(dltrain: Command, tmp_path: Path, way: str) -> None:
    mark = tmp_path / "mark"
    overrides = [f"+model.how={way},none", f"+model.mark={mark}", "device.threads=1"]
    result = dltrain("train", "-m", *MODEL, *overrides, "sweep.retries=1", "sweep.workers=1")
    assert (result.code, statuses(rows(sweep_folder(result)))) == (0, ["done", "done"])
    assert "trying again" in result.out


def test_a_job_is_not_retried_more_often_than_requested(dltrain: Command) -> None:
    result = dltrain("train", "-m", *MODEL, "+model.how=raise-1,none", "sweep.retries=2", "device.threads=1")
    assert result.code == 1
    assert result.out.count("trying again") == 2


def test_the_number_of_threads_may_be_an_interpolation(dltrain: Command) -> None:
    assert dltrain("train", "-m", *QUICK, "seed=1,2", "keep=1", "device.threads=${keep}").code == 0


@pytest.mark.slow
def test_earlier_starts_of_a_sweep_do_not_count_as_retries(dltrain: Command, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    overrides = ["+model.how=raise", f"+model.mark={mark}", "seed=1", "device.threads=1"]
    folder = sweep_folder(dltrain("train", "-m", *MODEL, *overrides))
    mark.unlink()
    again = ["sweep.retry_failed=true", "sweep.retries=1", "trust=[faulty_nets]"]
    result = dltrain("train", f"sweep.resume={folder}", *again)
    assert (result.code, [row["status"] for row in rows(folder)]) == (0, ["done"]), result.err
    assert "trying again" in result.out


def test_stop_on_failure_starts_no_further_job(dltrain: Command) -> None:
    overrides = [
        "+model.how=raise-0,none-1,none-2",
        "sweep.stop_on_failure=true",
        "sweep.workers=1",
        "device.threads=1",
    ]
    result = dltrain("train", "-m", *MODEL, *overrides)
    assert result.code == 1
    assert statuses(rows(sweep_folder(result))) == [REASONS["raise"]]


def test_a_failure_that_stops_the_others_ends_the_sweep_with_code_1(dltrain: Command) -> None:
    overrides = ["+model.how=none,raise", "sweep.stop_on_failure=true", "sweep.workers=2", "device.threads=1"]
    result = dltrain("train", "-m", *MODEL, *overrides, "epochs=3000", "schedule=constant")
    assert (result.code, "continue with" in result.out) == (1, False)
    assert statuses(rows(sweep_folder(result))) == ["interrupted", REASONS["raise"]]


def test_the_log_of_a_job_has_its_output_and_the_traceback_of_a_crash(dltrain: Command) -> None:
    result = dltrain("train", "-m", *MODEL, "+model.how=segv,raise", "device.threads=1")
    folder = sweep_folder(result)
    crash, error = ((folder / row["folder"] / "train.log").read_text() for row in rows(folder))
    assert "Segmentation fault" in crash
    assert "faulty_nets.py" in crash
    assert "RuntimeError: it was asked for" in error
    assert "Traceback" not in result.out + result.err


@pytest.mark.slow
def test_a_first_ctrl_c_saves_all_jobs_and_a_resume_gives_the_same_result(tmp_path: Path) -> None:
    arguments = ["-m", "model=mlp", "data.limit=200", "epochs=120", "seed=1,2,3", "device.threads=1", "sweep.workers=2"]
    command = [sys.executable, "-m", "dltrain", "train", *arguments]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True)
    while sum(path.stat().st_size > 0 for path in tmp_path.glob("outputs/sweeps/*/*/*/metrics.jsonl")) < 2:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: all of the group
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    (folder,) = tmp_path.glob("outputs/sweeps/*/*")
    assert [row["status"] for row in rows(folder)] == ["interrupted", "interrupted"]
    assert f"continue with dltrain train sweep.resume={folder.relative_to(tmp_path)}" in out
    assert processes_in(tmp_path) == []
    resumed = subprocess.run(
        [sys.executable, "-m", "dltrain", "train", "sweep.resume=last", "sweep.workers=2"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert resumed.returncode == 0, resumed.stderr
    found = rows(folder)
    assert statuses(found) == ["done"] * 3
    assert "resumed at step" in (folder / found[0]["folder"] / "train.log").read_text()


def test_workers_die_with_their_parent(lives: Nursery, tmp_path: Path) -> None:
    arguments = ["-m", *MODEL, "+model.how=hang-1,family-2,spin-3", "device.threads=1", "sweep.workers=3"]
    process = lives.start(tmp_path, "train", *arguments)
    while len(list(tmp_path.glob("outputs/sweeps/*/*/*/metrics.jsonl"))) < 3:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    lives.wait(process)
    deadline = time.monotonic() + 60
    while (left := processes_in(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left == []


def test_each_worker_sees_one_gpu(dltrain: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "gpu_names", lambda: ["5", "GPU-7"])
    result = dltrain("train", "-m", *MODEL, "+model.how=gpu-1,gpu-2,gpu-3,gpu-4", "device.threads=1", "epochs=20")
    folder = sweep_folder(result)
    logs = [(folder / row["folder"] / "train.log").read_text() for row in rows(folder)]
    seen = [set(re.findall("GPU (.*)", log)) for log in logs]
    assert all(len(names) == 1 for names in seen)
    assert set.union(*seen) == {"5", "GPU-7"}
    # The parent imports the model without letting it start CUDA; workers ask the driver itself.
    assert {told for log in logs for told in re.findall("CHECK (.*)", log)} == {"1 None"}
    assert "PYTORCH_NVML_BASED_CUDA_CHECK" not in os.environ


def test_without_a_gpu_none_is_listed_and_the_parent_can_still_fork() -> None:
    import torch

    assert local.gpu_names() == [str(number) for number in range(torch.cuda.device_count())]
    assert local.can_fork()


@pytest.mark.parametrize(
    ("environment", "hip", "count", "names"),
    [
        ({}, None, 2, ["0", "1"]),
        ({"CUDA_VISIBLE_DEVICES": "0, 1"}, None, 2, ["0", "1"]),
        ({"CUDA_VISIBLE_DEVICES": "3,-1,4"}, None, 1, ["3"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, None, 0, []),
        ({"CUDA_VISIBLE_DEVICES": "MIG-a,MIG-b"}, None, 1, ["MIG-a", "MIG-b"]),
        ({"CUDA_VISIBLE_DEVICES": "MIG-a,MIG-b"}, None, 0, []),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "HIP_VISIBLE_DEVICES": "5"}, None, 2, ["0", "1"]),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "HIP_VISIBLE_DEVICES": "2,5"}, "7.0", 2, ["2", "5"]),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, "7.0", 2, ["0", "1"]),
    ],
)
def test_gpus_are_named_as_the_environment_names_them(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], hip: str | None, count: int, names: list[str]
) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.version.hip", hip)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    assert local.gpu_names() == names


def test_the_process_that_counts_gpus_ends_after_a_killed_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def sweep() -> None:
        def device_count() -> int:
            Path("counting").touch()
            while not Path("killed").exists():
                time.sleep(0.01)
            return 0

        monkeypatch.setattr("torch.cuda.device_count", device_count)
        local.gpu_names()

    child = Child(sweep)
    deadline = time.monotonic() + 60
    while not Path("counting").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    child.kill()
    os.waitpid(child.number, 0)
    Path("killed").touch()
    wait_for_no_orphan(tmp_path, {os.getpid()})
    for reader in child.readers:
        reader.close()


@pytest.mark.slow
def test_on_a_terminal_there_is_a_live_view(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    arguments = ["-m", "model=mlp", "data.limit=200", "epochs=60", "seed=1,2", "device.threads=1", "sweep.workers=2"]
    environment = os.environ | {"COLUMNS": "150", "TERM": "xterm"}
    command = [sys.executable, "-m", "dltrain", "train", *arguments]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # which is how a terminal ends
        while part := os.read(ours, 65536):
            shown += part
    os.close(ours)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert "0 done, 0 failed, 2 running of 2" in text
    assert re.search(r"job 1 +seed=2 +\d+ s +epoch \d+\.00: (train|val) loss \d", text)
    assert "2 jobs, 0 failed, best val_accuracy first" in text


def test_a_worker_that_dies_between_two_jobs_costs_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = compose("train", ["model=mlp", "data.limit=50", "epochs=1", "device.threads=1"])
    pool = local.Workers(1, 1)
    with contextlib.closing(pool):
        for number in range(2):
            folder = tmp_path / str(number)
            folder.mkdir()
            pool.start(Task("train", number, config, [], folder, folder / "train.log"))
            outcome = None
            while outcome is None:
                outcome = next((it for _, it in pool.wait() if isinstance(it, JobResult)), None)
            assert (outcome.code, outcome.status) == (0, "done")
            (worker,) = pool.workers.values()
            os.kill(worker.process.pid, signal.SIGKILL)
            worker.process.join()
