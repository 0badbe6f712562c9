"""Weights to start from: what hides their names is removed, and weights of another model are refused."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchvision import models

from dltrain.runtime.errors import InputError
from dltrain.training import weights
from support.command import Command

PATH = Path("w.pt")
QUICK = ("model=mlp", "model.hidden=[16]", "data.limit=200", "epochs=1", "limit_steps=1", "report=false", "logger=none")


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in state.items()}


PREFIXES = ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "model.", "net.", "my.own.net.work."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_common_to_all_names_is_stripped_and_told(prefix: str) -> None:
    torch.manual_seed(0)
    one, other = network(), network()
    lines = weights.copy_matching(one, prefixed(other.state_dict(), prefix), PATH, is_partial=False)
    assert lines == [f"stripped '{prefix}' from all names"]
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())


def test_a_prefix_that_the_model_has_too_is_kept() -> None:
    inner = nn.Sequential()
    inner.add_module("model", network())
    assert weights.copy_matching(inner, inner.state_dict(), PATH, is_partial=False) == []


def test_a_few_names_without_the_prefix_are_no_obstacle() -> None:
    state = AveragedModel(network()).state_dict()  # n_averaged, and module.* for the others
    assert weights.copy_matching(network(), state, PATH, is_partial=False) == [
        "stripped 'module.' from 9 of 10 names",
        "9 of 9 tensors taken, 100 % of the numbers",
        "n_averaged (): not in the model",
    ]


def test_two_networks_in_one_file_are_not_guessed_between() -> None:
    state = network().state_dict()
    both = prefixed(state, "student.") | prefixed(state, "teacher.")
    with pytest.raises(InputError, match="no weight in it matches the model"):
        weights.copy_matching(network(), both, PATH, is_partial=True)


@pytest.mark.parametrize("prefix", ["." * 10_000, "a." * 10_000, ("a" * 1_000_000) + "."])
def test_hostile_names_are_no_prefix_and_cost_little(prefix: str) -> None:
    hostile = prefixed({f"{number}": torch.zeros(1) for number in range(20)}, prefix)
    with pytest.raises(InputError, match="no weight in it matches the model"):
        weights.copy_matching(network(), hostile, PATH, is_partial=True)


def test_init_strips_a_prefix_and_says_so_in_one_line(dltrain: Command) -> None:
    folder = dltrain("train", *QUICK).folder
    state = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["model"]
    torch.save({"epoch": 1, "net": prefixed(state, "_orig_mod.module.")}, "wrapped.pt")
    result = dltrain("train", *QUICK, "init=wrapped.pt", "optim.lr=1e-30")
    told = [line for line in result.out.splitlines() if "init:" in line]
    assert told == ["init: took the weights under 'net'", "init: stripped '_orig_mod.module.' from all names"]
    found = torch.load(result.folder / "checkpoints" / "last.pt", weights_only=True)["model"]
    assert all(torch.equal(found[key], state[key]) for key in state)


# --- how much of the model is in the file


def resnet(name: str, classes: int = 1000) -> nn.Module:
    with torch.device("meta"):
        made: nn.Module = models.get_model(name, weights=None, num_classes=classes)
    return made.to_empty(device="cpu")


def test_resnet18_into_resnet50_is_refused_with_the_share_and_a_few_names() -> None:
    state = resnet("resnet18").state_dict()
    with pytest.raises(InputError) as caught:
        weights.copy_matching(resnet("resnet50"), state, PATH, is_partial=False)
    what, names, advice = str(caught.value).splitlines()
    assert what == "w.pt: 98 of 320 tensors taken, 24 % of the numbers; is it for another model?"
    assert names.startswith("fc.weight: (1000, 512) in the file, (1000, 2048) in the model; layer1.0.")
    assert advice == "To start from these weights all the same, add init_partial=true"


def test_resnet18_into_resnet50_is_told_in_a_few_lines_if_it_is_meant() -> None:
    lines = weights.copy_matching(resnet("resnet50"), resnet("resnet18").state_dict(), PATH, is_partial=True)
    assert lines[0] == "98 of 320 tensors taken, 24 % of the numbers"
    assert (len(lines), lines[-1].startswith("and ")) == (5, True)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_0", "shufflenet_v2_x0_5"])
def test_a_network_with_other_classes_is_taken_without_the_flag(name: str) -> None:
    lines = weights.copy_matching(resnet(name, 3), resnet(name, 1000).state_dict(), PATH, is_partial=False)
    assert len(lines) == 3 and "% of the numbers" in lines[0]


def test_a_last_layer_larger_than_the_rest_need_not_be_in_the_file() -> None:
    def large(classes: int) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 4), nn.Linear(4, classes))

    lines = weights.copy_matching(large(100), large(7).state_dict(), PATH, is_partial=False)
    assert lines[0] == "2 of 4 tensors taken, 2 % of the numbers"
    without = {key: value for key, value in large(7).state_dict().items() if key.startswith("0.")}
    assert len(weights.copy_matching(large(100), without, PATH, is_partial=False)) == 3


def test_a_bias_alone_is_not_a_start() -> None:
    layer = nn.Sequential(nn.Linear(784, 10))
    with pytest.raises(InputError, match="1 of 2 tensors taken, less than 1 % of the numbers"):
        weights.copy_matching(layer, {"0.bias": torch.ones(10)}, PATH, is_partial=False)


def test_half_of_the_numbers_is_the_least_that_is_taken() -> None:
    def layers(second: int) -> nn.Module:
        parts = nn.ParameterList([torch.zeros(10), torch.zeros(second)])
        return nn.ModuleDict({"body": parts, "head": nn.Linear(1, 1)})

    state = {"body.0": torch.ones(10)}
    assert weights.copy_matching(layers(10), state, PATH, is_partial=False)
    with pytest.raises(InputError, match="1 of 4 tensors taken, 43 % of the numbers"):
        weights.copy_matching(layers(11), state, PATH, is_partial=False)


def test_init_partial_starts_from_less_than_half(dltrain: Command) -> None:
    torch.save({"layers.1.bias": torch.ones(16)}, "part.pt")
    refused = dltrain("train", *QUICK, "init=part.pt")
    assert (refused.code, "add init_partial=true" in refused.err, Path("outputs").exists()) == (66, True, False)
    assert len(refused.err.splitlines()) == 3
    taken = dltrain("train", *QUICK, "init=part.pt", "init_partial=true")
    assert (taken.code, "init: 1 of 4 tensors taken, less than 1 % of the numbers" in taken.out) == (0, True)


def test_a_checkpoint_of_another_model_is_refused_before_data_is_read(dltrain: Command) -> None:
    folder = dltrain("train", *QUICK[:1], "model.hidden=[16,16,16]", *QUICK[2:]).folder
    words = ("model.hidden=[128,16,16]", "data=mnist", "data.root=nowhere")
    result = dltrain("train", *QUICK[:1], *QUICK[2:], *words, f"init={folder}")
    assert (result.code, "add init_partial=true" in result.err) == (66, True), result.err


def test_a_resume_needs_no_init_partial(dltrain: Command) -> None:
    torch.save({"layers.1.bias": torch.ones(16)}, "part.pt")
    folder = dltrain("train", *QUICK, "init=part.pt", "init_partial=true").folder
    Path("part.pt").unlink()
    result = dltrain("train", f"resume={folder}", "limit_steps=2")
    assert (result.code, "changed" in result.out) == (0, False), result.err
