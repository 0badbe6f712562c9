"""The commands in the README and in docs/, changed so that each ends within seconds."""

import re
import shlex
import shutil
from pathlib import Path

import numpy
import pytest
from PIL import Image

# Commands with one of these are only composed and checked: they need a GPU, other data, or over half a minute.
LONG = ("device=cuda", "data=mnist", "data=cifar10", "experiment=", "data.val=0", "model.pretrained=true")


def lines(text: str) -> list[str]:
    """Return all lines of the bash blocks of a page."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


def files(text: str) -> dict[str, str]:
    """Return the blocks that begin with `# NAME.py` or `# NAME.yaml`, by that name."""
    return dict(re.findall(r"```(?:python|yaml)\n# (\S+\.(?:py|yaml))\n(.*?)```", text, re.DOTALL))


def write_files(folder: Path, text: str) -> None:
    """Write the files that a page shows into a folder."""
    for name, content in files(text).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def quick(command: str) -> list[str]:
    """Return the arguments of a `dltrain` command, changed to use what `prepare` has made and to take seconds."""
    command = re.sub(r"outputs/DATE/TIME|(?<= )last\b", "run", command).replace("outputs/sweeps/DATE/TIME", "sweep")
    arguments = shlex.split(command.partition(" > ")[0], comments=True)[1:]
    if "sweep.executor=" in command:
        return [argument for argument in arguments if argument != "-m" and "range" not in argument] + ["--cfg", "job"]
    if arguments[:2] == ["train", "-m"]:
        if any(mark in command for mark in LONG):
            return [*arguments, "sweep.dry=true"]
        return [*arguments, "epochs=1", "data.limit=50", "device.threads=1"] + (
            ["sweep.trials=3"] if "sweep.search=" in command else []
        )
    if "sweep.trials=40" in arguments:
        return [*arguments[:-1], "sweep.trials=2"]
    if any(mark in command for mark in LONG):
        return [*arguments, "--cfg", "job"]
    if arguments[0] == "train" and {"data=folder", "data=table"} & set(arguments):
        return [*arguments, "epochs=1"]
    return arguments


def composed(command: str) -> list[str] | None:
    """Return the arguments of a `dltrain` command, changed so that it only composes; None if it composes nothing."""
    arguments = quick(command) if command.startswith("dltrain ") else [""]
    if arguments[0] not in ("train", "eval", "predict", "export") or "sweep.resume=" in command:
        return None
    if {"--cfg", "--explain", "--summary", "--help", "sweep.dry=true"} & set(arguments):
        return [argument for argument in arguments if argument != "--summary"] + ["--cfg", "job"] * (
            "--summary" in arguments
        )
    return [*arguments, "sweep.dry=true" if "-m" in arguments else "--cfg=job"]


def prepare(folder: Path) -> None:
    """Make a finished run (run), a finished search (sweep) and some images (photos) in a folder."""
    from dltrain.cli import main

    for name, color in (("cat", (200, 30, 30)), ("dog", (30, 30, 200))):
        (folder / "photos" / name).mkdir(parents=True)
        for index in range(12):
            Image.new("RGB", (20 + index, 30), color).save(folder / "photos" / name / f"{index}.png")
    rows = [f"{name}/{index}.png,{name},{index},{index / 10}" for name in ("cat", "dog") for index in range(12)]
    (folder / "photos" / "labels.csv").write_text("\n".join(["path,label,age,weight", *rows]))
    images, labels = numpy.zeros((24, 28, 28), numpy.uint8), numpy.arange(24) % 2
    numpy.savez(folder / "arrays.npz", images=images, labels=labels)
    numpy.save(folder / "images.npy", images)
    numpy.save(folder / "labels.npy", labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "epochs=1", "data.limit=50"]) == 0
        (run,) = (folder / "outputs").glob("*/*")
        shutil.move(run, folder / "run")
        arguments = ["sweep.search=random", "sweep.trials=1", "optim.lr=0.1,0.2", "epochs=1", "data.limit=50"]
        assert main(["train", "-m", *arguments, "device.threads=1"]) == 0
    (sweep,) = (folder / "outputs").glob("sweeps/*/*")
    shutil.copytree(sweep, folder / "sweep")
