"""No value of the environment gets into a file by itself: what is stored keeps the reference to it."""

import os
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from support.command import Command
from support.hostile import SMALL
from support.tiers import mostly_slow

CANARY = "canary-7f3a9e51"
QUICK = (*SMALL, "epochs=1", "limit_steps=2")
VARIABLES = ["AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "WANDB_API_KEY", "GITHUB_TOKEN", "PASSWORD", "DATABASE_URL", "MY_KEY"]
VARIABLES += ["HTTPS_PROXY", "SSH_AUTH_SOCK", "EDITOR", "LOGNAME", "USER", "OLDPWD", "PYTHONSTARTUP", "SLURM_JOB_NAME"]
MNIST = (*QUICK, "data=mnist", "data.root=${oc.env:SECRET_ROOT}")
FOLDER = (*QUICK, "data=folder", "data.root=${oc.env:SECRET_PICTURES}", "data.size=[8,8]")
TRACKED = "logger=[tensorboard,csv,mlflow]"
# Command lines, and the exit code of each; {run} is the folder of the first.
ROUTES: dict[str, tuple[int, tuple[str, ...]]] = {
    "train": (0, ("train", *MNIST[1:])),
    "resume": (0, ("train", "resume={run}", "limit_steps=3")),
    "resume with another folder": (0, ("train", "resume={run}", "limit_steps=4", "data.root=${oc.env:SECRET_ROOT}")),
    "eval": (0, ("eval", "ckpt={run}")),
    "eval on another folder": (0, ("eval", "ckpt={run}", "data.root=${oc.env:SECRET_ROOT}")),
    "eval of a file": (0, ("eval", "ckpt={run}/checkpoints/last.pt", "split=train")),
    "predict": (0, ("predict", "ckpt={run}", "input=a.png", "output=a.csv")),
    "export": (0, ("export", "ckpt={run}")),
    "export of weights": (0, ("export", "ckpt={run}", "format=safetensors")),
    "inspect": (0, ("inspect", "{run}/checkpoints/last.pt")),
    "sweep": (0, ("train", "-m", *MNIST[1:], "seed=1,2")),
    "sweep with a failed job": (1, ("train", "-m", *MNIST[1:], "optim.lr=0.1,1e30", "limit_steps=20")),
    "sweep of data that is not there": (
        1,
        ("train", "-m", *MNIST[1:-1], "data.root=${oc.env:SECRET_ROOT}/nowhere", "seed=1,2"),
    ),
    "sweep of data that is damaged": (1, ("train", "-m", *MNIST[1:-1], "data.root=${oc.env:SECRET_DAMAGED}", "seed=3")),
    "sweep of references": (
        0,
        ("train", "-m", *MNIST[1:-1], "data.root=${oc.env:SECRET_ROOT},${oc.env:SECRET_ROOT}/."),
    ),
    "default of a reference": (0, ("train", *MNIST[1:-1], "data.root=${oc.env:NOT_THERE,${oc.env:SECRET_ROOT}}")),
    "DLTRAIN_DATA": (0, ("train", *MNIST[1:-1], "data.root=null")),
    "a folder of pictures": (0, ("train", *FOLDER[1:])),
    "weights to start from": (0, ("train", *QUICK[1:], "init=${oc.env:SECRET_WEIGHTS}")),
    "data that is not there": (66, ("train", *MNIST[1:-1], "data.root=${oc.env:SECRET_ROOT}/nowhere")),
    "data that is damaged": (66, ("train", *MNIST[1:-1], "data.root=${oc.env:SECRET_DAMAGED}")),
    "a run that diverges": (1, ("train", *MNIST[1:], "optim.lr=1e30", "limit_steps=20")),
    "a value of the wrong kind": (2, ("train", *QUICK[1:], "epochs=${oc.env:MY_KEY}")),
    "a model that is not there": (2, ("train", *QUICK[1:], "model.name=${oc.env:MY_KEY}")),
    "code that is not there": (2, ("train", *QUICK[1:], "model.name=${oc.env:MY_KEY}:net")),
    "a reference to nothing": (2, ("train", *QUICK[1:], "init=${oc.env:NOT_THERE}")),
    "an experiment of one's own": (0, ("train", *QUICK[1:], "--config-dir", "mine", "experiment=secret")),
    "a config that is shown": (0, ("train", *MNIST[1:], "--cfg", "job")),
    "a config that is shown, with hydra's": (0, ("train", *MNIST[1:], "--cfg", "all")),
    "a seed": (2, ("train", *QUICK[1:], "seed=${oc.env:MY_KEY}")),
    "a resume of nothing": (66, ("train", "resume=${oc.env:SECRET_ROOT}/nowhere")),
    "an unknown key": (2, ("train", *QUICK[1:], "model.secret=${oc.env:MY_KEY}")),
    "a name": (0, ("train", *MNIST[1:], "name=mine")),
    "trackers": (0, ("train", *MNIST[1:], TRACKED, "logger.mlflow.tracking_uri=${oc.env:SECRET_STORE}")),
    "a tracker that fails": (0, ("train", *MNIST[1:], TRACKED, "logger.mlflow.tracking_uri=${oc.env:SECRET_URI}")),
    "help": (0, ("train", "--help")),
    "a key that is explained": (0, ("train", *MNIST[1:], "--explain", "data.root")),
    "help with a reference": (0, ("train", *MNIST[1:], "--help")),
    "list": (0, ("list",)),
    "a schema": (0, ("list", "--schema")),
}
OFTEN = ("eval", "export of weights", "sweep", "data that is damaged", "a value of the wrong kind", "trackers")


@pytest.fixture
def secret(data_root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment full of secrets, data below a folder that is one."""
    root = tmp_path_factory.mktemp("secret") / CANARY
    shutil.copytree(data_root / "MNIST", root / "MNIST")
    shutil.copytree(data_root / "MNIST", root / "damaged" / "MNIST")
    for path in (root / "damaged").rglob("*-ubyte"):
        path.write_bytes(path.read_bytes()[:-1])
    _write_pictures(root / "pictures")
    weights = {"layers.1.weight": torch.zeros(2, 784), "layers.1.bias": torch.zeros(2)}
    torch.save(weights, root / "weights.pt")
    for name in VARIABLES:
        monkeypatch.setenv(name, f"{name}-{CANARY}")
    monkeypatch.setenv("SECRET_ROOT", str(root))
    monkeypatch.setenv("SECRET_DAMAGED", str(root / "damaged"))
    monkeypatch.setenv("SECRET_PICTURES", str(root / "pictures"))
    monkeypatch.setenv("SECRET_STORE", str(root / "store"))
    monkeypatch.setenv("SECRET_URI", f"nowhere://me:{CANARY}@127.0.0.1/x")
    monkeypatch.setenv("SECRET_WEIGHTS", str(root / "weights.pt"))


def _write_pictures(root: Path) -> None:
    from PIL import Image

    for split in ("train", "test"):
        for name, level in (("dark", 20), ("light", 200)):
            (root / split / name).mkdir(parents=True)
            for index in range(60):
                Image.new("L", (8, 8), level + index % 20).save(root / split / name / f"{index}.png")
    (root / "train" / "dark" / "damaged.png").write_bytes(b"\x89PNG damaged")


def leaks(folder: Path) -> list[str]:
    """Files with the canary in them, or in their names; archives are looked into."""
    found = []
    for path in folder.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                data += b"".join(map(archive.read, archive.namelist()))
        if CANARY.encode() in data or CANARY in path.name:
            found.append(str(path.relative_to(folder)))
    return found


@pytest.mark.usefixtures("secret")
@pytest.mark.parametrize("names", mostly_slow([OFTEN, tuple(ROUTES)], fast=[OFTEN]), ids=["some", "all"])
def test_no_file_contains_a_value_from_the_environment(
    dltrain: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    from PIL import Image

    Image.new("L", (28, 28)).save("a.png")
    Path("mine/experiment").mkdir(parents=True)
    Path("mine/experiment/secret.yaml").write_text("# @package _global_\ninit: ${oc.env:SECRET_WEIGHTS}\n")
    first = dltrain("train", *MNIST[1:])
    assert first.code == 0
    faults = []
    for name, (code, words) in ((name, ROUTES[name]) for name in names):
        if name == "DLTRAIN_DATA":
            monkeypatch.setenv("DLTRAIN_DATA", os.environ["SECRET_ROOT"])
        result = dltrain(*(word.replace("{run}", str(first.folder)) for word in words))
        if result.code != code:
            faults.append(f"{name}: code {result.code}\n{result.err[-600:]}")
        if found := leaks(tmp_path):
            faults.append(f"{name}: {found}")
            break
    assert not faults, "\n".join(faults)
    assert len(ROUTES) >= 30


def test_an_interpolation_is_stored_unresolved(
    dltrain: Command, tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_ROOT", str(data_root))
    run = dltrain("train", *MNIST[1:]).folder
    reference = "${oc.env:SECRET_ROOT}"
    assert f"root: {reference}" in (run / ".hydra" / "config.yaml").read_text()
    assert torch.load(run / "checkpoints" / "last.pt")["config"]["data"]["root"] == reference


def test_the_leak_check_detects_a_leak(tmp_path: Path) -> None:
    torch.save({"config": {"key": CANARY}}, tmp_path / "a.pt")
    (tmp_path / f"{CANARY}.txt").touch()
    (tmp_path / "clean.txt").touch()
    assert sorted(leaks(tmp_path)) == ["a.pt", f"{CANARY}.txt"]
