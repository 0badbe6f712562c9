"""Slips of people who know other programs, each answered with what was meant."""

import re
import shlex
from pathlib import Path

import pytest

from dltrain.config import suggestions, synonyms
from support.command import Command

IN_MODELS = "with model=attention, cnn, lstm, mlp"
FIXED = "no such key; only train has it, here the checkpoint fixes it"
SWEEP = "several values make a sweep: add -m"
DEVICES = "no such option; there are cpu, cuda (a GPU), and auto, which takes a GPU if there is one"
OTHER_DEVICES = "no such option; dltrain computes on CPUs and on GPUs of NVIDIA (CUDA) or AMD (ROCm)"
SLIPS = {
    "train dropout=0.5": f"dropout: no such key; there is model.dropout {IN_MODELS} (from",
    "train model.dropout=0.5": f"no such key; there is model.dropout {IN_MODELS} (from",
    "train optim.dropout=0.5": f"no such key; there is model.dropout {IN_MODELS} (from",
    "train dropuot=0.5 model=mlp": "dropuot: no such key; did you mean model.dropout?",
    "train optim.lr=0.1,0.01": f"optim.lr=0.1,0.01: {SWEEP}\n",
    "train model=mlp model.hidden=128,64": f"model.hidden=128,64: {SWEEP}; a list is written model.hidden=[128,64]",
    "train model=mlp,lenet": f"model=mlp,lenet: {SWEEP}\n",
    "train model=mlp,lenet optim.lrr=3": f"{SWEEP}\noptim.lrr: no such key; did you mean optim.lr?",
    "train seed=range(3)": f"seed=range(3): {SWEEP}\n",
    "train model=glob(*)": f"error: model=glob(*): {SWEEP}\n",
    "train -m model=glob(*) optim.lrr=1": "error: optim.lrr: no such key; did you mean optim.lr?",
    "train optim=SGD": "optim=SGD: no such option; did you mean sgd?",
    "train optim=ADAM": "did you mean adam?",
    "train data=MNIST": "did you mean mnist?",
    "train data=FashionMNIST": "did you mean fashion_mnist?",
    "train model=resnet18": "no such option; did you mean model=torchvision model.arch=resnet18?",
    "train model=efficientnet_b0": "did you mean model=torchvision model.arch=efficientnet_b0?",
    "train model=adam": "did you mean optim=adam?",
    "train learning_rate=0.1": "learning_rate: no such key; did you mean optim.lr?",
    "train lr=0.1": "did you mean optim.lr?",
    "train model.lr=0.1": "did you mean optim.lr?",
    "train optim.learning_rate=0.1": "did you mean optim.lr?",
    "train OPTIM.LR=3": "did you mean optim.lr?",
    "train bs=32": "did you mean batch_size?",
    "train batchsize=32": "did you mean batch_size?",
    "train num_workers=4": "no such key; no workers load data, as examples stay in memory",
    "train early_stopping=true": "no such key; patience=N stops after N epochs without a better metric",
    "train weight_decay=0.1": "did you mean optim.weight_decay?",
    "train momentum=0.9": "did you mean optim.momentum?",
    "train optim=adam momentum=0.9": "there is optim.momentum with optim=muon, rmsprop, sgd",
    "train scheduler=cosine": "did you mean schedule?",
    "train optimizer=adam": "did you mean optim?",
    "train dataset=mnist": "did you mean data?",
    "train pretrained=true": "there is model.pretrained with model=torchvision",
    "train amp=true": "did you mean device.precision?",
    "train loss=mse": "task= chooses the loss",
    "train gpu=1": "no such key; device=cuda takes a GPU, and CUDA_VISIBLE_DEVICES chooses which",
    "train device=gpu": DEVICES,
    "train device=rocm": DEVICES,
    "train device=mps": OTHER_DEVICES,
    "eval ckpt=run device=xpu": OTHER_DEVICES,
    "train device=cuda:0": "cuda takes the first GPU, and CUDA_VISIBLE_DEVICES chooses which that is",
    "train 'note=first try, lr halved'": "a text with commas is quoted: \"note='first try, lr halved'\"",
    "train model = mlp": "error: model = mlp: did you mean model=mlp, without spaces?\n",
    "train model= mlp": "error: model= mlp: did you mean model=mlp, without spaces?\n",
    "train model=mlp model.hidden=[128, 64]": "did you mean model.hidden=[128,64], without spaces?\n",
    "train model:mlp": "did you mean model=mlp?",
    "train model": "give it a value, model=VALUE. dltrain train --explain model describes it",
    "train --help model": "dltrain train --explain model describes it",
    "train mnist": "mnist: cannot be read as KEY=VALUE; did you mean data=mnist?",
    "train adm": "did you mean optim=adam?",
    "train foo": "error: foo: cannot be read as KEY=VALUE\n",
    "train my.yaml": "type --config-dir DIR experiment=NAME",
    "train --config my.yaml": "error: --config: save yours as DIR/experiment/NAME.yaml and type --config-dir DIR",
    "train --epochs 3": "--epochs: no such flag; keys have no dashes: epochs=3. ",
    "train --epochs=3": "keys have no dashes: epochs=3. ",
    "train --seed 3 --batch-size 32": "keys have no dashes: seed=3 batch_size=32. ",
    "--epochs=3 train": "--epochs=3: no such command; the command comes first: dltrain train epochs=3\n",
    "model=mlp epochs=3": "the command comes first: dltrain train model=mlp epochs=3\n",
    "trian": "trian: no such command; did you mean train?",
    "help trian": "trian: no such command; did you mean train?",
    "inspect RUN --json": "--json: no such flag; inspect needs one file",
    "train model=mlp model.hidden=128": "did you mean model.hidden=[128]?",
    "train model.hidden=128": "no such key; there is model.hidden with model=autoencoder, cnn, lstm, mlp",
    "train model=mlp model.activation=ReLU": "did you mean model.activation=relu?",
    "train optim.name=adam": "other keys are still those of another option; did you mean optim=adam?",
    "train experiment=mnist_cnn model=lenet": "Leave it out, or add ~model.widths ~model.hidden ~model.batch_norm",
    "train experiment=mnist_cnn model.name=lenet": "error: model=lenet: does not have all keys of the experiment (from",
    "train experiment=mnist_cnn experiment=mnist_mlp": "several in turn: -m experiment=NAME,NAME",
    "train seed=abc": "seed=abc: must be a whole number >= 0",
    "train epochs=1e3": "must be a whole number >= 1; did you mean epochs=1000?",
    "train data.val=10%": "did you mean data.val=0.1?",
    "train patience=None": "did you mean patience=null?",
    "eval ckpt=run data=cifar10": f"data: {FIXED}",
    "eval ckpt=run data.name=cifar10": f"data.name: {FIXED}",
    "eval ckpt=run model=mlp": f"model: {FIXED}",
    "eval ckpt=run epochs=3": f"epochs: {FIXED}",
    "predict ckpt=run input=a.png optim.lr=3": f"optim.lr: {FIXED}",
    "eval checkpoint=run": "checkpoint: no such key; did you mean ckpt?",
    "predict ckpt=run images=a": "images: no such key; did you mean input?",
}


@pytest.mark.parametrize("line", SLIPS)
def test_a_slip_is_answered_with_what_was_meant(dltrain: Command, line: str) -> None:
    result = dltrain(*(line.split() if " = " in line or "[" in line or "= " in line else shlex.split(line)))
    assert (result.code, result.out) == (2, "")
    assert SLIPS[line] in result.err
    assert len(result.err.splitlines()) <= 3
    assert not Path("outputs").exists()


EXPERIMENTS = {
    "# @package _global_\ndefaults:\n  - /model: mlp\n": "model: must be chosen by `- override /model: mlp`",
    "# @package _global_\nmodel:\n  dropout: 0.5\n": f"there is model.dropout {IN_MODELS} (from",
    "\ufeff# @package _global_\nepochs: abc\n": "epochs=abc: must be a whole number",  # the first line is read
}


@pytest.mark.parametrize("text", EXPERIMENTS)
def test_a_slip_in_an_experiment_is_answered_with_what_was_meant(dltrain: Command, tmp_path: Path, text: str) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(text, encoding="utf-8")
    result = dltrain("train", "--config-dir", str(tmp_path), "experiment=mine")
    assert (result.code, EXPERIMENTS[text] in result.err) == (2, True), result.err


def test_every_option_of_a_group_is_swept_over_but_custom(dltrain: Command) -> None:
    result = dltrain("train", "-m", "optim=glob(*)", "sweep.dry=true")
    assert (result.code, re.findall("optim=(\\w+)", result.out)) == (0, ["adam", "adamw", "muon", "rmsprop", "sgd"])


def test_help_of_a_command_can_be_asked_for_in_either_order(dltrain: Command) -> None:
    assert dltrain("help", "list").out == dltrain("list", "--help").out


def test_synonyms_are_folded_and_mean_one_thing_each() -> None:
    for table in (synonyms.KEYS, synonyms.ADVICE, synonyms.OPTIONS):
        names = [name for line in table.splitlines() for name in line.rpartition(": ")[2].split()]
        assert len(names) == len(set(names))
        assert all(synonyms.fold(name) == name for name in names)
    assert suggestions.of_key("learning-rate", ["optim.lr"]) == "; did you mean optim.lr?"
