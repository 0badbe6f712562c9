"""Every command of the README is run, or composed where it would need a GPU, other data or more than half a minute."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from conftest import Command

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.startswith("dltrain ")]
COMMANDS += re.findall(r"`(dltrain train (?:data|optim)=custom[^`]*)`", README)
ROWS = re.findall(r"^\|.*\| `((?:model|device)[^`|]*)`[^|]*\|$", README, re.MULTILINE)
COMMANDS += [f"dltrain train {row}" for row in ROWS]
LONG = ("device=cuda", "data=mnist", "data=cifar10", "experiment=", "data.val=0", "my_sets", "my_optim")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run, some pictures, and the README's own model."""
    from dltrain.cli import main

    folder = tmp_path_factory.mktemp("readme")
    for name, color in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        (folder / "photos" / name).mkdir(parents=True)
        for index in range(12):
            Image.new("RGB", (20 + index, 30), color).save(folder / "photos" / name / f"{index}.png")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "class MyNet" in block]
    (folder / "my_nets.py").write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "epochs=1", "data.limit=50"]) == 0
        (run,) = (folder / "outputs").glob("*/*")
        shutil.move(run, folder / "run")
        words = ["sweep.search=random", "sweep.trials=1", "optim.lr=0.1,0.2", "epochs=1", "data.limit=50"]
        assert main(["train", "-m", *words, "device.threads=1"]) == 0
    (sweep,) = (folder / "outputs").glob("sweeps/*/*")
    shutil.copytree(sweep, folder / "sweep")
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_works(dltrain: Command, finished: Path, tmp_path: Path, command: str) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    command = command.replace("outputs/DATE/TIME", "run").replace("outputs/sweeps/DATE/TIME", "sweep")
    words = shlex.split(command, comments=True)[1:]
    if "sweep.executor=" in command:
        words = [word for word in words if word != "-m" and "range" not in word] + ["--cfg", "job"]
    elif words[:2] == ["train", "-m"]:
        words += ["epochs=1", "data.limit=50", "device.threads=1"]
        words += ["sweep.trials=3"] if "sweep.search=" in command else []
    elif "sweep.trials=40" in words:
        words[-1] = "sweep.trials=2"
    elif any(mark in command for mark in LONG):
        words += ["--cfg", "job"]
    elif words[0] == "train" and "data=folder" in words:
        words += ["epochs=1"]
    result = dltrain(*words)
    assert result.code == 0, result.err
    sys.modules.pop("my_nets", None)


def test_the_readme_s_python_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "compose(" in block]
    names: dict[str, object] = {}
    exec(code, names)
    assert names["summary"]["test"]["accuracy"] > 0.3  # type: ignore[index]


def test_every_row_of_the_results_is_a_command() -> None:
    assert len([row for row in ROWS if "data.val=0" in row]) == 7


def test_the_readme_names_every_exit_code() -> None:
    text = re.search(r"Exit codes: (.*?)\n`", README, re.DOTALL)
    assert text is not None
    assert set(re.findall(r"\b\d+\b", text[1])) == {"0", "1", "2", "66", "69", "74", "130", "143"}
