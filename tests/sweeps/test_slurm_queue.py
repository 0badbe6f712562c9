"""What a sweep on Slurm asks for and understands, with answers of Slurm's that no small cluster gives on demand."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dltrain.commands.jobs import INTERRUPTED, JobResult
from dltrain.sweeps.executors import slurm
from dltrain.sweeps.executors.worker import JobMetrics, Task

Answer = tuple[str, str]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Answer]:
    """What Slurm's commands print, and why they fail, by name."""
    found: dict[str, Answer] = {"squeue": ("", ""), "sinfo": ("main* (null)\n", ""), "sbatch": ("7\n", "")}
    found["scancel"] = "", ""
    monkeypatch.setattr(slurm, "_call", lambda *command, text=None: found[command[0]])
    for name in ("POLL_SECONDS", "SQUEUE_SECONDS", "REQUEUE_SECONDS"):
        monkeypatch.setattr(slurm, name, 0.0)
    return found


@pytest.fixture
def executor(answers: dict[str, Answer], tmp_path: Path) -> Callable[[], slurm.Slurm]:
    return lambda: slurm.Slurm(None, 1, 0, {}, folder=tmp_path, devices={"cpu"})


def task(folder: Path, number: int) -> Task:
    return Task("train", number, {}, [], folder, folder / "train.log")


def messages(executor: slurm.Slurm) -> list[object]:
    return [message for _, message in executor.wait()]


@pytest.mark.parametrize(
    ("options", "devices", "gres", "expected"),
    [
        ({}, {"cpu"}, "gpu:2", []),
        ({}, {"auto", "cpu"}, "(null)", []),
        ({}, {"auto"}, "gpu:2", []),  # not in the default partition
        ({"partition": "big"}, {"auto"}, "gpu:2", ["--gpus-per-node=1"]),
        ({}, {"cuda"}, "(null)", ["--gpus-per-node=1"]),
        ({"gres": "gpu:a100:1"}, {"cuda"}, "gpu:2", ["--gres=gpu:a100:1"]),
    ],
)
def test_a_gpu_is_asked_for_where_one_is_needed_or_there(
    answers: dict[str, Answer], options: dict[str, str], devices: set[str], gres: str, expected: list[str]
) -> None:
    answers["sinfo"] = f"main* (null)\nbig {gres}\n", ""
    assert [each for each in slurm.arguments(options, 1, devices) if "gpu" in each] == expected


def test_options_are_those_of_sbatch_and_the_names_of_earlier_versions(answers: dict[str, Answer]) -> None:
    options = {"slurm_partition": "long", "timeout_min": 5, "requeue": False, "mail_type": "END", "setup": ["true"]}
    options |= {"exclusive": True, "account": None, "cpus_per_task": 4, "mem": 0}
    expected = {
        "--cpus-per-task=4",
        "--signal=B:USR2@90",
        "--time=5",
        "--partition=long",
        "--mail-type=END",
        "--exclusive",
        "--no-requeue",
        "--mem=0",
    }
    assert set(slurm.arguments(options, 1, {"cpu"})) == expected


def test_a_job_beyond_a_limit_of_slurms_waits_until_another_has_ended(
    answers: dict[str, Answer], executor: Callable[[], slurm.Slurm], tmp_path: Path
) -> None:
    running = executor()
    running.start(task(tmp_path, 0))
    answers["sbatch"] = "", "QOSMaxSubmitJobPerUserLimit"
    running.start(task(tmp_path, 1))
    answers["squeue"] = f"7|{running.name}0|RUNNING|None|n1\n", ""
    assert messages(running) == ["7"]
    assert running.jobs == {0: "7", 1: ""}
    answers["sbatch"] = "8\n", ""
    messages(running)
    assert running.jobs == {0: "7", 1: "8"}


def test_a_refused_job_is_not_submitted_once_the_sweep_stops(
    answers: dict[str, Answer], executor: Callable[[], slurm.Slurm], tmp_path: Path
) -> None:
    running = executor()
    answers["sbatch"] = "", "QOSMaxSubmitJobPerUserLimit"
    running.start(task(tmp_path, 0))
    answers["sbatch"] = "8\n", ""
    running.interrupt()
    assert messages(running) == [INTERRUPTED]


def test_a_job_that_slurm_refuses_while_no_other_is_queued_fails(
    answers: dict[str, Answer], executor: Callable[[], slurm.Slurm], tmp_path: Path
) -> None:
    running = executor()
    answers["sbatch"] = "", "Invalid account"
    running.start(task(tmp_path, 0))
    assert messages(running) == [JobResult(1, "Slurm refuses the job: Invalid account")]


def test_a_controller_that_does_not_answer_ends_no_job(
    answers: dict[str, Answer], executor: Callable[[], slurm.Slurm], tmp_path: Path
) -> None:
    running = executor()
    running.start(task(tmp_path, 0))
    answers["squeue"] = "", "Unable to contact slurm controller"
    assert messages(running) == ["7"]
    assert messages(running) == []
    answers["squeue"] = "", ""  # it has forgotten the job
    assert messages(running) == [JobResult(137, "lost: its worker died (Slurm: UNKNOWN, Slurm has forgotten the job)")]


def test_a_job_of_an_earlier_process_is_followed_and_not_submitted(
    answers: dict[str, Answer], executor: Callable[[], slurm.Slurm], tmp_path: Path
) -> None:
    name = executor().name
    answers["squeue"] = f"5|{name}0|PENDING|Priority|\n3|{name}1|FAILED|NonZeroExitCode|n1\n", ""
    running = executor()
    for number in (0, 1):
        running.start(task(tmp_path, number))
    assert running.jobs == {0: "5", 1: "7"}


@pytest.mark.parametrize(
    ("row", "code", "status"),
    [
        ("PENDING|BeginTime|", None, ""),
        ("PENDING|JobHeldUser|", None, ""),
        (
            "PENDING|launch failed requeued held|",
            137,
            "lost: its worker died (Slurm: CANCELLED, launch failed requeued held)",
        ),
        ("REQUEUE_HOLD|JobHoldMaxRequeue|", 137, "lost: its worker died (Slurm: CANCELLED, JobHoldMaxRequeue)"),
        ("COMPLETED|None|n1", None, ""),  # its result is on its way
        ("CANCELLED|None|", 137, "lost: its worker died (Slurm: CANCELLED, None)"),
        ("FAILED|RaisedSignal:12(User_defined_signal_2)|n1", 143, "interrupted"),
        (
            "FAILED|RaisedSignal:9(Killed)|n1",
            137,
            "lost: its worker died (Slurm: FAILED, RaisedSignal:9(Killed) on n1)",
        ),
        ("CANCELLED|None|n1", 137, "lost: its worker died (Slurm: CANCELLED, None on n1)"),
        ("NODE_FAIL|NodeDown|n1", 137, "lost: its worker died (Slurm: NODE_FAIL, NodeDown on n1)"),
    ],
)
def test_states_of_slurm_are_results_of_jobs(
    answers: dict[str, Answer],
    executor: Callable[[], slurm.Slurm],
    tmp_path: Path,
    row: str,
    code: int | None,
    status: str,
) -> None:
    running = executor()
    running.start(task(tmp_path, 0))
    answers["squeue"] = f"7|{running.name}0|{row}\n", ""
    assert [(each.code, each.status) for each in messages(running) if isinstance(each, JobResult)] == (
        [] if code is None else [(code, status)]
    )


def test_metrics_of_running_jobs_are_read_and_judged_from_their_folder(
    answers: dict[str, Answer], tmp_path: Path
) -> None:
    running = slurm.Slurm(None, 1, 0, {}, True, folder=tmp_path, devices={"cpu"})
    (folder := tmp_path / "0").mkdir()
    running.start(task(folder, 0))
    answers["squeue"] = f"7|{running.name}0|RUNNING|None|n1\n", ""
    (folder / "metrics.jsonl").write_text('{"split": "val", "step": 3, "epoch": 1.0, "loss": 0.5}\n')
    assert messages(running) == ["7", JobMetrics("val", 1.0, {"step": 3, "loss": 0.5})]
    running.answer(0, "pruned")
    assert (folder / ".verdicts").read_text() == "1.0 pruned\n"


def test_jobs_of_a_sweep_are_found_again_by_a_link_to_its_folder(answers: dict[str, Answer], tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    names = {slurm.Slurm(None, 1, 0, {}, folder=tmp_path / name, devices={"cpu"}).name for name in ("real", "link")}
    assert len(names) == 1


def test_jobs_count_as_queued_while_slurm_does_not_answer(
    answers: dict[str, Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm.shutil, "which", lambda name: name)
    answers["squeue"] = "5|dltrain-x-0|RUNNING|None|n1\n", ""
    assert slurm.still_queued(["5", "6"]) == ["5"]
    answers["squeue"] = "", "Unable to contact slurm controller"
    assert slurm.still_queued(["5", "6"]) == ["5", "6"]
