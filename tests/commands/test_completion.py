"""Completion of runs, sweeps, files and flags: the newest first, few of many, none that a shell would tear apart."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dltrain.commands.completion import MOST_FOLDERS
from support.command import Command

Offered = Callable[[str], list[str]]


def make_run(name: str, *files: str) -> Path:
    folder = Path("outputs", name)
    (folder / "checkpoints").mkdir(parents=True)
    for file in files or ("best.pt", "last.pt"):
        (folder / "checkpoints" / file).touch()
    return folder


@pytest.fixture
def offered(dltrain: Command, monkeypatch: pytest.MonkeyPatch) -> Offered:
    """What bash is offered behind a command line, in its order."""

    def words(line: str) -> list[str]:
        monkeypatch.setenv("COMP_LINE", f"dltrain {line}")
        return dltrain("-sc", "query=bash").out.split()

    return words


@pytest.fixture
def outputs(offered: Offered) -> None:
    make_run("2026-01-02/09-00-00")
    make_run("2026-01-02/10-00-00-2")
    make_run("2026-01-02/10-00-00-10", "last.pt")
    make_run("2025-12-31/23-59-59-name", "best.pt")
    make_run("2025-12-31/empty/").joinpath("checkpoints", "best.pt").unlink()
    Path("outputs/2025-12-31/empty/checkpoints/last.pt").unlink()
    for name in ("2026-01-01/08-00-00", "2026-01-02/09-30-00"):
        Path("outputs/sweeps", name).mkdir(parents=True)
        Path("outputs/sweeps", name, "sweep.json").touch()
    Path("outputs/sweeps/2026-01-03/00-00-00").mkdir(parents=True)  # no sweep


@pytest.mark.usefixtures("outputs")
@pytest.mark.parametrize(
    ("line", "prefix", "found"),
    [
        ("eval ckpt=", "ckpt=", ["2026-01-02/10-00-00-2", "2026-01-02/09-00-00", "2025-12-31/23-59-59-name"]),
        ("predict ckpt=outputs/2025", "ckpt=", ["2025-12-31/23-59-59-name"]),
        ("train resume=", "resume=", ["2026-01-02/10-00-00-10", "2026-01-02/10-00-00-2", "2026-01-02/09-00-00"]),
        ("inspect ", "", ["2026-01-02/10-00-00-2", "2026-01-02/09-00-00", "2025-12-31/23-59-59-name"]),
        ("inspect outputs/2026-01-02/09", "", ["2026-01-02/09-00-00"]),
    ],
)
def test_runs_are_offered_that_can_be_used_the_newest_first(
    offered: Offered, line: str, prefix: str, found: list[str]
) -> None:
    assert offered(line) == [f"{prefix}outputs/{run}" for run in found]


@pytest.mark.usefixtures("outputs")
def test_weights_to_start_from_are_files(offered: Offered) -> None:
    assert offered("train init=")[0] == "init=outputs/2026-01-02/10-00-00-2/checkpoints/best.pt"


@pytest.mark.usefixtures("outputs")
def test_sweeps_are_offered_and_the_last(offered: Offered) -> None:
    sweeps = [f"sweep.resume=outputs/sweeps/{name}" for name in ("2026-01-02/09-30-00", "2026-01-01/08-00-00")]
    assert offered("train sweep.resume=") == ["sweep.resume=last", *sweeps]
    assert offered("train sweep.resume=l") == ["sweep.resume=last"]


@pytest.mark.usefixtures("outputs")
def test_a_report_is_offered_runs_and_sweeps(offered: Offered) -> None:
    found = offered("report outputs/2026-01-02/09-00-00 outputs/")
    assert found[:4] == [
        "outputs/sweeps/2026-01-03/00-00-00",
        "outputs/2026-01-02/10-00-00-10",
        "outputs/2026-01-02/10-00-00-2",
        "outputs/sweeps/2026-01-02/09-30-00",
    ]


def test_without_runs_no_path_is_offered(offered: Offered) -> None:
    for line in ("eval ckpt=", "train sweep.resume=", "report ", "inspect "):
        assert offered(line) == []


@pytest.mark.usefixtures("outputs")
def test_a_path_is_completed_if_no_run_matches(offered: Offered, tmp_path: Path) -> None:
    assert offered("eval ckpt=outputs/2026-01-02/09-00-00/") == ["ckpt=outputs/2026-01-02/09-00-00/checkpoints/"]
    files = [f"ckpt=outputs/2026-01-02/09-00-00/checkpoints/{name}.pt" for name in ("best", "last")]
    assert offered("eval ckpt=outputs/2026-01-02/09-00-00/checkpoints/") == files
    (tmp_path / "model.pth").touch()
    (tmp_path / "model.txt").touch()
    assert offered(f"train init={tmp_path}/mo") == [f"init={tmp_path}/model.pth"]


def test_names_that_a_shell_would_tear_apart_are_left_out(offered: Offered) -> None:
    for name in ("10-00-00-a b", "10-00-01-$HOME", "10-00-02-a;b", "10-00-03-a:b", "10-00-04-a=b", "10-00-05-a,b"):
        make_run(f"2026-01-02/{name}")
    assert offered("eval ckpt=") == ["ckpt=outputs/2026-01-02/10-00-04-a=b"]


def test_few_of_many_are_offered_and_quickly(offered: Offered, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(600):
        make_run(f"2026-01-{1 + number // 60:02}/10-{number % 60:02}-00")
    looked = 0
    real = Path.is_file

    def is_file(path: Path) -> bool:
        nonlocal looked
        looked += "checkpoints" in path.parts
        return real(path)

    monkeypatch.setattr(Path, "is_file", is_file)
    found = offered("eval ckpt=")
    assert found[0] == "ckpt=outputs/2026-01-10/10-59-00"
    assert len(found) == MOST_FOLDERS
    assert looked <= MOST_FOLDERS + 1, "only what is offered is looked into"
    assert offered("eval ckpt=outputs/2026-01-01/10-00") == ["ckpt=outputs/2026-01-01/10-00-00"]


def test_a_key_of_another_subcommand_is_not_completed(offered: Offered) -> None:
    make_run("2026-01-02/09-00-00")
    assert offered("predict resume=") == []
    assert offered("train ckpt=") == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("train --e", ["--explain"]),
        ("report --", ["--columns=", "--help", "--json"]),
        ("list --", ["--help", "--json", "--schema"]),
        ("inspect --h", ["--help"]),
        ("train --explain optim.l", ["optim.lr"]),
    ],
)
def test_flags_and_explainable_keys_are_offered(offered: Offered, line: str, found: list[str]) -> None:
    assert offered(line) == found


def test_groups_and_keys_can_be_explained(offered: Offered) -> None:
    assert {"optim", "optim.lr", "optim.momentum"} <= set(offered("train --explain opt"))


def test_bash_keeps_the_order_of_the_offers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [make_run(f"2026-01-0{day}/10-00-00") for day in (1, 2, 3)]
    folder = Path(sys.executable).parent  # where the console script is
    script = (
        'eval "$(dltrain -sc install=bash)"; complete -p dltrain; '
        'COMP_LINE="dltrain eval ckpt="; COMP_WORDS=(dltrain eval ckpt=); COMP_CWORD=2; COMP_POINT=18; '
        'hydra_bash_completion; echo "${COMPREPLY[@]}"'
    )
    environment = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, check=False)
    rule, words = done.stdout.splitlines()
    assert "-o nosort" in rule
    assert words.split() == [f"ckpt={run}" for run in reversed(runs)]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("train -m 'seed=range(3)' mode", "model="),
        ("train 'data.size=[32,32]' model=ml", "model=mlp"),
        ("train 'seed=3 mode", ""),
        ("train --summary mod", "model="),
        ("train --explain optim.lr mod", "model="),
        ("eval --json spl", "split="),
        ("eval ckpt=~nobody-of-that-name/", ""),
        ("report ~nobody-of-that-name/", ""),
        ("train --explain --cfg job mod", "model="),
    ],
)
def test_quotes_flags_and_unknown_home_folders_do_not_break_completion(
    dltrain: Command, monkeypatch: pytest.MonkeyPatch, line: str, word: str
) -> None:
    monkeypatch.setenv("COMP_LINE", f"dltrain {line}")
    result = dltrain("-sc", "query=bash")
    assert (result.code, result.err) == (0, "")
    assert not word or word in result.out.split()
