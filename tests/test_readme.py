"""The README keeps its size and its layout; every command of it composes, and is run where seconds suffice."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from support import commands
from support.command import Command
from support.tiers import mostly_slow
from test_architecture import ARROWS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "docs" / "results.md").read_text()
COMMANDS = [line for line in commands.lines(README) if line.startswith("dltrain ")]
ROW = re.compile(r"^\| `(experiment=[^`|]*)` \|", re.MULTILINE)
RECIPES = ROW.findall(RESULTS)
TEXTBOOK = [f"experiment={name}" for name in re.findall(r"^\| `(textbook/\w+)` \|", RESULTS, re.MULTILINE)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run, some images, and the model of the README."""
    folder = tmp_path_factory.mktemp("readme")
    commands.write_files(folder, README)
    commands.prepare(folder)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_composes(dltrain: Command, tmp_path: Path, command: str) -> None:
    commands.write_files(tmp_path, README)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    if words := commands.composed(command):
        result = dltrain(*words)
        assert result.code == 0, result.err
    sys.modules.pop("my_nets", None)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_works(dltrain: Command, finished: Path, tmp_path: Path, command: str) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    result = dltrain(*commands.quick(command))
    assert result.code == 0, result.err
    sys.modules.pop("my_nets", None)


@pytest.mark.parametrize("row", mostly_slow(RECIPES + TEXTBOOK, fast=[RECIPES[0], TEXTBOOK[0]]))
def test_the_command_of_a_result_composes(dltrain: Command, row: str) -> None:
    result = dltrain(*commands.quick(f"dltrain train {row}"))
    assert result.code == 0, result.err


def test_the_readme_can_be_read_in_one_sitting() -> None:
    assert len(README.encode()) <= 12_288


def test_the_readme_installs_in_two_lines_that_ci_can_pick() -> None:
    install, develop = [line for line in README.splitlines() if line.startswith("python3 -m venv")]
    assert "pip install -e . " in install and install.endswith(".venv/bin/dltrain train")
    assert "pip install -e '.[dev]' " in develop and develop.endswith(".venv/bin/pytest")


def test_the_readme_names_exactly_the_entries_of_the_package() -> None:
    named = re.findall(r"^    (\w+)(?:\.py|/)  +[a-z]", README.partition("## Inside")[2], re.MULTILINE)
    assert sorted(named) == sorted(ARROWS)


def test_the_code_of_the_readme_s_model_has_twelve_lines() -> None:
    (code,) = commands.files(README).values()
    assert len([line for line in code.splitlines() if line.strip()]) <= 12


def test_rows_of_the_readme_are_rows_of_the_results() -> None:
    full = {line.split(" | ")[0]: line.split(" | ") for line in RESULTS.splitlines() if ROW.match(line)}
    rows = [line.removesuffix(" |").split(" | ") for line in README.splitlines() if ROW.match(line)]
    assert len(rows) == 6
    for command, accuracy, seeds, seconds in rows:
        assert full[command][1:3] == [accuracy, seeds] and full[command][4] == seconds, command


def test_the_readme_quotes_no_speed_of_lenet() -> None:
    assert not [line for line in README.splitlines() if line.startswith("|") and "lenet" in line.lower()]


def test_every_experiment_has_its_row_in_the_results() -> None:
    folder = ROOT / "configs" / "experiment"
    names = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")}
    overrides = {row.split()[0].removeprefix("experiment="): row.split()[1:] for row in RECIPES}
    assert len(overrides) == len(RECIPES)
    assert set(overrides) == {name for name in names if name.startswith(("mnist_", "cifar10_"))}
    assert {row.removeprefix("experiment=") for row in TEXTBOOK} == names - set(overrides)
    assert {name for name, more in overrides.items() if more} == {"cifar10_94", "cifar10_96"}  # whole on a GPU alone
