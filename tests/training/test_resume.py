"""What a run may meet when it is resumed: another environment, other keys, other data, other weights, no memory."""

import json
import random
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from dltrain.checkpoints import checkpoint
from dltrain.training import build
from support import generated
from support.command import Command, Trained
from support.tiers import mostly_slow

QUICK = ("model=mlp", "model.hidden=[8]", "data.limit=100", "epochs=3", "batch_size=25", "device.threads=1")
QUICK += ("report=false", "logger=none")
HALF = (*QUICK, "limit_steps=5")
ON = "limit_steps=null"
WARNING = "not bit-identical because"


def last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.pt"


def weights(folder: Path) -> dict[str, bytes]:
    return {key: value.numpy().tobytes() for key, value in checkpoint.load(last(folder))["model"].items()}


def edited(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A checkpoint whose content is changed and that is whole all the same."""
    content = checkpoint.load(path)
    change(content)
    checkpoint.save(path, content)
    return path


def image(folder: Path) -> dict[str, bytes]:
    """Every file of a run but its log, which an attempt may add a line to."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("train.log", ".lock")]
    return {str(path): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def kept() -> dict[str, Path]:
    """Runs that were trained once, by name."""
    return {}


@pytest.fixture
def folder(dltrain: Command, kept: dict[str, Path], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stopped in the middle, a copy of its own."""
    if "half" not in kept:
        kept["half"] = tmp_path_factory.mktemp("kept") / "half"
        shutil.copytree(dltrain("train", *HALF).folder, kept["half"])
    return Path(shutil.copytree(kept["half"], tmp_path / "half"))


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, no data can be read."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the data was read")

    def forbid() -> None:
        from dltrain.commands import evaluation

        monkeypatch.setattr(build, "data", fail)
        monkeypatch.setattr(evaluation, "load_examples", fail)

    return forbid


def test_an_unchanged_environment_is_not_mentioned(dltrain: Command, folder: Path) -> None:
    result = dltrain("train", f"resume={folder}", ON)
    assert result.code == 0
    assert "resume:" not in result.out + result.err
    assert weights(folder) == weights(dltrain("train", *QUICK).folder)


def test_a_run_on_a_fold_resumes_to_the_same_bits_and_keeps_its_fold(dltrain: Command) -> None:
    fold = ("data.folds=4", "data.fold=2")
    folder = dltrain("train", *HALF, *fold).folder
    result = dltrain("train", f"resume={folder}", "data.fold=1")
    assert (result.code, "data.fold cannot change in a resumed run" in result.err) == (2, True)
    assert dltrain("train", f"resume={folder}", ON).code == 0
    assert weights(folder) == weights(dltrain("train", *QUICK, *fold).folder)


PROXY = ("hardest=0.5", "proxy={hidden: [4], dropout: 0.2}")


def large_proxy(content: dict[str, Any]) -> None:
    content["config"]["proxy"]["hidden"] = [10**6, 10**6]
    del content["digests"]["config"]["proxy.hidden"]


def test_a_run_with_a_proxy_resumes_to_the_same_bits_and_keeps_it(dltrain: Command) -> None:
    folder = dltrain("train", *HALF, *PROXY).folder
    for key in ("hardest=0.2", "proxy={hidden: [2]}"):
        result = dltrain("train", f"resume={folder}", key)
        assert (result.code, "cannot change in a resumed run" in result.err) == (2, True)
    assert dltrain("train", f"resume={folder}", ON).code == 0
    whole = dltrain("train", *QUICK, *PROXY).folder
    contents = [checkpoint.load(last(each)) for each in (folder, whole)]
    assert weights(folder) == weights(whole)
    torch.testing.assert_close(contents[0]["proxy"], contents[1]["proxy"], rtol=0, atol=0)
    assert dltrain("eval", f"ckpt={folder}").code == 0


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda content: content.pop("proxy"), "layers.1.weight is missing"),
        (lambda content: content.update(proxy=None), "layers.1.weight is missing"),
        (lambda content: content.update(proxy=[1]), "proxy must be weights and optimizer"),
        (lambda content: content["proxy"].update(model={"a": 1}), "proxy.model must be weights by name"),
        (lambda content: content["proxy"]["model"].update(extra=torch.zeros(1)), "the model has no extra"),
        (lambda content: content["proxy"].pop("optimizer"), "cannot be resumed"),
        (lambda content: content["proxy"]["optimizer"].update(state=[]), "proxy.optimizer.state must be a dict"),
        (large_proxy, "do not fit the model"),
        (lambda content: content["proxy"]["model"]["layers.1.bias"].fill_(torch.nan), "the loss is not finite"),
    ],
)
def test_a_resume_refuses_a_proxy_that_does_not_fit(
    dltrain: Command, change: Callable[[dict[str, Any]], object], problem: str
) -> None:
    folder = dltrain("train", *HALF, *PROXY).folder
    edited(last(folder), change)
    result = dltrain("train", f"resume={folder}", ON)
    assert result.code == 66
    assert problem in result.err


@pytest.mark.parametrize(
    ("typed", "problem"),
    [
        (("hardest=0.5",), "hardest=0.5 proxy=null: set both, or neither"),
        (("proxy={hidden: [4]}",), "hardest=null proxy={hidden: [4]}: set both, or neither"),
        (("hardest=1", "proxy={hidden: [4]}"), "hardest=1: must be"),
        (("hardest=0.5", "proxy={hiden: [4]}"), "proxy.hiden: no such key; did you mean proxy.hidden?"),
        (("hardest=0.5", "proxy={name: lenet}"), "proxy.name: cannot be set"),
        (("hardest=0.5", "proxy={hidden: 4}"), "proxy.hidden=4: must be"),
        (("hardest=0.5", "proxy=small"), "proxy=small: must be"),
        (
            ("model.batch_norm=true", "data.limit=208", "batch_size=4", "accumulate=3", "hardest=0.9", "proxy={}"),
            "proxy: b",
        ),
        (
            (*PROXY, "task=custom", "task.name=dltrain.optim.tasks:Regression"),
            "hardest=0.5: works with the built-in tasks only",
        ),
        (
            ("hardest=0.5", "proxy={batch_norm: true}", "batch_size=2"),
            "proxy: batch_size=2: 90 examples leave a single",
        ),
        (
            ("model=cnn", "model.hidden=8", "hardest=0.5", "proxy={widths: [4, 4, 4, 4, 4, 4]}"),
            "set fewer proxy.widths",
        ),
    ],
)
def test_a_proxy_that_cannot_be_built_is_an_error_of_one_line(
    dltrain: Command, typed: tuple[str, ...], problem: str
) -> None:
    result = dltrain("train", *QUICK, *typed)
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert problem in result.err


def test_a_key_of_the_proxy_typed_alone_is_answered_with_how_to_write_it(dltrain: Command) -> None:
    result = dltrain("train", *QUICK, "hardest=0.5", "proxy.hidden=[8]")
    assert result.code == 2
    assert "proxy.hidden: no such key; write 'proxy={hidden: …}'" in result.err
    result = dltrain("train", "experiment=cifar10_96", "proxy.width=[8]")
    assert (result.code, "proxy.width: no such key; did you mean proxy.widths?" in result.err) == (2, True)


def test_a_checkpoint_cannot_name_code_in_its_proxy(
    dltrain: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = "from dltrain.models.mlp import MLP\ndef net(*, input_shape, num_classes, **keys):\n    return MLP("
    net += (
        "input_shape=input_shape, num_classes=num_classes, hidden=[4], activation='relu', dropout=0, batch_norm=False)"
    )
    (tmp_path / "my_proxy_nets.py").write_text(net)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = ("model=custom", "model.name=my_proxy_nets:net", "hardest=0.5", "proxy={size: 4}")
    words = [word for word in HALF if not word.startswith("model")]
    folder = dltrain("train", *words, *own).folder
    assert dltrain("train", f"resume={folder}", ON, "trust=my_proxy_nets").code == 0
    evil = {"name": "os:system", "command": f"touch {tmp_path}/evil"}
    edited(last(folder), lambda content: content["config"].update(proxy=evil))
    result = dltrain("train", f"resume={folder}", "epochs=9", "trust=my_proxy_nets")
    assert result.code in (2, 66)
    assert not (tmp_path / "evil").exists()


def some(cases: Iterable[Any], often: Collection[Any]) -> list[Any]:
    """Cases for a test; but those named, only under torture."""
    return [case if case in often else pytest.param(case, marks=pytest.mark.torture) for case in cases]


def other(key: str, value: str) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["environment"].update({key: value})


def test_a_resumed_run_keeps_its_threads_without_a_warning(dltrain: Command) -> None:
    words = [word for word in HALF if not word.startswith("device.")]
    folder = dltrain("train", *words).folder
    torch.set_num_threads(2)
    result = dltrain("train", f"resume={folder}", ON)
    assert result.code == 0
    assert "cpu, 1 thread, fp32" in result.out
    assert WARNING not in result.out


# What was, words to resume with, and what is told: all differences, in one line.
ENVIRONMENTS: dict[str, tuple[tuple[Callable[[dict[str, Any]], object], ...], tuple[str, ...], tuple[str, ...]]] = {
    "torch": ((other("torch", "2.0.0"),), (), ("torch was 2.0.0, is",)),
    "dltrain": ((other("dltrain", "0.0.9"),), (), ("dltrain was 0.0.9, is",)),
    "numpy": ((other("numpy", "1.0"),), (), ("numpy was 1.0, is",)),
    "python": ((other("python", "3.9.1"),), (), ("python was 3.9.1, is",)),
    "device": ((other("device", "Abacus 3"),), (), ("device was Abacus 3, is",)),
    "threads": ((), ("device.threads=2",), ("threads was 1, is 2",)),
    "precision": ((), ("device.precision=bf16",), ("precision was fp32, is bf16",)),
    "threads and precision": (
        (),
        ("device.threads=2", "device.precision=bf16"),
        ("threads was 1, is 2", "precision was fp32, is bf16"),
    ),
    "a whole device": ((other("threads", "64"),), ("device=cpu",), ("threads was 64, is",)),
    "everything": (
        tuple(other(key, "9") for key in ("torch", "dltrain", "numpy", "python", "device")),
        ("device.threads=2", "device.precision=bf16"),
        ("torch was 9", "dltrain was 9", "numpy was 9", "python was 9", "device was 9", "threads was 1", "precision"),
    ),
}


@pytest.mark.parametrize("case", some(ENVIRONMENTS, ("torch", "device", "threads and precision", "everything")))
def test_a_changed_environment_is_reported_with_all_differences(dltrain: Command, folder: Path, case: str) -> None:
    changes, words, told = ENVIRONMENTS[case]
    for change in changes:
        edited(last(folder), change)
    result = dltrain("train", f"resume={folder}", "limit_steps=6", *words)
    assert result.code == 0
    (line,) = [line for line in result.out.splitlines() if WARNING in line]
    assert all(difference in line for difference in told)
    assert line.count(" was ") == len(told)
    assert line in (folder / "train.log").read_text()


@pytest.mark.parametrize("case", some(ENVIRONMENTS, ("device", "precision")))
def test_a_changed_environment_is_refused_if_the_run_must_be_deterministic(
    dltrain: Command, folder: Path, case: str
) -> None:
    changes, words, told = ENVIRONMENTS[case]
    for change in changes:
        edited(last(folder), change)
    before = image(folder)
    result = dltrain("train", f"resume={folder}", ON, *words, "device.deterministic=true")
    assert result.code == 2
    assert WARNING in result.err
    assert all(difference in result.err for difference in told)
    assert len(result.err.splitlines()) <= 3
    assert image(folder) == before


def test_a_deterministic_run_in_an_unchanged_environment_gives_no_warning(dltrain: Command) -> None:
    folder = dltrain("train", *HALF, "device.deterministic=true").folder
    result = dltrain("train", f"resume={folder}", ON)
    assert (result.code, WARNING in result.out + result.err) == (0, False)


HARMLESS = ("log_every=1", "checkpoint_every=1", "keep=4", "limit_steps=null", "max_seconds=900", "patience=50")


def test_harmless_keys_change_no_weight_and_give_no_warning(dltrain: Command, data_root: Path, tmp_path: Path) -> None:
    mnist = ("data=mnist", "data.limit=100")
    whole = dltrain("train", *QUICK, *mnist, f"data.root={data_root}").folder
    half = dltrain("train", *HALF, *mnist, f"data.root={data_root}").folder
    elsewhere = generated.write_mnist(tmp_path / "elsewhere")
    result = dltrain("train", f"resume={half}", *HARMLESS, f"data.root={elsewhere}")
    assert result.code == 0
    assert "changed" not in result.out
    assert weights(half) == weights(whole)


@pytest.mark.parametrize(
    "words",
    [
        ("optim.lr=0.01",),
        ("clip_norm=1.0", "optim.momentum=0.5"),
        ("epochs=4", "schedule.warmup=0.5"),
        ("on_nonfinite=skip",),
        ("clip_norm=2", "epochs=5", "optim.lr=0.2", "optim.weight_decay=0.1", "schedule.final=0.1"),
    ],
)
def test_keys_that_change_the_weights_are_reported_in_one_line(
    dltrain: Command, folder: Path, words: tuple[str, ...]
) -> None:
    result = dltrain("train", f"resume={folder}", ON, *words)
    assert result.code == 0
    (line,) = [line for line in result.out.splitlines() if "changed" in line]
    keys = sorted(word.partition("=")[0] for word in words)
    assert line == f"resume: {', '.join(keys)} changed: from here on the run differs from an uninterrupted one"


def test_an_override_with_the_stored_value_is_no_change(dltrain: Command, folder: Path) -> None:
    result = dltrain("train", f"resume={folder}", ON, "optim.lr=0.05", "seed=0", "model.hidden=[8]", "batch_size=25")
    assert (result.code, "changed" in result.out) == (0, False)


def test_all_keys_that_would_make_another_run_are_refused_by_name(dltrain: Command, folder: Path) -> None:
    before = image(folder)
    words = (
        "model.dropout=0.5",
        "data.limit=90",
        "seed=2",
        "batch_size=24",
        "accumulate=2",
        "task.label_smoothing=0.1",
    )
    result = dltrain("train", f"resume={folder}", "epochs=9", *words)
    assert result.code == 2
    keys = sorted(word.partition("=")[0] for word in words)
    assert f"resume: {', '.join(keys)} cannot change in a resumed run" in result.err
    assert "epochs" not in result.err
    assert image(folder) == before


@pytest.mark.parametrize(
    ("word", "values", "fixed"),
    [
        ("optim.lr=${oc.decode:${oc.env:MINE}}", ("0.03", "0.04"), False),
        pytest.param("clip_norm=${oc.decode:${oc.env:MINE}}", ("1.0", "null"), False, marks=pytest.mark.slow),
        pytest.param("seed=${oc.decode:${oc.env:MINE}}", ("3", "4"), True, marks=pytest.mark.slow),
        pytest.param("data.limit=${oc.decode:${oc.env:MINE}}", ("100", "99"), True, marks=pytest.mark.slow),
        ("model.hidden=${oc.decode:${oc.env:MINE}}", ("[8]", "[9]"), True),
    ],
)
def test_a_changed_interpolation_is_reported_or_refused(
    dltrain: Command, monkeypatch: pytest.MonkeyPatch, word: str, values: tuple[str, str], fixed: bool
) -> None:
    key, _, reference = word.partition("=")
    monkeypatch.setenv("MINE", values[0])
    folder = dltrain("train", *HALF, f'{key}="{reference}"').folder
    same = dltrain("train", f"resume={folder}", "limit_steps=6")
    assert (same.code, "resume:" in same.out) == (0, False)
    monkeypatch.setenv("MINE", values[1])
    before = image(folder)
    result = dltrain("train", f"resume={folder}", ON)
    if fixed:
        assert result.code == 2
        assert f"resume: {key} had another value when the run was saved" in result.err
        assert image(folder) == before
    else:
        assert result.code == 0
        assert f"resume: {key} had another value when the run was saved" in result.out
    assert values[0] not in result.err


def test_an_interpolation_of_a_harmless_key_may_change(dltrain: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "2")
    folder = dltrain("train", *HALF, 'log_every="${oc.decode:${oc.env:MINE}}"').folder
    monkeypatch.setenv("MINE", "3")
    result = dltrain("train", f"resume={folder}", ON)
    assert (result.code, "another value" in result.out) == (0, False)


def test_a_reference_to_a_value_of_hydra_is_filled_in_anew_by_each_command(dltrain: Command) -> None:
    folder = dltrain("train", *HALF, "name=${hydra:runtime.choices.model}").folder
    assert folder.name.endswith("-mlp")
    for arguments in (("train", f"resume={folder}", ON), ("eval", f"ckpt={folder}")):
        assert dltrain(*arguments).code == 0, arguments


@pytest.mark.parametrize(("file", "splits"), [("train-images-idx3-ubyte", "train"), ("t10k-labels-idx1-ubyte", "test")])
def test_changed_data_is_refused_with_the_name_of_its_split(
    dltrain: Command, tmp_path: Path, file: str, splits: str
) -> None:
    root = generated.write_mnist(tmp_path / "mine")
    folder = dltrain("train", *HALF, "data=mnist", "data.limit=null", f"data.root={root}").folder
    path = root / "MNIST" / "raw" / file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    before = image(folder)
    result = dltrain("train", f"resume={folder}", ON)
    assert result.code == 66
    assert "resume: the data has changed since (" in result.err
    named = result.err.partition("(")[2].partition(")")[0].split(", ")
    assert set(named) <= {"train", "val"} if splits == "train" else named == ["test"]
    assert image(folder) == before
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    assert dltrain("train", f"resume={folder}", ON).code == 0


PAIRS = list(permutations(("mlp", "lenet", "lstm", "attention"), 2))
TINY = ("data.limit=50", "batch_size=25", "limit_steps=1", "epochs=1")


@pytest.mark.parametrize("pair", some(PAIRS, PAIRS[::4]), ids=" into ".join)
def test_the_weights_of_another_model_are_refused_before_data_is_read(
    dltrain: Command, kept: dict[str, Path], no_data: Callable[[], None], pair: tuple[str, str]
) -> None:
    one, other = pair
    if one not in kept:
        kept[one] = dltrain("train", f"model={one}", *TINY).folder.absolute()
    folder = kept[one]
    before = image(folder)
    no_data()
    started = set(Path("outputs").rglob("*"))
    result = dltrain("train", f"model={other}", *TINY, f"init={folder}")
    assert result.code == 66
    assert "no weight in it matches the model by name and shape; is it for another model?" in result.err
    assert len(result.err.splitlines()) == 1
    assert image(folder) == before
    assert set(Path("outputs").rglob("*")) == started


def test_overrides_of_a_resume_survive_a_kill_before_the_first_step(
    dltrain: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = dltrain("train", *QUICK).folder

    def killed(*arguments: Any, **named: Any) -> Iterator[None]:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("dltrain.training.run.fit", killed)
        assert dltrain("train", f"resume={folder}", "epochs=4", "optim.lr=0.01").code == 1
    assert not (folder / "summary.json").exists(), "it would tell of a run that is done"
    assert dltrain("train", f"resume={folder}").code == 0
    kept = checkpoint.load(last(folder))
    assert (kept["step"], kept["config"]["epochs"], kept["config"]["optim"]["lr"]) == (16, 4, 0.01)


FINE = """
import torch

class Fine(torch.optim.Optimizer):
    def __init__(self, named_parameters, lr: float):
        super().__init__([p for _, p in named_parameters], {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                kept = self.state[p]
                kept.setdefault("mean", torch.zeros_like(p, dtype=torch.float64)).mul_(0.9).add_(p.grad.double())
                p.sub_((group["lr"] * kept["mean"]).float())
"""


def test_a_custom_optimizer_with_higher_precision_state_resumes_to_the_same_bits(dltrain: Command) -> None:
    Path("fine.py").write_text(FINE)
    own = ("optim=custom", "optim.name=fine:Fine", "+optim.lr=0.02", "trust=[fine]")
    whole = dltrain("train", *QUICK, *own).folder
    part = dltrain("train", *HALF, *own).folder
    assert dltrain("train", f"resume={part}", ON, "trust=[fine]").code == 0
    assert weights(part) == weights(whole)
    sys.modules.pop("fine")


def test_lost_records_are_reported(dltrain: Command) -> None:
    folder = dltrain("train", *HALF).folder
    assert "lacks records" not in dltrain("train", f"resume={folder}", "limit_steps=6").out
    (folder / "metrics.jsonl").unlink()
    result = dltrain("train", f"resume={folder}", ON)
    assert (result.code, "lacks records from before step 6" in (folder / "train.log").read_text()) == (0, True)


WRONG: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "missing": (lambda model: model.pop("layers.3.bias"), "layers.3.bias is missing"),
    "extra": (lambda model: model.update(mine=torch.zeros(2)), "the model has no mine"),
    "shape": (
        lambda model: model.update({"layers.3.bias": torch.zeros(9)}),
        "layers.3.bias is torch.float32 (9,), the model has torch.float32 (10,)",
    ),
    "broadcast": (
        lambda model: model.update({"layers.3.bias": torch.zeros(1, 10)}),
        "layers.3.bias is torch.float32 (1, 10), the model has torch.float32 (10,)",
    ),
    "dtype": (
        lambda model: model.update({"layers.3.bias": model["layers.3.bias"].double()}),
        "layers.3.bias is torch.float64 (10,), the model has torch.float32 (10,)",
    ),
    "half": (
        lambda model: model.update({key: value.half() for key, value in model.items()}),
        "layers.1.weight is torch.float16",
    ),
    "another model's": (
        lambda model: [model.pop(key) for key in list(model)] and model.update({"other": torch.zeros(1)}),
        "layers.1.weight is missing; layers.1.bias is missing; layers.3.weight is missing and 2 more",
    ),
}


@pytest.mark.parametrize("command", ["eval", "resume"])
@pytest.mark.parametrize("case", some(WRONG, ("missing", "extra", "shape", "dtype")))
def test_weights_that_do_not_fit_are_named_before_data_is_read(
    dltrain: Command, folder: Path, no_data: Callable[[], None], case: str, command: str
) -> None:
    change, told = WRONG[case]
    for name in ("last.pt", "best.pt"):
        edited(folder / "checkpoints" / name, lambda content: change(content["model"]))
    before = image(folder)
    no_data()
    result = dltrain("eval", f"ckpt={folder}") if command == "eval" else dltrain("train", f"resume={folder}", ON)
    assert result.code == 66
    assert told in result.err
    assert len(result.err.splitlines()) == 1
    assert image(folder) == before


NETS = """
import os, random
import numpy, torch
from torch import nn

class Net(nn.Module):
    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, num_classes))
        self.steps = 0

    def forward(self, x):
        if self.training and torch.is_grad_enabled():
            self.steps += 1
        if self.steps == 7:
            match os.environ.get("FAULT"):
                case "gpu":
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\\nMore\\nand more")
                case "host":
                    raise MemoryError
                case "torch":
                    torch.empty(10**15)
                case "ours":
                    raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
                case "kind":
                    raise NotImplementedError("no such kernel")
        return self.layers(x)

class Drawing(Net):
    def forward(self, x):
        if self.training:
            x = x * (0.5 + random.random()) + float(numpy.random.normal()) / 4 + random.gauss(0, 0.1)
        return self.layers(x)
"""
OWN = ("model=custom", *QUICK[2:], "trust=[my_own_nets]")


@pytest.fixture
def own(dltrain: Command) -> Iterator[Command]:
    """`train` with the networks above."""
    Path("my_own_nets.py").write_text(NETS)
    yield lambda *words: dltrain("train", *words)
    sys.modules.pop("my_own_nets", None)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("gpu", "out of memory: CUDA out of memory. Tried to allocate 20.00 GiB."),
        ("host", "out of memory: MemoryError"),
        ("torch", "can't allocate memory: you tried to allocate 4000000000000000 bytes"),
    ],
)
def test_out_of_memory_is_reported_and_the_last_checkpoint_resumes(
    own: Command, monkeypatch: pytest.MonkeyPatch, fault: str, told: str
) -> None:
    net = (*OWN, "model.name=my_own_nets:Net", "checkpoint_every=2")
    whole = own(*net).folder
    monkeypatch.setenv("FAULT", fault)
    result = own(*net)
    assert result.code == 1
    assert result.err.startswith("error: out of memory: ")
    assert told in result.err
    assert "Lower batch_size and raise accumulate" in result.err
    assert len(result.err.splitlines()) <= 3
    monkeypatch.delenv("FAULT")
    folder = result.folder
    assert checkpoint.load(last(folder))["step"] == 6
    assert own(f"resume={folder}", "trust=[my_own_nets]").code == 0
    assert weights(folder) == weights(whole)


@pytest.mark.parametrize(("fault", "told"), [("ours", "shapes cannot be multiplied"), ("kind", "NotImplementedError")])
def test_another_error_in_user_code_is_not_taken_for_out_of_memory(
    own: Command, monkeypatch: pytest.MonkeyPatch, fault: str, told: str
) -> None:
    monkeypatch.setenv("FAULT", fault)
    result = own(*OWN, "model.name=my_own_nets:Net")
    assert result.code == 1
    assert "out of memory" not in result.err
    assert told in result.err
    assert "at my_own_nets.py:" in result.err


@pytest.mark.parametrize("stop", mostly_slow([1, 4, 6], fast=[4]))
def test_a_network_that_draws_from_random_and_numpy_resumes_to_the_same_bits(own: Command, stop: int) -> None:
    net = (*OWN, "model.name=my_own_nets:Drawing")
    whole = own(*net).folder
    part = own(*net, f"limit_steps={stop}").folder
    random.seed(5)
    numpy.random.seed(5)
    assert own(f"resume={part}", ON, "trust=[my_own_nets]").code == 0
    assert weights(part) == weights(whole)
    assert weights(own(*net, "seed=1").folder) != weights(whole)


def test_too_little_memory_for_the_weights_is_reported_with_what_to_set(
    dltrain: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr("dltrain.training.setup.to_device", fail)
    result = dltrain("train", "model=linear")
    assert result.code == 1
    advice = "Use a smaller model, or device=cpu"
    assert result.err.startswith(f"error: out of memory: CUDA out of memory. Tried to allocate 20.00 GiB\n{advice}\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_missing_cuda_is_reported_in_one_line(dltrain: Command, folder: Path) -> None:
    before = image(folder)
    for words in (QUICK, (f"resume={folder}", ON)):
        result = dltrain("train", *words, "device=cuda")
        assert result.code == 69
        assert result.err.startswith("error: device=cuda: ")
        assert len(result.err.splitlines()) == 1
    assert dltrain("eval", f"ckpt={folder}", "device=cuda").code == 69
    assert image(folder) == before


def test_a_checkpoint_and_the_summary_have_the_same_environment(dltrain: Command, folder: Path) -> None:
    stored = checkpoint.load(last(folder))["environment"]
    versions = json.loads((folder / "summary.json").read_text())["versions"]
    assert {key: stored[key] for key in versions} == versions
    assert (stored["threads"], stored["precision"]) == (1, "fp32")


@pytest.mark.parametrize(
    ("first", "then", "code", "told"),
    [
        (["optim=rmsprop"], ["optim.momentum=0.9"], 0, "optim.momentum changed"),
        (["optim=sgd", "optim.momentum=0"], ["optim.momentum=0.9"], 0, "optim.momentum changed"),
        (["optim=adamw"], ["optim.decay_biases=false"], 2, "optim.decay_biases cannot change in a resumed run"),
        (
            ["optim=sgd", "optim.decay_biases=false", "optim.weight_decay=0"],
            ["optim.weight_decay=0.001"],
            2,
            "optim.weight_decay cannot change from or to 0",
        ),
    ],
)
def test_optimizer_keys_that_may_change_do_and_the_others_are_refused(
    dltrain: Command, first: list[str], then: list[str], code: int, told: str
) -> None:
    folder = dltrain("train", "model=mlp", "data.limit=100", "limit_steps=3", *first).folder
    before = (folder / "checkpoints" / "last.pt").read_bytes()
    result = dltrain("train", f"resume={folder}", "limit_steps=6", *then)
    assert (result.code, told in result.out + result.err) == (code, True), result.err
    assert code == 0 or (folder / "checkpoints" / "last.pt").read_bytes() == before


# --- schedules

# 12 validations of 10 examples, in which the accuracy stagnates again and again.
SCHEDULED = (*QUICK, "epochs=12", "log_every=1", "optim.lr=0.1")
SCHEDULES: dict[str, tuple[str, ...]] = {
    "plateau": ("schedule=plateau", "schedule.patience=1", "schedule.factor=0.5", "schedule.warmup=0.1"),
    "restarts": ("schedule=restarts", "schedule.cycles=3", "schedule.warmup=0.1"),
}


def rates(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["lr"] for line in lines if line["split"] == "train"]


@pytest.mark.parametrize("stop", some(range(1, 48), (32,)))
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_run_with_any_schedule_resumes_to_the_same_bits(
    dltrain: Command, trained: Trained, name: str, stop: int
) -> None:
    words = (*SCHEDULED, *SCHEDULES[name])
    whole, part = trained(*words), dltrain("train", *words, f"limit_steps={stop}").folder
    assert dltrain("train", f"resume={part}", ON).code == 0
    assert weights(part) == weights(whole)
    assert rates(part) == rates(whole)
    assert checkpoint.load(last(part))["progress"]["scores"] == checkpoint.load(last(whole))["progress"]["scores"]


def test_plateau_lowers_the_rate_when_the_validation_accuracy_of_the_records_has_not_improved(
    trained: Trained,
) -> None:
    folder = trained(*SCHEDULED, *SCHEDULES["plateau"])
    lines = list(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()))
    accuracies = [line["accuracy"] for line in lines if line["split"] == "val"]
    expected, best, falls = [], 0.0, 0
    for accuracy in accuracies:
        expected.append(0.1 * 0.5**falls)
        falls += accuracy <= best * 1.0001
        best = max(best, accuracy)
    assert falls >= 2
    assert rates(folder)[4::4] == pytest.approx(expected[1:])  # of the first step of each epoch


def test_without_its_scores_a_run_with_plateau_would_be_another(dltrain: Command, trained: Trained) -> None:
    words = (*SCHEDULED, *SCHEDULES["plateau"])
    part = dltrain("train", *words, "limit_steps=32").folder
    edited(last(part), lambda content: content["progress"].update(scores=[]))
    assert dltrain("train", f"resume={part}", ON).code == 0
    assert rates(part) != rates(trained(*words))


def test_plateau_can_be_chosen_on_resume_and_knows_the_epochs_so_far(dltrain: Command) -> None:
    part = dltrain("train", *SCHEDULED, "schedule=constant", "limit_steps=32").folder
    result = dltrain("train", f"resume={part}", ON, *SCHEDULES["plateau"])
    assert result.code == 0
    assert "schedule.name" in result.out
    assert "changed" in result.out
    assert rates(part)[31] == 0.1
    assert rates(part)[32] < 0.1


def test_a_checkpoint_from_before_there_were_scores_resumes_with_and_without_plateau(
    dltrain: Command, folder: Path
) -> None:
    edited(last(folder), lambda content: content["progress"].pop("scores"))
    assert dltrain("train", f"resume={folder}", "limit_steps=7", *SCHEDULES["plateau"]).code == 0
    edited(last(folder), lambda content: content["progress"].pop("scores"))
    assert dltrain("train", f"resume={folder}", ON, "schedule=onecycle").code == 0


def test_the_seconds_of_a_run_are_those_of_all_its_starts(dltrain: Command, folder: Path) -> None:
    before = checkpoint.load(last(folder))["progress"]["total_seconds"]
    assert 0 < before <= json.loads((folder / "summary.json").read_text())["total_seconds"]
    edited(last(folder), lambda content: content["progress"].update(total_seconds=1000.0))
    assert dltrain("train", f"resume={folder}", ON).code == 0
    found = json.loads((folder / "summary.json").read_text())["total_seconds"]
    assert 1000 < checkpoint.load(last(folder))["progress"]["total_seconds"] <= found < 2000


def test_a_checkpoint_from_before_the_total_seconds_resumes_and_counts_those_since(
    dltrain: Command, folder: Path
) -> None:
    edited(last(folder), lambda content: content["progress"].pop("total_seconds"))
    assert dltrain("train", f"resume={folder}", ON).code == 0
    assert 0 < json.loads((folder / "summary.json").read_text())["total_seconds"] < 1000


@pytest.mark.parametrize("seconds", ["a", None, float("nan"), 10**400])
def test_total_seconds_that_are_no_number_are_refused(dltrain: Command, folder: Path, seconds: object) -> None:
    edited(last(folder), lambda content: content["progress"].update(total_seconds=seconds))
    result = dltrain("train", f"resume={folder}", ON)
    assert result.code == 66
    assert "progress.total_seconds must be a number" in result.err


@pytest.mark.parametrize("scores", [5, ["a"], [float("nan")], [[0.5]], [True]])
def test_scores_that_are_no_numbers_are_refused(dltrain: Command, folder: Path, scores: object) -> None:
    edited(last(folder), lambda content: content["progress"].update(scores=scores))
    result = dltrain("train", f"resume={folder}", ON)
    assert result.code == 66
    assert "progress.scores must be numbers or null" in result.err
