"""`train --summary` counts as one does by hand, checks as a run does, and leaves nothing behind."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from support.command import Command


def summary(dltrain: Command, *words: str) -> dict[str, Any]:
    result = dltrain("train", "--summary", "--json", *words)
    assert result.code == 0, result.err
    found: dict[str, Any] = json.loads(result.out)
    return found


def rows(found: dict[str, Any], *types: str) -> list[tuple[list[int], int, int]]:
    """Output shape, parameters and FLOPs of the layers of some types."""
    layers = [layer for layer in found["layers"] if layer["type"] in types]
    return [(layer["output_shape"], layer["parameters"], layer["flops"]) for layer in layers]


def test_an_mlp_is_counted_as_by_hand(dltrain: Command) -> None:
    found = summary(dltrain, "model=mlp", "batch_size=32")
    # A product of (1, i) and (i, o) is i * o multiplications and as many additions; its bias is not counted.
    assert rows(found, "Linear") == [
        ([1, 128], 784 * 128 + 128, 2 * 784 * 128),
        ([1, 64], 128 * 64 + 64, 2 * 128 * 64),
        ([1, 10], 64 * 10 + 10, 2 * 64 * 10),
    ]
    assert [layer["name"] for layer in found["layers"]] == [f"layers.{index}" for index in range(6)]
    assert (found["parameters"], found["trainable"], found["flops"]) == (109_386, 109_386, 218_368)
    assert found["bytes"] == 4 * 109_386
    assert found["input_shape"] == [32, 1, 28, 28]


def test_a_lenet_is_counted_as_by_hand(dltrain: Command) -> None:
    found = summary(dltrain, "model=lenet")
    assert rows(found, "Conv2d", "Linear") == [
        ([1, 6, 28, 28], 6 * 25 + 6, 2 * 6 * 25 * 28 * 28),
        ([1, 16, 10, 10], 16 * 6 * 25 + 16, 2 * 16 * 6 * 25 * 10 * 10),
        ([1, 120], 400 * 120 + 120, 2 * 400 * 120),
        ([1, 84], 120 * 84 + 84, 2 * 120 * 84),
        ([1, 10], 84 * 10 + 10, 2 * 84 * 10),
    ]
    assert (found["parameters"], found["flops"]) == (61_706, 833_040)


@pytest.mark.parametrize(("cell", "gates"), [("lstm", 4), ("gru", 3), ("rnn", 1)])
def test_a_recurrent_layer_is_counted_in_all_its_steps(dltrain: Command, cell: str, gates: int) -> None:
    found = summary(dltrain, "model=lstm", f"model.cell={cell}", "model.hidden=16", "model.bidirectional=true")
    # 28 rows of 28 pixels, two directions: weights of the input and of the state, two biases.
    per_direction = gates * 16 * (28 + 16 + 2), 28 * 2 * gates * 16 * (28 + 16)
    assert rows(found, cell.upper()) == [([1, 28, 32], 2 * per_direction[0], 2 * per_direction[1])]


def test_attention_operations_are_counted_in_their_block_and_layers_add_up(dltrain: Command) -> None:
    found = summary(dltrain, "model=attention", "model.width=8", "model.heads=2", "model.depth=2")
    # 49 tokens of 8 features: queries with keys, weights with values; whatever the number of heads.
    assert rows(found, "Block") == [([1, 49, 8], 0, 2 * 2 * 49 * 49 * 8)] * 2
    assert rows(found, "Attention") == [([1, 10], 49 * 8, 0)]  # positions
    for key in ("parameters", "flops"):
        assert found[key] == sum(layer[key] for layer in found["layers"])


def test_the_table_agrees_with_the_json(dltrain: Command) -> None:
    found = summary(dltrain, "model=cnn", "model.batch_norm=true")
    out = dltrain("train", "model=cnn", "--summary", "model.batch_norm=true").out
    for layer in found["layers"]:
        (line,) = [line for line in out.splitlines() if f" {layer['name']} " in line]
        for shown in (
            layer["type"],
            str(tuple(layer["output_shape"])),
            f"{layer['parameters']:,}",
            f"{layer['flops']:,}",
        ):
            assert f" {shown} " in line
    assert f"{found['parameters']:,} │ {found['flops']:,} │" in out
    assert f"weights  {found['bytes']:,} bytes\ninput    (64, 1, 28, 28), a batch\n" in out
    # Buffers of batch norm are no parameters, and have bytes.
    assert found["bytes"] == 4 * (found["parameters"] + 2 * (32 + 64)) + 2 * 8


OWN = """
import torch
from torch import nn

class Own(nn.Module):
    def __init__(self, input_shape, num_classes, width=3):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(784), requires_grad=False)
        self.first = nn.Linear(784, width)
        self.again = nn.Linear(width, width)
        self.same = self.again
        self.unused = nn.Linear(5, 5)
        self.last = nn.Linear(width, num_classes)

    def forward(self, images):
        x = self.first(images.flatten(1) * self.scale)
        return self.last(self.same(self.again(x)) @ torch.eye(x.shape[1]))

class Stubborn(Own):
    def forward(self, images):
        if len(images) < 2:
            raise ValueError("at least two")
        return super().forward(images)

def train_alone(split):
    if split == "test":
        raise AssertionError("nobody asked for the test split")
    if split == "val":
        return None
    return torch.zeros(20, 1, 28, 28, dtype=torch.uint8), torch.arange(20) % 10, None
"""


@pytest.fixture
def own(dltrain: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("own_layers.py").write_text(OWN)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_layers", raising=False)


@pytest.mark.usefixtures("own")
def test_a_custom_network_is_counted(dltrain: Command) -> None:
    words = ("model=custom", "model.name=own_layers:Own", "+model.width=4")
    found = summary(dltrain, *words)
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert list(layers) == ["", "first", "again", "unused", "last"]
    assert (layers[""]["parameters"], layers[""]["flops"]) == (784, 2 * 4 * 4)  # its own product with the unit matrix
    assert (layers["again"]["parameters"], layers["again"]["flops"]) == (4 * 4 + 4, 2 * 2 * 4 * 4)  # called twice
    assert (layers["unused"]["output_shape"], layers["unused"]["flops"]) == (None, 0)
    assert found["parameters"] - found["trainable"] == 784
    assert "784 parameters are not trained" in dltrain("train", "--summary", *words).out


@pytest.mark.usefixtures("own")
def test_a_network_that_rejects_a_batch_of_one_is_reported(dltrain: Command) -> None:
    result = dltrain("train", "--summary", "model=custom", "model.name=own_layers:Stubborn")
    message, line = result.err.splitlines()
    assert (result.code, message) == (2, "error: model=own_layers:Stubborn does not take a batch of one: at least two")
    assert line.startswith("at own_layers.py:")


@pytest.mark.usefixtures("own")
def test_of_the_data_only_the_training_set_is_read(dltrain: Command) -> None:
    found = summary(dltrain, "data=custom", "data.name=own_layers:train_alone", "model=linear")
    assert found["input_shape"] == [18, 1, 28, 28]  # of 20 examples two are held back


def test_nothing_is_left_behind(dltrain: Command) -> None:
    summary(dltrain, "model=linear")
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("epochs=0", "epochs=0: must be a whole number >= 1"),
        ("model=lennet", "model=lennet: no such option; did you mean lenet?"),
        ("optim.lrr=1", "optim.lrr: no such key; did you mean optim.lr?"),
        ("model=attention model.patch=5", "model.patch must divide 28x28. Received 5"),
        ("model=autoencoder", "this model returns images; set task=reconstruction"),
        ("data.mean=[1,2,3]", "data.mean=[1, 2, 3]: must have 1 number"),
        ("data.limit=100000", "is more than the 1438 training examples"),
        ("patience=3 data.val=0", "patience needs a validation set"),
        ("optim.nesterov=true optim.momentum=0", "Nesterov momentum requires a momentum"),
        ("sweep.seed=1", "sweep.seed=1: only works in a sweep. Add -m, or leave it out"),
        ("-m seed=1,2", "--summary: describes one run. Leave out -m and sweep.resume"),
        ("sweep.resume=last", "--summary: describes one run. Leave out -m and sweep.resume"),
        ("resume=outputs", "--summary: describes a new run. Leave out resume"),
    ],
)
def test_a_mistake_is_reported_as_for_a_run(dltrain: Command, line: str, told: str) -> None:
    result = dltrain("train", "--summary", *line.split())
    assert (result.code, told in result.err, len(result.err.splitlines()) <= 3) == (2, True, True)
    assert result.out == ""


@pytest.mark.slow
def test_weights_to_start_from_are_checked_and_warnings_stay_out_of_the_json(
    dltrain: Command,
) -> None:
    save_file({"layer.bias": torch.zeros(10)}, "part.safetensors")
    words = ("train", "--summary", "--json", "model=linear", "init=part.safetensors", "init_partial=true")
    done = subprocess.run([sys.executable, "-m", "dltrain", *words], capture_output=True, text=True, check=False)
    assert json.loads(done.stdout)["parameters"] == 7850
    assert "init: layer.weight (10, 784): not in the file, left as initialised\n" in done.stderr
    save_file({"bias": torch.zeros(10)}, "other.safetensors")
    assert dltrain("train", "--summary", "model=linear", "init=other.safetensors").code == 66


def test_summary_needs_training(dltrain: Command) -> None:
    assert dltrain("eval", "--summary", "ckpt=x").code == 2
