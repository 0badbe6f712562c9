"""Every command of the README is run, or composed where it would need a GPU, other data or more than half a minute."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from support import commands
from support.command import Command

README = (Path(__file__).parents[1] / "README.md").read_text()
COMMANDS = [line for line in commands.lines(README) if line.startswith("dltrain ")]
COMMANDS += re.findall(r"`(dltrain train (?:data|optim)=custom[^`]*)`", README)
ROWS = re.findall(r"^\| `(experiment=[^`|]*)` \|", README, re.MULTILINE)
COMMANDS += [f"dltrain train {row}" for row in ROWS]
LONG = (*commands.LONG, "my_sets", "my_optim")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run, some pictures, and the README's own model."""
    folder = tmp_path_factory.mktemp("readme")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "class MyNet" in block]
    (folder / "my_nets.py").write_text(code)
    commands.prepare(folder)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_works(dltrain: Command, finished: Path, tmp_path: Path, command: str) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    result = dltrain(*commands.quick(command, LONG))
    assert result.code == 0, result.err
    sys.modules.pop("my_nets", None)


def test_the_readme_s_python_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "compose(" in block]
    names: dict[str, object] = {}
    exec(code, names)
    assert names["summary"]["test"]["accuracy"] > 0.3  # type: ignore[index]


def test_every_recipe_has_its_row_in_the_results() -> None:
    recipes = (Path(__file__).parents[1] / "configs" / "experiment").glob("*.yaml")
    words = {row.split()[0].removeprefix("experiment="): row.split()[1:] for row in ROWS}
    assert len(words) == len(ROWS)
    assert set(words) == {path.stem for path in recipes if path.stem.startswith(("mnist_", "cifar10_"))}
    assert {name for name, more in words.items() if more} == {"cifar10_94", "cifar10_96"}  # whole on a GPU alone


def test_the_readme_names_every_exit_code() -> None:
    text = re.search(r"Exit codes: (.*?)\n`", README, re.DOTALL)
    assert text is not None
    assert set(re.findall(r"\b\d+\b", text[1])) == {"0", "1", "2", "66", "69", "74", "129", "130", "143"}
