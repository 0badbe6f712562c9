"""Commands in pages of Markdown, and how each is made to end within seconds: for the README and for docs/."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

# Composed and checked instead of run: they need a GPU, other data, or more than half a minute.
LONG = ("device=cuda", "data=mnist", "data=cifar10", "experiment=", "data.val=0", "model.pretrained=true")


def lines(text: str) -> list[str]:
    """All lines of a page's blocks of commands."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


def files(text: str) -> dict[str, str]:
    """Blocks that begin with `# NAME.py` or `# NAME.yaml`, by that name."""
    return dict(re.findall(r"```(?:python|yaml)\n# (\S+\.(?:py|yaml))\n(.*?)```", text, re.DOTALL))


def write_files(folder: Path, text: str) -> None:
    """Write the files that a page shows to a folder."""
    for name, content in files(text).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def quick(command: str) -> list[str]:
    """The words after `dltrain` of a command, changed so that it needs what `prepare` has made and some seconds."""
    command = command.replace("outputs/DATE/TIME", "run").replace("outputs/sweeps/DATE/TIME", "sweep")
    words = shlex.split(command.partition(" > ")[0], comments=True)[1:]
    if "sweep.executor=" in command:
        return [word for word in words if word != "-m" and "range" not in word] + ["--cfg", "job"]
    if words[:2] == ["train", "-m"]:
        if any(mark in command for mark in LONG):
            return [*words, "sweep.dry=true"]
        return [*words, "epochs=1", "data.limit=50", "device.threads=1"] + (
            ["sweep.trials=3"] if "sweep.search=" in command else []
        )
    if "sweep.trials=40" in words:
        return [*words[:-1], "sweep.trials=2"]
    if any(mark in command for mark in LONG):
        return [*words, "--cfg", "job"]
    if words[0] == "train" and "data=folder" in words:
        return [*words, "epochs=1"]
    return words


def composed(command: str) -> list[str] | None:
    """The words after `dltrain` of a command, changed so that it only composes; None if it composes no config."""
    words = quick(command) if command.startswith("dltrain ") else [""]
    if words[0] not in ("train", "eval", "predict", "export") or "sweep.resume=" in command:
        return None
    if {"--cfg", "--explain", "--summary", "--help", "sweep.dry=true"} & set(words):
        return [word for word in words if word != "--summary"] + ["--cfg", "job"] * ("--summary" in words)
    return [*words, "sweep.dry=true" if "-m" in words else "--cfg=job"]


def prepare(folder: Path) -> None:
    """Make a finished run (run), a finished search (sweep) and some images (photos) in a folder."""
    from dltrain.cli import main

    for name, color in (("cat", (200, 30, 30)), ("dog", (30, 30, 200))):
        (folder / "photos" / name).mkdir(parents=True)
        for index in range(12):
            Image.new("RGB", (20 + index, 30), color).save(folder / "photos" / name / f"{index}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "epochs=1", "data.limit=50"]) == 0
        (run,) = (folder / "outputs").glob("*/*")
        shutil.move(run, folder / "run")
        words = ["sweep.search=random", "sweep.trials=1", "optim.lr=0.1,0.2", "epochs=1", "data.limit=50"]
        assert main(["train", "-m", *words, "device.threads=1"]) == 0
    (sweep,) = (folder / "outputs").glob("sweeps/*/*")
    shutil.copytree(sweep, folder / "sweep")
