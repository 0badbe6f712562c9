"""A sweep whose parent is killed at any moment goes on: nothing done runs again, nothing is lost or orphaned."""

import contextlib
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from dltrain.commands.jobs import JobResult
from dltrain.runtime.folders import locked
from dltrain.sweeps import sweep_file
from dltrain.sweeps.journal import Entry, Journal
from support.command import Command
from support.lives import Nursery
from support.sweeping import (
    MODEL,
    QUICK,
    events,
    generate_pictures,
    processes_in,
    rows,
    sweep_folder,
    wait_for_no_orphan,
    write_faulty,
)
from support.tiers import mostly_slow

WORDS = ("model=mlp", "model.hidden=[8]", "data.limit=200", "device.threads=1", "checkpoint_every=20")
CLOCK = ("seconds", "folder")


def table(folder: Path) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in rows(folder)]


def check_killed_sweep(lives: Nursery, tmp_path: Path, kills: int, sweep: tuple[str, ...], seed: int) -> None:
    """Kill the parent `kills` times at random moments and let it go on; it ends as one that was left alone."""
    reference, killed = tmp_path / "reference", tmp_path / "killed"
    for folder in (reference, killed):
        (folder / "sweep").mkdir(parents=True)
    arguments = ("train", "-m", *WORDS, *sweep, "sweep.workers=2", "sweep.resume=sweep")
    began = time.monotonic()
    assert lives.run(reference, *arguments) == 0
    alone = time.monotonic() - began
    draw = random.Random(seed)
    done: set[int] = set()
    met = 0
    for _ in range(50 * kills):
        if met == kills:
            break
        life = lives.start(killed, *arguments)
        time.sleep(draw.uniform(0.0, 0.3) if draw.random() < 0.3 else draw.uniform(0.3, max(0.5, alone / 4)))
        if lives.has_ended(life):
            break
        os.kill(life.pid, signal.SIGKILL)
        lives.wait(life)
        met += 1
        wait_for_no_orphan(killed, set())
        if (killed / "sweep" / "results.csv").exists():  # it can be read at any moment
            assert all(row["status"] == "done" for row in rows(killed / "sweep"))
        now_done = {
            event["job"] for event in events(killed / "sweep") if event["event"] == "ended" and not event["code"]
        }
        assert done <= now_done
        done = now_done
    assert lives.run(killed, *arguments) == 0
    assert table(killed / "sweep") == table(reference / "sweep")
    log = events(killed / "sweep")
    for number in {event["job"] for event in log}:
        own = [event["event"] for event in log if event["job"] == number]
        assert own.count("planned") == own.count("ended") == 1
        assert own[-1] == "ended"  # what was done did not begin again
    assert processes_in(killed) == []
    print(f"{met} kills")


@pytest.mark.parametrize(("kills", "seeds"), [(1, 1), pytest.param(4, 4, marks=pytest.mark.slow)])
def test_a_killed_sweep_resumes_to_the_same_table(lives: Nursery, tmp_path: Path, kills: int, seeds: int) -> None:
    check_killed_sweep(lives, tmp_path, kills, ("epochs=20", "optim.lr=0.1,0.01", f"seed=range({seeds})"), seed=0)


@pytest.mark.torture
@pytest.mark.parametrize("seed", range(5))
def test_fifty_killed_parents_lose_nothing(lives: Nursery, tmp_path: Path, seed: int) -> None:
    check_killed_sweep(lives, tmp_path, 10, ("epochs=60", "optim.lr=0.1,0.01", "seed=range(15)"), seed)


def sweep_of_two(dltrain: Command, *overrides: str) -> Path:
    return sweep_folder(dltrain("train", "-m", *QUICK, "device.threads=1", "seed=1,2", *overrides))


def test_a_finished_sweep_runs_nothing_again(dltrain: Command) -> None:
    folder = sweep_of_two(dltrain)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.pt")}
    result = dltrain("train", "sweep.resume=last")
    assert result.code == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.pt")} == before
    assert f"resuming {folder}: 0 of 2 jobs left to run" in result.out


def test_new_jobs_are_appended_and_old_numbers_stay(dltrain: Command) -> None:
    folder = sweep_of_two(dltrain)
    before = table(folder)
    result = dltrain("train", "-m", *QUICK, "device.threads=1", "seed=0,2,1,3", f"sweep.resume={folder}")
    found = table(folder)
    assert result.code == 0
    assert found[:2] == before
    assert [row["overrides"].split()[-1] for row in found] == ["seed=1", "seed=2", "seed=0", "seed=3"]
    assert [row["job"] for row in found] == ["0", "1", "2", "3"]


def test_a_resumed_sweep_needs_no_overrides(dltrain: Command) -> None:
    folder = sweep_of_two(dltrain)
    (folder / "journal.jsonl").unlink()
    before = table(folder)
    assert dltrain("train", f"sweep.resume={folder}", "sweep.workers=1").code == 0
    assert table(folder) == before


def test_a_stopped_sweep_prints_the_overrides_needed_to_resume() -> None:
    request = sweep_file.Request("predict", ["--config-dir", "mine", "-m"], [])
    overrides = ["ckpt=a,b", "output=${ckpt}/x", "sweep.workers=2"]
    command = "dltrain predict --config-dir mine 'sweep.resume=a b' 'output=${ckpt}/x'"
    assert sweep_file.command_to_resume(request, Path("a b"), overrides) == command
    assert sweep_file.command_to_resume(request, Path("a b"), overrides, {"nets"}) == f"{command} 'trust=[nets]'"
    overrides.append("trust=nets")
    assert sweep_file.command_to_resume(request, Path("a b"), overrides, {"nets"}) == f"{command} trust=nets"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("resume=other", "contains resume=other, which must be typed"),
        ("+experiment@_global_=../../sent/evil", "moves an option to another node"),
    ],
)
def test_a_sweep_file_cannot_choose_a_run_to_alter_or_a_config(
    dltrain: Command, tmp_path: Path, override: str, message: str
) -> None:
    (tmp_path / "sent").mkdir()
    (tmp_path / "sent" / "sweep.json").write_text(json.dumps({"command": "train", "overrides": [*QUICK, override]}))
    result = dltrain("train", "sweep.resume=sent")
    assert (result.code in (2, 66), message in result.err) == (True, True), result.err


def test_partial_files_left_by_a_kill_are_removed(dltrain: Command) -> None:
    folder = sweep_of_two(dltrain)
    leftovers = [folder / f".{name}.0123456789abcdef" for name in ("results.csv", "sweep.json", "report.html")]
    for leftover in leftovers:
        leftover.touch()
    assert dltrain("train", f"sweep.resume={folder}").code == 0
    assert not [leftover for leftover in leftovers if leftover.exists()]


def test_a_sweep_may_resume_in_an_empty_folder(dltrain: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert dltrain("train", "-m", *QUICK, "device.threads=1", "seed=1,2", "sweep.resume=empty").code == 0
    assert [row["status"] for row in rows(Path("empty"))] == ["done", "done"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["sweep.resume=nowhere"], 66, "sweep.resume=nowhere: no such folder"),
        (["sweep.resume=last"], 66, "outputs/sweeps contains no sweep"),
        (["sweep.resume=empty"], 66, "sweep.json: does not exist. Repeat the overrides of the sweep"),
        (["sweep.resume=broken"], 66, "sweep.json: cannot be read"),
        (["-m", "seed=1", "sweep.resume=torn"], 66, "journal.jsonl, line 1: cannot be read"),
        (["seed=1", "sweep.workers=2"], 2, "sweep.workers=2: only works in a sweep. Add -m"),
    ],
)
def test_a_sweep_that_cannot_be_resumed_is_refused(
    dltrain: Command, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    for name in ("empty", "broken", "torn"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / "sweep.json").write_text("[1, 2]")
    (tmp_path / "torn" / "journal.jsonl").write_text('{"event": "planned"}\n')
    result = dltrain("train", *arguments)
    assert (result.code, message in result.err) == (code, True), result.err
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".pt"]


def test_a_failed_job_is_retried_only_on_request(dltrain: Command, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    arguments = ["-m", *QUICK[:2], "epochs=1", "device.threads=1", "data=folder", "data.root=photos", "seed=1"]
    result = dltrain("train", *arguments)
    folder = sweep_folder(result)
    assert (result.code, rows(folder)[0]["status"][:11]) == (1, "failed (66)")
    assert dltrain("train", f"sweep.resume={folder}").code == 1
    generate_pictures(tmp_path / "photos")
    assert dltrain("train", f"sweep.resume={folder}").code == 1
    assert dltrain("train", f"sweep.resume={folder}", "sweep.retry_failed=true").code == 0
    assert [row["status"] for row in rows(folder)] == ["done"]


def test_a_sweep_folder_runs_user_code_only_if_trusted(dltrain: Command, tmp_path: Path) -> None:
    (tmp_path / "own_nets.py").write_text("from pathlib import Path\nPath('IMPORTED').touch()\n")
    (tmp_path / "sent").mkdir()
    overrides = ["model=custom", "model.name=own_nets:Net", "seed=1,2", "trust=[own_nets]"]
    (tmp_path / "sent" / "sweep.json").write_text(json.dumps({"command": "train", "overrides": overrides}))
    result = dltrain("train", "sweep.resume=sent")
    assert result.code == 2
    assert "this sweep wants to run own_nets:Net. If you trust that code, add trust=[own_nets]" in result.err
    assert not (tmp_path / "IMPORTED").exists()
    assert dltrain("train", "sweep.resume=sent", "trust=[own_nets]").code == 2  # it has no Net
    assert (tmp_path / "IMPORTED").exists()


IGNORED = ("hydra.callbacks.x=1", "--config-dir=mine", "sweep.executor=ray", "+sweep.options={a: 1}")


@pytest.mark.parametrize("override", mostly_slow(IGNORED, fast=IGNORED[2:3]))
def test_a_sweep_folder_cannot_set_how_it_runs(dltrain: Command, tmp_path: Path, override: str) -> None:
    (tmp_path / "sent").mkdir()
    overrides = [*QUICK, "device.threads=1", "seed=1", override]
    (tmp_path / "sent" / "sweep.json").write_text(json.dumps({"command": "train", "overrides": overrides}))
    assert dltrain("train", "sweep.resume=sent").code == 0


def send(folder: Path, overrides: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps({"command": "train", "overrides": overrides}))


@pytest.mark.parametrize("option", ["../../../{}/evil", "{}/evil", "~/evil"])
def test_a_sweep_folder_cannot_name_a_config_outside_the_config_folders(
    dltrain: Command, tmp_path: Path, option: str
) -> None:
    (tmp_path / "evil.yaml").write_text("# @package _global_\nmodel:\n  name: evil_nets:Net\ntrust: [evil_nets]\n")
    (tmp_path / "evil_nets.py").write_text("from pathlib import Path\nPath('IMPORTED').touch()\n")
    send(tmp_path / "sent", ["+experiment=" + option.format(tmp_path), "seed=1,2"])
    result = dltrain("train", "sweep.resume=sent")
    assert (result.code, "refers to a file outside the config folders" in result.err) == (66, True), result.err
    assert not (tmp_path / "IMPORTED").exists()


def test_a_config_named_by_a_sweep_folder_cannot_set_trust_or_how_it_runs(dltrain: Command, tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    experiment = tmp_path / "mine" / "experiment" / "gift.yaml"
    (tmp_path / "gift_nets.py").write_text("from pathlib import Path\nPath('IMPORTED').touch()\n")
    send(tmp_path / "sent", ["+experiment=gift", "seed=1,2"])
    experiment.write_text("# @package _global_\nmodel:\n  name: gift_nets:Net\ntrust: [gift_nets]\n")
    result = dltrain("train", "--config-dir", "mine", "sweep.resume=sent")
    assert (result.code, "this sweep wants to run gift_nets:Net" in result.err) == (2, True), result.err
    experiment.write_text("# @package _global_\nsweep:\n  executor: ray\n")
    result = dltrain("train", "--config-dir", "mine", "sweep.resume=sent")
    assert (result.code, "sweep.executor=ray: comes from a file" in result.err) == (2, True), result.err
    assert not (tmp_path / "IMPORTED").exists()


FORGED: list[object] = [
    {"event": "planned", "job": 0, "overrides": [], "digest": "x", "folder": "../elsewhere"},
    {"event": "planned", "job": 0, "overrides": [], "digest": "x", "folder": "/tmp"},
    {"event": "planned", "job": 0, "overrides": [], "digest": "x", "folder": 3},
    {"event": "planned", "job": "0", "overrides": [], "digest": "x", "folder": "x"},
    {"event": "planned", "job": 0, "overrides": [1], "digest": "x", "folder": "x"},
    {"event": "planned", "job": 0, "overrides": [], "digest": "x", "folder": "x", "params": 3},
    {"event": "ended", "job": 0, "code": 0, "status": "done", "figures": [1]},
    {"event": "ended", "job": 0, "code": 0, "status": "done", "figures": {"val_loss": "x"}},
    {"event": "ended", "job": 0, "code": "0", "status": "done"},
    {"event": "begun", "job": 7},
    [],
]


@pytest.mark.parametrize("line", mostly_slow(FORGED, fast=[FORGED[0], FORGED[7]]), ids=str)
def test_a_forged_journal_is_refused(dltrain: Command, tmp_path: Path, line: object) -> None:
    send(tmp_path / "sent", [*QUICK, "seed=1"])
    first = {"event": "planned", "job": 0, "overrides": [], "digest": "x", "folder": "0_x"}
    (tmp_path / "sent" / "journal.jsonl").write_text(f"{json.dumps(first)}\n{json.dumps(line)}\n")
    result = dltrain("train", "sweep.resume=sent")
    assert (result.code, "journal.jsonl, line 2: cannot be read" in result.err) == (66, True), result.err


def test_a_setting_of_hydras_that_is_typed_leaves_the_overrides_of_the_sweep(dltrain: Command, tmp_path: Path) -> None:
    send(tmp_path / "sent", [*QUICK, "seed=1,2"])
    result = dltrain("train", "sweep.resume=sent", "hydra.verbose=true", "sweep.dry=true")
    assert (result.code, "2 jobs" in result.out) == (0, True)


def test_a_sweep_of_another_command_is_refused(dltrain: Command, tmp_path: Path) -> None:
    send(tmp_path / "sent", [*QUICK, "seed=1,2"])
    for overrides in (["ckpt=x"], []):
        result = dltrain("eval", "sweep.resume=sent", *overrides)
        assert (result.code, "is not a sweep of dltrain eval" in result.err) == (2, True), result.err


def test_a_sweep_in_a_folder_that_another_one_uses_is_refused(dltrain: Command, tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    with locked(tmp_path / "sweep" / ".lock", wait=False):
        assert dltrain("train", "-m", *QUICK, "seed=1,2", "sweep.resume=sweep").code == 74
    assert not (tmp_path / "sweep" / "journal.jsonl").exists()


@pytest.mark.slow
def test_two_sweeps_never_use_the_same_folder(lives: Nursery, tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    write_faulty(tmp_path)
    arguments = ("train", "-m", *MODEL, "+model.how=nap-1,nap-2", "sweep.resume=sweep", "sweep.workers=1")
    first = lives.start(tmp_path, *arguments)
    while not (tmp_path / "sweep" / "journal.jsonl").exists():
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGSTOP)  # else it may be done before the second one has started
    try:
        assert lives.run(tmp_path, *arguments) == 74
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert lives.wait(first) == 0


def check_torn_journal(folder: Path, cuts: int, seed: int) -> None:
    """Cut the file of a journal anywhere: every whole line counts once, and it can be written on."""
    path = folder / "journal.jsonl"
    journal = Journal(path)
    journal.plan([Entry(number, [f"seed={number}"], str(number), f"{number}_x") for number in range(20)])
    for number in range(20):
        journal.begin(number)
        journal.end(number, JobResult(0, "done", {"val_loss": number / 7}, 1.0, "x"))
    journal.close()
    content = path.read_bytes()
    draw = random.Random(seed)
    for _ in range(cuts):
        kept = content[: draw.randrange(len(content) + 1)]
        path.write_bytes(kept)
        whole = [json.loads(line) for line in kept[: kept.rfind(b"\n") + 1].splitlines()]
        journal = Journal(path)
        assert len(journal.entries) == sum(event["event"] == "planned" for event in whole)
        ended = {event["job"] for event in whole if event["event"] == "ended"}
        assert {number for number, entry in journal.entries.items() if entry.outcome} == ended
        new = Entry(99, ["seed=99"], "99", "99_x")
        journal.plan([new])
        journal.close()
        again = Journal(path)
        assert again.entries == journal.entries
        again.close()


def test_a_null_metric_in_a_summary_is_nan_in_the_results(dltrain: Command) -> None:
    folder = sweep_of_two(dltrain)
    path = folder / rows(folder)[1]["folder"] / "summary.json"
    summary = json.loads(path.read_text())
    summary["test"]["loss"] = None  # as JSON has NaN
    path.write_text(json.dumps(summary))
    lines = (folder / "journal.jsonl").read_text().splitlines(keepends=True)
    (folder / "journal.jsonl").write_text("".join(lines[:-1]))  # killed before the outcome was noted
    for _ in range(2):
        assert dltrain("train", f"sweep.resume={folder}").code == 0
        assert rows(folder)[1]["test_loss"] == "nan"


def test_a_job_that_finished_after_it_was_recorded_as_failed_is_done(dltrain: Command) -> None:
    folder = sweep_of_two(dltrain)
    before = table(folder)
    with contextlib.closing(Journal(folder / "journal.jsonl")) as journal:
        journal.end(1, JobResult(74, "another process is writing here"))
    assert dltrain("train", f"sweep.resume={folder}").code == 0
    assert table(folder) == before


def test_an_impossible_result_never_reaches_the_journal(tmp_path: Path) -> None:
    with contextlib.closing(Journal(tmp_path / "journal.jsonl")) as journal:
        journal.plan([Entry(0, [], "a", "0_")])
        with pytest.raises(ValueError, match="an impossible result"):
            journal.end(0, JobResult(0, "done", {"test_loss": None}))  # type: ignore[dict-item]
    assert len(events(tmp_path)) == 1


def test_a_truncated_journal_keeps_every_complete_line_once(tmp_path: Path) -> None:
    check_torn_journal(tmp_path, 200, seed=0)
