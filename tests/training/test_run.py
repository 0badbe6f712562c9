"""A training run from the command line: what it leaves behind, and how it stops, resumes and starts from weights."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dltrain.checkpoints import checkpoint
from dltrain.config.composition import compose
from dltrain.runtime.errors import ConfigError
from dltrain.training.run import train
from support.command import Command
from support.tiers import mostly_slow

WITH_PAGE = ("model=mlp", "model.hidden=[16]", "data.limit=200", "epochs=3", "log_every=2", "batch_size=32")
QUICK = (*WITH_PAGE, "report=false", "logger=none")


def lines(folder: Path) -> list[dict[str, Any]]:
    """Records of a run without what depends on the clock."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "examples_per_second"} for line in found]


def weights(folder: Path, name: str = "last.pt") -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / name, weights_only=True)["model"]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_the_default_run_learns_the_digits(dltrain: Command) -> None:
    result = dltrain("train")
    summary = json.loads((result.folder / "summary.json").read_text())
    assert result.code == 0
    assert summary["test"]["accuracy"] >= 0.95


def test_a_run_writes_the_promised_files(dltrain: Command) -> None:
    folder = dltrain("train", *WITH_PAGE, "name=my run").folder
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    expected = {".hydra/config.yaml", "checkpoints/last.pt", "checkpoints/best.pt"}
    expected |= {".hydra/origins.json", "analysis.json", "report.html"}
    events = [path for path in left if path.startswith("tensorboard/events.out.tfevents.")]
    assert len(events) == 1
    expected |= set(events)
    assert left == expected | {
        "metrics.jsonl",
        "summary.json",
        "train.log",
        "checkpoints/last-1.pt",
        ".lock",
        "packages.txt",
    }
    assert folder.parent.parent == Path("outputs")
    assert folder.name.endswith("-my_run")
    assert not Path("multirun.yaml").exists()


def test_the_stored_config_is_the_composed_one_with_unresolved_interpolations(
    dltrain: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_RATE", "0.03")
    folder = dltrain("train", *QUICK, 'optim.lr="${oc.decode:${oc.env:MY_RATE}}"').folder
    stored = yaml.safe_load((folder / ".hydra" / "config.yaml").read_text())
    assert stored["optim"]["lr"] == "${oc.decode:${oc.env:MY_RATE}}"
    assert stored["model"]["hidden"] == [16]
    assert lines(folder)[0]["lr"] < 0.03  # filled in for the run: a text would have been refused


def test_records_have_the_promised_keys_and_order(dltrain: Command) -> None:
    folder = dltrain("train", *QUICK).folder
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    keys = {"split", "step", "epoch", "loss", "accuracy"}
    assert all(
        set(line) == keys | ({"lr", "examples_per_second"} if line["split"] == "train" else set()) for line in found
    )
    assert [line["step"] for line in found if line["split"] == "val"] == [6, 12, 18]
    assert [line["step"] for line in found if line["split"] == "train"] == list(range(2, 19, 2))
    assert found[-1]["split"] == "test"
    assert all(0 <= line["accuracy"] <= 1 for line in found)


def test_the_summary_has_the_promised_keys(dltrain: Command) -> None:
    summary = json.loads((dltrain("train", *QUICK).folder / "summary.json").read_text())
    promised = {"test", "val", "best", "train_seconds", "total_seconds", "examples_per_second", "parameters", "status"}
    assert promised | {"versions", "hardware", "git"} <= set(summary)
    assert summary["status"] == "done"
    assert summary["parameters"] == 784 * 16 + 16 + 16 * 10 + 10
    assert all({"loss", "accuracy"} <= set(summary[split]) for split in ("test", "val", "best"))


def test_the_same_command_gives_the_same_bits(dltrain: Command) -> None:
    arguments = ("train", *QUICK, "model.dropout=0.3", "data.crop=2", "data.flip=true")
    one, two = dltrain(*arguments).folder, dltrain(*arguments).folder
    assert one != two
    assert equal(weights(one), weights(two))
    assert lines(one) == lines(two)


def test_another_seed_gives_other_weights(dltrain: Command) -> None:
    assert not equal(weights(dltrain("train", *QUICK).folder), weights(dltrain("train", *QUICK, "seed=1").folder))


def test_best_holds_the_weights_of_the_best_epoch_and_is_tested(dltrain: Command) -> None:
    # A rate that grows too large: the best epoch is not the last.
    folder = dltrain("train", *QUICK, "epochs=6", "optim.lr=0.9", "schedule=constant", "schedule.warmup=0.9").folder
    val = [line for line in lines(folder) if line["split"] == "val"]
    best = max(val, key=lambda line: (line["accuracy"], -line["loss"]))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["best"]["step"] == best["step"] < val[-1]["step"]
    assert not equal(weights(folder), weights(folder, "best.pt"))
    assert dltrain("eval", f"ckpt={folder}").code == 0
    figures = json.loads((folder / "checkpoints" / "eval.json").read_text())
    assert figures["accuracy"] == summary["test"]["accuracy"]


def test_without_validation_best_is_last(dltrain: Command) -> None:
    folder = dltrain("train", *QUICK, "data.val=0").folder
    assert equal(weights(folder), weights(folder, "best.pt"))


def test_log_lines_are_not_doubled_also_after_another_run(dltrain: Command) -> None:
    dltrain("train", *QUICK)
    result = dltrain("train", *QUICK)
    for text in (result.out, (result.folder / "train.log").read_text()):
        assert text.count("parameters") == 1
        assert text.count("epoch 2/3") == 1


def test_without_a_terminal_the_lines_are_plain(dltrain: Command) -> None:
    result = dltrain("train", *QUICK)
    assert "\x1b" not in result.out
    assert "\r" not in result.out
    assert "epoch 3/3 step 18: train loss" in result.out


def test_limit_steps_stops_there(dltrain: Command) -> None:
    folder = dltrain("train", *QUICK, "limit_steps=7").folder
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("limit_steps", 7)


def test_a_run_without_a_record_reports_no_speed(dltrain: Command) -> None:
    folder = dltrain("train", *QUICK, "limit_steps=1").folder
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["train_seconds"], summary["examples_per_second"]) == (None, None)
    assert summary["total_seconds"] > 0


def test_max_seconds_stops_at_the_next_step(dltrain: Command) -> None:
    folder = dltrain("train", *QUICK, "max_seconds=0.000001").folder
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("max_seconds", 1)


def test_patience_stops_after_epochs_without_improvement(dltrain: Command) -> None:
    folder = dltrain("train", *QUICK, "epochs=50", "patience=2", "optim.lr=1e-12").folder
    summary = json.loads((folder / "summary.json").read_text())
    val = [line for line in lines(folder) if line["split"] == "val"]
    best = max(range(len(val)), key=lambda index: (val[index]["accuracy"], -val[index]["loss"]))
    assert summary["status"] == "patience"
    assert len(val) == best + 1 + 2


STOPS = [*(("mlp", stop) for stop in (1, 3, 6, 11, 17)), ("lenet", 7), ("lstm", 9), ("attention", 3)]
SOME_SLOW = [pytest.param(*at, marks=[] if at == ("lstm", 9) else pytest.mark.slow) for at in STOPS]


@pytest.mark.parametrize(("model", "stop"), SOME_SLOW)
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(dltrain: Command, model: str, stop: int) -> None:
    arguments = ["train", f"model={model}", "data.limit=200", "epochs=3", "log_every=2", "batch_size=32"]
    arguments += ["report=false", "logger=none", "data.crop=2", *(["model.dropout=0.2"] if model != "lenet" else [])]
    whole = dltrain(*arguments).folder
    first = dltrain(*arguments, f"limit_steps={stop}")
    stopped = first.folder
    resumed = dltrain("train", f"resume={stopped}", "limit_steps=null")
    assert (first.code, resumed.code) == (0, 0)
    assert resumed.folder == stopped
    assert equal(weights(whole), weights(stopped))
    assert equal(weights(whole, "best.pt"), weights(stopped, "best.pt"))
    assert lines(whole) == lines(stopped)


@pytest.mark.parametrize("stop", mostly_slow([1, 5, 8, 10], fast=[5]))
def test_a_resumed_run_sees_the_same_augmented_images(dltrain: Command, stop: int) -> None:
    arguments = [
        "train",
        "model=resnet",
        "model.widths=[4]",
        "model.blocks=1",
        "data.limit=100",
        "epochs=3",
        "log_every=2",
    ]
    arguments += ["batch_size=25", "data.crop=1", "data.flip=alternate", "data.rotate=15", "data.elastic=0.7"]
    arguments += ["data.cutout=2", "data.mixup=0.4", "data.cutmix=1", "schedule=triangular"]
    whole = dltrain(*arguments).folder
    stopped = dltrain(*arguments, f"limit_steps={stop}").folder
    assert dltrain("train", f"resume={stopped}", "limit_steps=null").code == 0
    assert equal(weights(whole), weights(stopped))
    assert lines(whole) == lines(stopped)


def test_a_resumed_run_sees_the_same_colours_windows_and_policy(dltrain: Command) -> None:
    arguments = ["train", "model=cnn", "model.widths=[4]", "data.limit=60", "epochs=2", "log_every=2", "batch_size=13"]
    arguments += ["data.augment=strong", "data.brightness=0.3", "data.contrast=0.2", "data.rotate=5", "report=false"]
    first = dltrain(*arguments)
    assert "augment resized_crop=0.5 rotate=5 policy=trivial brightness=0.3 contrast=0.2 erase=0.25" in first.out
    stopped = dltrain(*arguments, "limit_steps=6").folder
    assert dltrain("train", f"resume={stopped}", "limit_steps=null").code == 0
    assert equal(weights(first.folder), weights(stopped))
    assert lines(first.folder) == lines(stopped)


@pytest.mark.parametrize("count, code", [(129, 2), (130, 0), (128, 0)])
def test_a_last_batch_of_one_is_refused_if_batch_norm_sees_a_single_pixel(
    dltrain: Command, count: int, code: int
) -> None:
    words = ["train", f"data.limit={count}", "data.val=0", "epochs=1", "batch_size=64", "limit_steps=3"]
    result = dltrain(*words, "model=resnet", "model.widths=[4,4,4,4,4,4]", "model.blocks=1")
    assert result.code == code
    assert ("129 examples leave a single one in the last batch" in result.err) == (code == 2)
    assert dltrain(*words, "model=cnn", "model.widths=[4]", "model.batch_norm=true").code == 0


@pytest.mark.parametrize("key", mostly_slow(["head_factor", "bias_factor", "norm_factor"], fast=["bias_factor"]))
def test_learning_rate_factors_are_kept_in_a_resumed_run(dltrain: Command, key: str) -> None:
    folder = dltrain("train", *QUICK, "optim.bias_factor=2", "limit_steps=6").folder
    result = dltrain("train", f"resume={folder}", "limit_steps=null", f"optim.{key}=3")
    assert (result.code, f"optim.{key} cannot change" in result.err) == (2, True)
    assert dltrain("train", f"resume={folder}", "limit_steps=null").code == 0


def test_a_model_initialized_from_images_gets_those_of_the_training_set(dltrain: Command) -> None:
    words = ["train", "model=fastnet", "model.widths=[8]", "data.limit=100", "epochs=1", "limit_steps=1"]
    first = weights(dltrain(*words).folder)["whiten.weight"]
    assert torch.equal(first[:4], -first[4:])
    assert not torch.equal(first, weights(dltrain(*words, "data.limit=50").folder)["whiten.weight"])


def test_resume_continues_to_more_epochs_and_reports_what_changed(dltrain: Command) -> None:
    folder = dltrain("train", *QUICK).folder
    result = dltrain("train", f"resume={folder}", "epochs=5")
    assert "resume: epochs changed" in result.out
    assert lines(folder)[-1]["split"] == "test"
    assert [line["step"] for line in lines(folder) if line["split"] == "val"] == [6, 12, 18, 24, 30]


def test_resume_accepts_a_new_learning_rate(dltrain: Command) -> None:
    folder = dltrain("train", *QUICK, "schedule=constant", "limit_steps=6").folder
    dltrain("train", f"resume={folder}", "limit_steps=null", "optim.lr=0.007")
    rates = [line["lr"] for line in lines(folder) if line["split"] == "train"]
    assert (rates[0], rates[-1]) == (0.05, 0.007)


def test_resume_knows_the_keys_of_the_run_s_own_options(dltrain: Command) -> None:
    folder = dltrain("train", *QUICK, "optim=adam", "schedule=cosine", "limit_steps=6").folder
    result = dltrain("train", f"resume={folder}", "limit_steps=null", "optim.beta1=0.8", "schedule.final=0.1")
    assert result.code == 0
    assert "resume: optim.beta1, schedule.final changed" in result.out


def test_resume_of_another_model_or_data_is_refused_by_name(dltrain: Command) -> None:
    folder = dltrain("train", *QUICK).folder
    result = dltrain("train", f"resume={folder}", "model.hidden=[8]", "data.val=0.2", "seed=3", "accumulate=2")
    assert result.code == 2
    assert "resume: accumulate, data.val, model.hidden, seed cannot change in a resumed run" in result.err
    result = dltrain("train", f"resume={folder}", "~optim.nesterov")
    assert result.code == 2
    assert "optim.nesterov: cannot be removed" in result.err


def test_resume_works_from_inside_the_run_folder_and_by_its_checkpoint(
    dltrain: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = dltrain("train", *QUICK, "limit_steps=5").folder.absolute()
    monkeypatch.chdir(folder / "checkpoints")
    assert dltrain("train", "resume=last.pt", "limit_steps=7").code == 0
    assert json.loads((folder / "summary.json").read_text())["steps"] == 7
    assert not (folder / "checkpoints" / "metrics.jsonl").exists()


def test_resume_of_best_or_of_a_copy_is_code_66(dltrain: Command) -> None:
    folder = dltrain("train", *QUICK).folder
    Path("copy.pt").write_bytes((folder / "checkpoints" / "last.pt").read_bytes())
    for path in (folder / "checkpoints" / "best.pt", "copy.pt"):
        result = dltrain("train", f"resume={path}")
        assert (result.code, "only last.pt in the folder of a run can be resumed" in result.err) == (66, True)
    assert not Path("metrics.jsonl").exists()


def test_a_reached_limit_still_holds_after_a_resume(dltrain: Command) -> None:
    folder = dltrain("train", *QUICK, "limit_steps=5").folder
    before = weights(folder)
    assert dltrain("train", f"resume={folder}").code == 0
    assert json.loads((folder / "summary.json").read_text())["steps"] == 5
    assert equal(weights(folder), before)


def test_a_complete_run_is_done_whatever_its_limit(dltrain: Command) -> None:
    folder = dltrain("train", *QUICK, "limit_steps=18").folder
    assert json.loads((folder / "summary.json").read_text())["status"] == "done"


def test_an_override_that_resume_does_not_allow_is_code_2(dltrain: Command) -> None:
    folder = dltrain("train", *QUICK).folder
    for word in ("experiment=textbook/cnn_mnist", "init=other.pt", "name=new"):
        result = dltrain("train", f"resume={folder}", word)
        key = word.partition("=")[0]
        assert (result.code, f"resume: {key} cannot be combined with it" in result.err) == (2, True)
    assert "epochs=1: the run has already done 3.00 epochs" in dltrain("train", f"resume={folder}", "epochs=1").err
    assert "resume=123: must be the folder of a run" in dltrain("train", "resume=123").err


def test_resume_of_a_missing_folder_is_code_66(dltrain: Command) -> None:
    Path("empty").mkdir()
    assert dltrain("train", "resume=nowhere").code == 66
    result = dltrain("train", "resume=empty")
    assert (result.code, "expected checkpoints/last.pt in it" in result.err) == (66, True)


def test_init_starts_from_the_weights_of_a_checkpoint(dltrain: Command) -> None:
    first = dltrain("train", *QUICK).folder
    second = dltrain("train", *QUICK, f"init={first}/checkpoints/last.pt", "optim.lr=1e-30").folder
    assert equal(weights(first), weights(second))
    third = dltrain("train", *QUICK, f"init={first}", "optim.lr=1e-30").folder
    assert equal(weights(first, "best.pt"), weights(third))


def test_init_from_a_bare_state_dict_reports_what_did_not_match(dltrain: Command) -> None:
    first = weights(dltrain("train", *QUICK).folder)
    changed = {key: value for key, value in first.items() if key != "layers.3.bias"}
    changed["layers.3.weight"] = torch.zeros(7, 16)
    torch.save(changed | {"extra": torch.zeros(3)}, "model.pth")
    result = dltrain("train", *QUICK, "init=model.pth", "optim.lr=1e-30")
    assert "init: extra (3,): not in the model" in result.out
    assert "init: layers.3.bias (10,): not in the file, left as initialised" in result.out
    assert "init: layers.3.weight: (7, 16) in the file, (10, 16) in the model" in result.out
    assert torch.equal(weights(result.folder)["layers.1.weight"], first["layers.1.weight"])


def test_init_from_foreign_weights_is_code_66(dltrain: Command) -> None:
    torch.save({"other": torch.zeros(3)}, "model.pth")
    result = dltrain("train", *QUICK, "init=model.pth")
    assert (result.code, "no weight in it matches the model" in result.err) == (66, True)


def test_divergence_ends_the_run_with_the_loss_and_advice(dltrain: Command) -> None:
    result = dltrain("train", *QUICK, "optim.lr=1e30", "schedule=constant")
    assert result.code == 1
    assert "first in the output of layers.3 (Linear)\nLower optim.lr or set clip_norm" in result.err
    assert "not finite at step 2" in (result.folder / "train.log").read_text()
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR2, 143, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_a_resume_continues_identically(dltrain: Command, number: int, code: int) -> None:
    arguments = ["train", *QUICK, "epochs=4000", "data.crop=1", "log_every=100000", "schedule=constant"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dltrain", *arguments, "device.threads=1"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    printed = []
    for line in process.stdout:
        printed.append(line)
        if line.startswith("epoch"):
            break
    process.send_signal(number)
    printed += process.stdout.readlines()
    process.stdout.close()
    assert process.wait() == code
    folder = Path(next(line for line in printed if line.startswith("folder")).split()[1])
    steps = json.loads((folder / "summary.json").read_text())["steps"]
    end = -(-steps // 6) + 2
    assert dltrain("train", f"resume={folder}", f"limit_steps={6 * end}").code == 0
    whole = dltrain(*arguments, f"limit_steps={6 * end}", "device.threads=1").folder
    assert equal(weights(whole), weights(folder))


def test_checkpoints_are_written_at_the_interval(dltrain: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from dltrain.checkpoints import checkpoint

    saved = []
    real = checkpoint.save

    def save(path: Path, content: dict[str, Any], **options: Any) -> None:
        saved.append(path.name)
        real(path, content, **options)

    monkeypatch.setattr(checkpoint, "save", save)
    dltrain("train", *QUICK, "checkpoint_every=5")
    assert saved.count("last.pt") == 1 + 3 + 1  # the start, steps 5, 10, 15 and the end


def test_a_custom_model_trains(dltrain: Command) -> None:
    Path("my_nets.py").write_text(
        "from torch import nn\n"
        "class Tiny(nn.Module):\n"
        "    '''Mine.'''\n"
        "    def __init__(self, input_shape, num_classes, width=8):\n"
        "        super().__init__()\n"
        "        hidden = nn.Linear(784, width), nn.ReLU()\n"
        "        self.layers = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, num_classes))\n"
        "    def forward(self, x):\n"
        "        return self.layers(x)\n"
    )
    own = ("model=custom", "model.name=my_nets:Tiny")
    folder = dltrain("train", *own, "+model.width=9", "trust=[my_nets]", *QUICK[2:]).folder
    assert weights(folder)["layers.1.weight"].shape == (9, 784)
    result = dltrain("train", *own, "+model.widht=9", *QUICK[2:])
    assert (result.code, "did you mean model.width?" in result.err) == (2, True)
    result = dltrain("eval", f"ckpt={folder}")
    assert result.code == 2
    assert "the checkpoint wants to run my_nets:Tiny. If you trust that code, add trust=[my_nets]" in result.err
    assert dltrain("eval", f"ckpt={folder}", "trust=[my_nets]").code == 0
    # What the checkpoint itself says of trust counts for nothing.
    assert dltrain("train", f"resume={folder}", "epochs=4").code == 2
    assert dltrain("train", f"resume={folder}", "epochs=4", "trust=my_nets").code == 0
    sys.modules.pop("my_nets")


def test_custom_data_and_a_custom_optimizer_train(dltrain: Command) -> None:
    Path("my_parts.py").write_text(
        "import torch\n"
        "def blobs(split, count=60):\n"
        "    if split == 'val':\n"
        "        return None\n"
        "    labels = torch.arange(count) % 3\n"
        "    return (labels.view(-1, 1, 1, 1) * 80).expand(-1, 1, 6, 6).to(torch.uint8), labels, ['a', 'b', 'c']\n"
        "def plain(named_parameters, lr):\n"
        "    return torch.optim.SGD([p for _, p in named_parameters], lr=lr)\n"
    )
    parts = ["data=custom", "data.name=my_parts:blobs", "+data.count=90", "optim=custom", "optim.name=my_parts:plain"]
    result = dltrain("train", *parts, "+optim.lr=0.5", "model=linear", "epochs=20", "batch_size=8")
    summary = json.loads((result.folder / "summary.json").read_text())
    assert summary["test"]["accuracy"] == 1.0
    sys.modules.pop("my_parts")


def test_a_file_missing_in_user_code_is_a_missing_input(dltrain: Command) -> None:
    Path("my_files.py").write_text("def pictures(split):\n    return open('nowhere.bin')\n")
    result = dltrain("train", "data=custom", "data.name=my_files:pictures")
    assert (result.code, "nowhere.bin: No such file" in result.err) == (66, True)
    sys.modules.pop("my_files")


def test_a_resume_from_python_must_name_the_overridden_keys(dltrain: Command) -> None:
    folder = str(dltrain("train", *QUICK).folder)
    with pytest.raises(ConfigError, match="name them"):
        train(compose("train", [f"resume={folder}", "epochs=4"]))
    steps = train({"resume": folder}, typed=[])["steps"]
    assert train({"resume": folder, "epochs": 4}, typed=["epochs"])["steps"] == steps // 3 * 4


def test_a_custom_data_function_may_name_its_keys_freely(dltrain: Command) -> None:
    Path("my_birds.py").write_text(
        "import torch\n"
        "def birds(which, *, seed, source='x', **options):\n"
        "    assert (seed, source, options) == (5, 'lake', {'more': 1}), (seed, source, options)\n"
        "    return torch.zeros(9, 1, 6, 6, dtype=torch.uint8), torch.arange(9) % 3, ['a', 'b', 'c']\n"
    )
    words = ["data=custom", "data.name=my_birds:birds", "model=linear", "epochs=1"]
    missing = dltrain("train", *words)
    assert (missing.code, "data.seed is required" in missing.err, "split" in missing.err) == (2, True, False)
    assert dltrain("train", *words, "+data.seed=5", "+data.source=lake", "+data.more=1").code == 0
    sys.modules.pop("my_birds")


DATA = """
import torch

def strange(split):
    labels = torch.arange(30) % (4 if split == "test" else 3)
    return torch.zeros(30, 1, 6, 6, dtype=torch.uint8), labels, None

def drawn(split):
    return torch.randint(0, 255, (30, 1, 6, 6)).to(torch.uint8), torch.arange(30) % 3, ["a", "b", "c"]

def pair(split):
    return torch.zeros(30, 1, 6, 6, dtype=torch.uint8), torch.arange(30) % 3

def arrays(split):
    return drawn(split)[0].numpy(), drawn(split)[1].numpy(), ["a", "b", "c"]
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("strange", "data: the test split has the classes 0, 1, 2, 3; the model was trained on 0, 1, 2, in that order"),
        ("pair", "data: expected (images, labels, class names), the first two tensors; got (Tensor, Tensor)"),
        ("arrays", "got (ndarray, ndarray, list)"),
    ],
)
def test_faulty_custom_data_is_code_66_before_training(dltrain: Command, name: str, message: str) -> None:
    Path("my_data.py").write_text(DATA)
    result = dltrain("train", "data=custom", f"data.name=my_data:{name}", "model=linear", "data.val=0")
    sys.modules.pop("my_data")
    assert (result.code, message in result.err) == (66, True)
    assert not Path("outputs").exists()


def test_random_custom_data_is_the_same_in_each_run(dltrain: Command) -> None:
    Path("my_data.py").write_text(DATA)
    arguments = ("train", "data=custom", "data.name=my_data:drawn", "model=linear", "epochs=1", "data.val=0")
    one, two = dltrain(*arguments).folder, dltrain(*arguments).folder
    sys.modules.pop("my_data")
    assert lines(one) == lines(two)


def test_an_optimizer_of_torch_can_be_named(dltrain: Command) -> None:
    own = ("optim=custom", "optim.name=torch.optim:Adagrad", "+optim.lr=0.02")
    folder = dltrain("train", *QUICK, *own).folder
    assert json.loads((folder / "summary.json").read_text())["status"] == "done"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit(0)", "cannot import faulty (SystemExit: 0)"),
        ("def Net(**kwargs): return 5", "expected a torch.nn.Module, got int"),
        ("def Net(input_shape): return 1 / 0", "model=faulty:Net cannot be built"),
    ],
)
def test_faulty_user_code_is_code_2_and_reported(dltrain: Command, code: str, message: str) -> None:
    Path("faulty.py").write_text(code)
    result = dltrain("train", "model=custom", "model.name=faulty:Net")
    sys.modules.pop("faulty", None)
    assert (result.code, message in result.err) == (2, True)


def test_batch_norm_with_one_example_left_over_is_refused_before_training(dltrain: Command) -> None:
    arguments = ("train", "model=mlp", "model.batch_norm=true", "data.val=0", "epochs=1")
    result = dltrain(*arguments, "data.limit=65", "batch_size=64")
    assert (result.code, "65 examples leave a single one in the last batch" in result.err) == (2, True)
    assert dltrain(*arguments, "data.limit=66", "batch_size=64").code == 0
    assert dltrain(*arguments, "data.limit=68", "batch_size=32", "accumulate=2").code == 0
    assert dltrain(*arguments, "data.limit=67", "batch_size=32", "accumulate=2").code == 2


def test_training_from_python_takes_a_composed_dict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    summary = train(compose("train", [*QUICK]))
    assert Path(summary["folder"], "summary.json").is_file()
    with pytest.raises(ConfigError, match=r"optim\.lr=-1: must be a number > 0"):
        train(compose("train", [*QUICK, "optim.lr=-1"]))


def test_two_runs_in_one_second_get_two_folders(dltrain: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = time.localtime()
    monkeypatch.setattr(time, "localtime", lambda *_: moment)
    first, second = dltrain("train", *QUICK).folder, dltrain("train", *QUICK).folder
    assert second.name == f"{first.name}-2"


def test_the_linear_regression_finds_the_weight_two(dltrain: Command) -> None:
    folder = dltrain("train", "experiment=textbook/linear_regression").folder
    found = weights(folder)
    assert found["layer.weight"].item() == pytest.approx(2.0, abs=1e-4)
    assert found["layer.bias"].item() == pytest.approx(0.0, abs=1e-4)


def test_bf16_trains_and_is_kept_by_eval(dltrain: Command) -> None:
    folder = dltrain("train", *QUICK, "device.precision=bf16").folder
    assert "bf16" in json.loads((folder / "summary.json").read_text())["device"]
    dltrain("eval", f"ckpt={folder}")
    assert "bf16" in json.loads((folder / "checkpoints" / "eval.json").read_text())["device"]


def test_threads_are_kept_by_resume(dltrain: Command) -> None:
    folder = dltrain("train", *QUICK, "device.threads=1", "limit_steps=3").folder
    torch.set_num_threads(os.cpu_count() or 1)
    result = dltrain("train", f"resume={folder}", "limit_steps=null")
    assert "cpu, 1 thread, fp32" in result.out


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_every_model_trains_evaluates_and_resumes_on_cuda(dltrain: Command) -> None:
    for model in ("linear", "mlp", "lenet", "cnn", "resnet", "fastnet", "lstm", "attention"):
        folder = dltrain("train", f"model={model}", "device=cuda", "epochs=2", "limit_steps=30").folder
        assert dltrain("train", f"resume={folder}", "limit_steps=null").code == 0
        assert dltrain("eval", f"ckpt={folder}", "device=cuda").code == 0


@pytest.mark.parametrize(
    "words", [("data.val=0", "log_every=2"), pytest.param(("data.val=0.1", "log_every=100"), marks=pytest.mark.slow)]
)
def test_a_test_between_two_records_is_recorded_with_its_step(dltrain: Command, words: tuple[str, ...]) -> None:
    folder = dltrain("train", "model=mlp", "model.hidden=[8]", "limit_steps=3", *words).folder
    for steps in (3, 5):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if line["split"] == "test"][-1] == steps
        best, last = (torch.load(folder / "checkpoints" / name, weights_only=True) for name in ("best.pt", "last.pt"))
        assert all(torch.equal(best["model"][key], value) for key, value in last["model"].items())
        assert best["best"]["step"] == last["step"] == json.loads((folder / "summary.json").read_text())["best"]["step"]
        assert dltrain("train", f"resume={folder}", "limit_steps=5").code == 0


def test_a_signal_in_the_very_last_save_is_an_interruption(dltrain: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(path: Path, content: dict[str, Any], **options: Any) -> None:
        real(path, content, **options)
        if content.get("step") == 2:
            signal.raise_signal(signal.SIGTERM)

    real = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", save)
    result = dltrain("train", "model=mlp", "data.limit=20", "data.val=0", "batch_size=10", "epochs=1")
    assert result.code == 143
    assert json.loads((result.folder / "summary.json").read_text())["status"] == "interrupted"


def test_a_crop_that_could_leave_nothing_of_an_image_is_refused(dltrain: Command) -> None:
    result = dltrain("train", "data=digits", "data.crop=28")
    message = "error: data.crop=28: must be less than the 28 pixels of the images' side\n"
    assert (result.code, message in result.err) == (2, True)
    assert not Path("outputs").exists()
