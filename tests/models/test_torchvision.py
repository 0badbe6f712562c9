"""torchvision's classifiers: its networks and names of weights, our classes, frozen layers, weights to start from."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from dltrain.checkpoints import checkpoint
from dltrain.runtime.errors import ConfigError
from dltrain.training import build, weights
from support.command import Command
from support.tiers import mostly_slow

SMALL = "shufflenet_v2_x0_5"
ARCHITECTURES = models.list_models(module=models)
# One of each kind, that is not large.
KINDS = ("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "maxvit_t")
KINDS += (
    "mnasnet0_5",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    SMALL,
    "squeezenet1_1",
    "swin_t",
    "vgg11",
    "vit_b_16",
)
OTHERS = [pytest.param(name, marks=pytest.mark.torture) for name in ARCHITECTURES if name not in KINDS]


def node(arch: str = SMALL, **keys: Any) -> dict[str, Any]:
    return {"name": "torchvision", "arch": arch, "pretrained": False, "freeze": None} | keys


def pictures(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("arch", [*mostly_slow(KINDS, fast=KINDS[::4]), *OTHERS])
def test_every_classifier_of_torchvision_has_our_classes(arch: str) -> None:
    side = 299 if arch == "inception_v3" else 224
    with torch.device("meta"):
        network = build.model(node(arch), (3, side, side), 7)
        assert network(torch.empty(2, 3, side, side)).shape == (2, 7)


@pytest.mark.parametrize("arch", ["resnet18", SMALL])
def test_a_torchvision_model_has_the_outputs_and_weight_names_of_torchvision(arch: str) -> None:
    ours = build.model(node(arch), (3, 32, 32), 10).eval()
    theirs = models.get_model(arch, weights=None, num_classes=10).eval()
    theirs.load_state_dict(ours.state_dict())
    images = pictures(2, 3, 32, 32)
    assert torch.equal(ours(images), theirs(images))


def test_grey_images_are_passed_to_torchvision_models_as_colour() -> None:
    network = build.model(node(), (1, 32, 32), 10).eval()
    grey = pictures(2, 1, 32, 32)
    torch.testing.assert_close(network(grey), network(grey.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize("arch, side", [("vit_b_16", 64), ("maxvit_t", 448)])
def test_transformers_are_made_for_the_size_of_the_images(arch: str, side: int) -> None:
    with torch.device("meta"):
        assert build.model(node(arch), (3, side, side), 5)(torch.empty(2, 3, side, side)).shape == (2, 5)


# --- frozen layers


@pytest.mark.parametrize(
    "arch, freeze", [("resnet18", "layer3"), (SMALL, "stage2"), ("mobilenet_v3_small", "features.5")]
)
def test_layers_up_to_the_frozen_one_stay_as_they_are_and_the_others_learn(arch: str, freeze: str) -> None:
    network = build.model(node(arch, freeze=freeze), (3, 32, 32), 10)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    optimizer = torch.optim.SGD([each for each in network.parameters() if each.requires_grad], lr=0.1)
    network.train()
    for seed in range(2):
        nn.functional.cross_entropy(network(pictures(4, 3, 32, 32, seed=seed)), torch.arange(4)).backward()
        optimizer.step()
    keys = list(before)
    last = max(index for index, key in enumerate(keys) if key.startswith(f"{freeze}."))
    for index, (key, value) in enumerate(network.state_dict().items()):
        assert torch.equal(value, before[key]) == (index <= last), key


@pytest.mark.slow
def test_a_frozen_run_leaves_layers_and_their_norms_alone_and_is_resumed(dltrain: Command) -> None:
    words = [
        "model=torchvision",
        f"model.arch={SMALL}",
        "model.freeze=stage3",
        "data.limit=60",
        "epochs=2",
        "batch_size=20",
    ]
    whole = dltrain("train", *words).folder
    stopped = dltrain("train", *words, "limit_steps=3").folder
    assert dltrain("train", f"resume={stopped}", "limit_steps=null").code == 0
    ends = [checkpoint.load(folder / "checkpoints" / "last.pt")["model"] for folder in (whole, stopped)]
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())
    torch.manual_seed(0)
    start = build.model(node(freeze="stage3"), (1, 8, 8), 10).state_dict()
    assert torch.equal(start["stage3.0.branch1.1.running_mean"], ends[0]["stage3.0.branch1.1.running_mean"])
    assert not torch.equal(start["stage4.0.branch1.1.running_mean"], ends[0]["stage4.0.branch1.1.running_mean"])


# --- weights to start from


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of weights where torch looks for those it has downloaded; no network behind it."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    for proxy in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    path = tmp_path / "hub" / "checkpoints" / models.get_model_weights(SMALL).DEFAULT.url.rpartition("/")[2]
    path.parent.mkdir(parents=True)
    torch.manual_seed(7)
    torch.save(models.get_model(SMALL, weights=None).state_dict(), path)
    return path


QUICK = ("model=torchvision", f"model.arch={SMALL}", "data.limit=60", "epochs=1", "batch_size=20", "optim.lr=1e-12")
QUICK += ("report=false", "logger=none")


@pytest.mark.parametrize("given", ["model.pretrained=true", "init"])
def test_a_run_starts_from_all_trained_weights_but_the_last_layer(dltrain: Command, hub: Path, given: str) -> None:
    result = dltrain("train", *QUICK, given if given != "init" else f"init={hub}")
    assert result.code == 0, result.err
    assert "fc.weight: (1000, 1024) in the file, (10, 1024) in the model" in result.out
    wanted = torch.load(hub, weights_only=True)
    found = checkpoint.load(result.folder / "checkpoints" / "last.pt")["model"]
    for key in ("conv1.0.weight", "stage3.2.branch2.0.weight"):
        torch.testing.assert_close(found[key], wanted[key], rtol=0, atol=1e-6)


def test_without_file_and_network_one_error_gives_advice(dltrain: Command, hub: Path) -> None:
    hub.unlink()
    result = dltrain("train", *QUICK, "model.pretrained=true")
    assert result.code == 2
    assert result.err.startswith(f"error: model=torchvision: the weights of {SMALL} could not be downloaded or read")
    assert f"Put an intact {hub.name} into {hub.parent}, or set model.pretrained=false and init=" in result.err
    assert len(result.err.splitlines()) == 1
    assert not Path("outputs").exists()


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04"])
def test_a_damaged_file_of_weights_is_reported(dltrain: Command, hub: Path, content: bytes) -> None:
    hub.write_bytes(content)
    result = dltrain("train", *QUICK, "model.pretrained=true")
    assert result.code == 2
    assert "could not be downloaded or read" in result.err
    assert len(result.err.splitlines()) <= 3


def test_names_of_densenets_published_weights_are_brought_to_those_of_today(hub: Path) -> None:
    network = build.model(node("densenet121", pretrained=True), (3, 32, 32), 10)
    own = models.get_model("densenet121", weights=None).state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): value for key, value in own.items()}
    assert sum(key not in own for key in old) > 500
    torch.save(old, hub.with_name(models.get_model_weights("densenet121").DEFAULT.url.rpartition("/")[2]))
    found = weights.pretrained_weights(network, {"name": "torchvision"})
    assert found is not None
    assert found.keys() == own.keys()
    lines = weights.copy_matching(network, found, hub, is_partial=False)
    assert len(lines) == 3 and all("classifier." in line for line in lines[1:])  # the last layer


@pytest.mark.slow
def test_a_run_that_started_from_them_is_resumed_and_evaluated_without_them(dltrain: Command, hub: Path) -> None:
    folder = dltrain("train", *QUICK, "model.pretrained=true", "limit_steps=2").folder
    shutil.rmtree(hub.parent)
    assert dltrain("train", f"resume={folder}", "limit_steps=null").code == 0
    assert dltrain("eval", f"ckpt={folder}").code == 0
    assert json.loads((folder / "summary.json").read_text())["status"] == "done"


def test_a_model_without_trained_weights_has_none() -> None:
    assert weights.pretrained_weights(nn.Linear(1, 1), {"name": "mlp"}) is None


@pytest.mark.parametrize(
    ("keys", "shape", "message"),
    [
        (
            {"arch": "resnet8"},
            (3, 32, 32),
            "model.arch=resnet8: torchvision has no such classifier; did you mean resnet",
        ),
        ({"arch": "fcn_resnet50"}, (3, 32, 32), "torchvision has no such classifier"),
        (
            {"freeze": "layer9"},
            (3, 32, 32),
            "model.freeze=layer9: no such layer with weights; choose one of conv1, stage2,",
        ),
        ({"freeze": "fc"}, (3, 32, 32), "model.freeze=fc: this is the last layer, nothing would be left to train"),
        ({}, (2, 32, 32), "torchvision classifiers take images of 1 or 3 channels, the data has 2"),
    ],
)
def test_an_impossible_torchvision_model_is_refused(
    keys: dict[str, Any], shape: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build.model(node(**keys), shape, 10)
