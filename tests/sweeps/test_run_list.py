"""`dltrain runs` lists the runs that meet conditions, newest first, and deletes only those that it listed."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from dltrain.runtime.folders import locked
from dltrain.sweeps import run_list
from support.command import Command

MAKE = tuple[str, str, float, str, list[str]]  # name of the folder, model, accuracy, status, tags
RUNS: tuple[MAKE, ...] = (
    ("2026-01-02/09-00-00", "mlp", 0.95, "done", ["baseline", "old"]),
    ("2026-01-02/10-00-00", "lenet", 0.99, "done", []),
    ("2026-01-10/08-00-00", "mlp", 0.98, "interrupted", []),
    ("sweeps/2026-01-11/08-00-00/0_a", "mlp", 0.9, "done", []),
    ("sweeps/2026-01-11/08-00-00/1_b", "lenet", 0.9, "done", []),
)
NAMES = ["2026-01-02/09-00-00", "2026-01-02/10-00-00", "2026-01-10/08-00-00", "08-00-00/0", "08-00-00/1"]


@pytest.fixture(autouse=True)
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three runs and a sweep of two jobs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name, model, accuracy, status, tags in RUNS:
        config = {
            "model": {"name": model},
            "data": {"name": "digits"},
            "optim": {"lr": 0.1, "name": "sgd"},
            "tags": tags,
        }
        summary = {"status": status, "test": {"split": "test", "accuracy": accuracy, "loss": 0.1}, "total_seconds": 5.0}
        (folder := Path("outputs", name)).mkdir(parents=True)
        (folder / ".hydra").mkdir()
        (folder / ".hydra/config.yaml").write_text(json.dumps(config | {"note": "first" if tags else None}))
        (folder / "summary.json").write_text(json.dumps(summary))
    sweep = Path("outputs/sweeps/2026-01-11/08-00-00")
    (sweep / "sweep.json").write_text('{"command": "train", "overrides": []}')
    job = {"event": "planned", "overrides": [], "digest": ""}
    jobs = [job | {"job": number, "folder": name} for number, name in enumerate(("0_a", "1_b"))]
    (sweep / "journal.jsonl").write_text("".join(f"{json.dumps(job)}\n" for job in jobs))
    return tmp_path


def listed(result_text: str) -> list[int]:
    """The runs of a table by their places in RUNS."""
    rows = [it for it in result_text.partition("─\n")[2].split("\n\n")[0].splitlines() if " more column" not in it]
    return [next(index for index, name in enumerate(RUNS) if is_named(row.split()[0], name[0])) for row in rows]


def is_named(label: str, folder: str) -> bool:
    return re.search(rf"(^|/){re.escape(label)}(_|$)", folder) is not None


@pytest.mark.parametrize(
    ("conditions", "expected"),
    {
        "": [4, 3, 2, 1, 0],
        "model=mlp": [3, 2, 0],
        "model=mlp accuracy>0.97": [2],
        "test_accuracy>=0.98": [2, 1],
        "accuracy<0.95": [4, 3],
        "status=done": [4, 3, 1, 0],
        "status!=done": [2],
        "tags=baseline": [0],
        "tags!=baseline": [4, 3, 2, 1],
        "note=FIRST": [0],
        "optim.lr=1e-1 data=digits seconds<=5": [4, 3, 2, 1, 0],
        "2026-01-02": [1, 0],
        "outputs/sweeps model=lenet": [4],
        "optim=sgd 'accuracy > 0.97'": [2, 1],
        "model==mlp date=2026-01-10": [2],
        "tags=null": [4, 3, 2, 1],
        "_a": [],
    }.items(),
)
def test_the_runs_that_meet_all_conditions_are_listed_newest_first(
    dltrain: Command, conditions: str, expected: list[int]
) -> None:
    result = dltrain("runs", *shlex.split(conditions))
    assert (result.code, listed(result.out) if expected else result.out) == (
        0,
        expected or "no run in outputs matches\n",
    )


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        ("modl=mlp", 2, "modl=mlp: no run has modl; did you mean model?"),
        ("--remove", 2, "--remove: no such option. usage: dltrain runs"),
        ("--delete", 2, "--delete: give a condition, such as status=interrupted"),
        ("--delete status=done", 2, "asks first, and there is no terminal. Add --yes"),
        ("--delete 08-00-00/0 --yes", 2, "1_b: does not match, and would be deleted with"),
        ("--delete outer --yes", 2, "inner: does not match, and would be deleted with"),
        ("--delete linked --yes", 2, "linked: is outside outputs, behind a link"),
        ("--delete '' --yes", 2, "--delete: give a condition"),
        ("--delete outputs --yes", 2, "--delete: give a condition"),
        ("--delete outputs/ '' --yes", 2, "--delete: give a condition"),
        ("accuracy>abc", 2, "accuracy>abc: compares numbers only; for texts there are = and !="),
        ("model>mlp", 2, "model>mlp: compares numbers only"),
        ("accuracy>=0.5<0.7", 2, "compares numbers only"),
    ],
)
def test_a_mistake_deletes_nothing(dltrain: Command, tmp_path: Path, arguments: str, code: int, error: str) -> None:
    if "outer" in arguments or "linked" in arguments:
        run = Path("outputs", RUNS[0][0])
        shutil.copytree(run, "outputs/2026-02-01/08-00-00-outer")
        shutil.copytree(run, "outputs/2026-02-01/08-00-00-outer/outputs/inner")
        shutil.copytree(run, tmp_path.parent / "elsewhere" / "linked", dirs_exist_ok=True)
        Path("outputs/2026-03-01").symlink_to(tmp_path.parent / "elsewhere")
    result = dltrain("runs", *shlex.split(arguments))
    assert (result.code, error in result.err) == (code, True), result.err
    assert all(Path("outputs", run[0], "summary.json").exists() for run in RUNS)


@pytest.mark.parametrize(("answer", "is_gone"), [("y", True), ("n", False), ("", False)])
def test_runs_are_deleted_after_asking(
    dltrain: Command, monkeypatch: pytest.MonkeyPatch, answer: str, is_gone: bool
) -> None:
    asked: list[str] = []

    def reply(question: str) -> str:
        asked.append(question)
        return answer

    monkeypatch.setattr("builtins.input", reply)
    monkeypatch.setattr(run_list.sys.stdin, "isatty", lambda: True)
    assert dltrain("runs", "--delete", "status=interrupted").code == 0
    assert asked == ["Delete 1 folder permanently? [y/N] "]
    assert Path("outputs", RUNS[2][0]).exists() != is_gone
    assert all(Path("outputs", run[0]).exists() for run in (*RUNS[:2], *RUNS[3:]))


def test_a_list_without_a_run_is_no_error(dltrain: Command) -> None:
    result = dltrain("runs", "accuracy>0.999", "--delete")
    assert (result.code, result.out) == (0, "no run in outputs matches\n")
    assert dltrain("runs", "some/folder").out == "no run in outputs matches; there is no folder some/folder\n"


def test_a_sweep_is_deleted_with_all_of_its_jobs(dltrain: Command) -> None:
    assert dltrain("runs", "sweeps/2026-01-11", "--delete", "--yes").code == 0
    assert [path.name for path in Path("outputs/sweeps/2026-01-11").glob("*")] == []
    assert dltrain("runs").code == 0


def test_a_run_that_is_under_way_is_not_deleted(dltrain: Command) -> None:
    folder = Path("outputs", RUNS[2][0])
    with locked(folder / ".lock", wait=False):
        result = dltrain("runs", "status=interrupted", "--delete", "--yes")
    assert (result.code, "another process is writing here" in result.err) == (74, True)
    assert (folder / "summary.json").exists()


@pytest.mark.parametrize("arguments", [(), ("nosuchfolder",), ("--delete", "--yes"), ("accuracy>0.9",)])
def test_a_folder_without_runs_is_listed_as_such(
    dltrain: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    shutil.rmtree("outputs")
    result = dltrain("runs", *arguments)
    assert (result.code, result.out.startswith("no run in outputs")) == (0, True)


def test_a_damaged_run_is_named_and_the_others_are_listed(dltrain: Command) -> None:
    Path("outputs", RUNS[1][0], "summary.json").write_text("{")
    result = dltrain("runs")
    assert (result.code, listed(result.out)) == (0, [4, 3, 2, 0])
    assert result.err.startswith("left out ") and "summary.json: cannot be read" in result.err


def test_a_run_in_progress_is_running_and_a_killed_one_is_not_done(dltrain: Command) -> None:
    for name, *_ in RUNS[:2]:
        Path("outputs", name, "summary.json").unlink()
        Path("outputs", name, ".lock").touch()
    with locked(Path("outputs", RUNS[0][0], ".lock"), wait=False):
        assert listed(dltrain("runs", "status=running").out) == [0]
    assert listed(dltrain("runs", "status=not done").out) == [1, 0]


def test_tags_and_note_are_shown_in_the_table_and_on_the_page(dltrain: Command) -> None:
    keys = ("data=digits", "model=linear", "epochs=1", "device.threads=1", "logger=none")
    result = dltrain("train", *keys, "tags=[fine,'last <b>']", "note='a <i>note</i>'")
    assert result.code == 0, result.err
    page = (result.folder / "report.html").read_text()
    assert "fine · last &lt;b&gt; · a &lt;i&gt;note&lt;/i&gt;" in page
    out = dltrain("runs", "tags=fine").out
    assert "fine, last <b>" in out
    assert "a <i>note</i>" in out


def test_a_resumed_run_may_get_other_tags_without_a_warning(dltrain: Command) -> None:
    keys = ("data=digits", "model=linear", "epochs=1", "device.threads=1", "logger=none", "report=false")
    folder = dltrain("train", *keys, "tags=[one]").folder
    again = dltrain("resume", str(folder), "tags=[two]", "note=later")
    assert (again.code, "changed" in again.out) == (0, False)
    assert "later" in dltrain("runs", "tags=two").out
