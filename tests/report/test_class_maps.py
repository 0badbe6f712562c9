"""Class maps: LayerCAM as computed by hand, of every kind of network, which it leaves as it was; and on the page."""

import copy
import json
import logging
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _global_forward_hooks

from dltrain.config.signatures import PACKAGE
from dltrain.data.loader import TensorLoader, channel_statistics
from dltrain.data.splits import Examples
from dltrain.report import analysis
from dltrain.report.class_maps import COLOUR, class_map, overlaid
from dltrain.report.html import run_page
from dltrain.report.run_reader import read_run
from dltrain.runtime.devices import Runtime
from dltrain.training import build
from support.command import Trained
from support.tiers import mostly_slow

CPU = Runtime(torch.device("cpu"), "fp32", 1)
BF16 = Runtime(torch.device("cpu"), "bf16", 1)
CONFIGS = PACKAGE.parents[1] / "configs" / "model"
SHAPE = (1, 16, 20)
CLASSES = ("cat", "dog", "owl")
KINDS: dict[str, dict[str, Any]] = {
    "lenet": {},
    "cnn": {"batch_norm": True},
    "resnet": {"widths": [4, 8], "blocks": 1},
    "fastnet": {"widths": [8, 8]},
    "torchvision": {"arch": "resnet18"},
}
WITHOUT: dict[str, dict[str, Any]] = {
    "mlp": {},
    "linear": {},
    "lstm": {"hidden": 6},
    "attention": {"patch": 4, "width": 8, "depth": 1, "heads": 2},
    "torchvision": {"arch": "vit_b_16"},
}


def network(name: str, shape: tuple[int, int, int] = SHAPE, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    node = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) | changes
    return build.model(node, shape, 3).eval()


def image(*shape: int, seed: int = 0) -> Tensor:
    """A batch of one image."""
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))


class Tiny(nn.Module):
    """Two 1x1 filters, whose outputs are weighed one by one."""

    def __init__(self, filters: list[float], weights: Tensor) -> None:
        super().__init__()
        self.filters = nn.Conv2d(1, len(filters), 1, bias=False)
        self.head = nn.Linear(weights.shape[1], weights.shape[0], bias=False)
        with torch.no_grad():
            self.filters.weight.copy_(torch.tensor(filters).view(-1, 1, 1, 1))
            self.head.weight.copy_(weights)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.filters(images).flatten(1))


def test_a_map_is_the_formula_computed_by_hand() -> None:
    pixels = torch.tensor([[[1.0, -1.0], [2.0, 3.0]]])
    weights = torch.tensor([[-9.0] * 8, [0.5, 1.0, -1.0, 0.1, 0.2, 2.0, -3.0, -1.0]])
    # Activations 2 * pixels and -pixels; the gradients of class 1, whose output is larger, are its weights. The
    # positive ones times the activations: [0.5 * 2, 1 * -2, 0, 0.1 * 6] + [0.2 * -1, 2 * 1, 0, 0] = [0.8, 0, 0, 0.6]
    model = Tiny([2.0, -1.0], weights).eval()
    assert int(model(pixels[None]).argmax()) == 1
    found = class_map(model, pixels[None], CPU)
    assert found is not None
    assert found.flatten().tolist() == pytest.approx([1, 0, 0, 0.75])
    # With class 0 at 9 * (2 - 1) * pixels: the negative one is cut off, the others are fractions of the largest.
    found = class_map(Tiny([2.0, -1.0], torch.stack([-weights[0], weights[1]])).eval(), pixels[None], CPU)
    assert found is not None
    assert found.flatten().tolist() == pytest.approx([1 / 3, 0, 2 / 3, 1])


def test_a_map_is_enlarged_to_the_image_between_the_centres_of_its_cells() -> None:
    class Halved(Tiny):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(F.avg_pool2d(images, 2))

    pixels = torch.tensor([1.0, 3.0]).repeat_interleave(2).expand(1, 4, 4)
    found = class_map(Halved([1.0], torch.ones(1, 4)).eval(), pixels[None], CPU)
    assert found is not None
    rows = torch.tensor([1.0, 1.5, 2.5, 3.0]).expand(4, 4)
    assert torch.allclose(found, rows / 3)


@pytest.mark.parametrize("name", KINDS)
def test_every_convolutional_network_has_maps_of_the_size_of_the_image(name: str) -> None:
    shape = (3, 64, 96) if name == "torchvision" else SHAPE  # after 32 halvings there must be more than a pixel
    model = network(name, shape, **KINDS[name])
    one, other = (class_map(model, image(*shape, seed=seed), CPU) for seed in (0, 1))
    assert one is not None
    assert other is not None
    assert (tuple(one.shape), float(one.min()) >= 0, float(one.max())) == (shape[1:], True, pytest.approx(1))
    assert not one.requires_grad
    assert not torch.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize("name", mostly_slow(WITHOUT, fast=("mlp", "linear", "lstm", "attention")))
def test_a_network_without_convolutions_has_no_map_and_a_transformer_neither(name: str) -> None:
    shape = (3, 32, 32) if name == "torchvision" else SHAPE
    assert class_map(network(name, shape, **WITHOUT[name]), image(*shape), CPU) is None


def test_a_network_whose_convolutions_leave_a_single_pixel_has_no_map() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, (16, 20)), nn.Flatten())
    assert class_map(model.eval(), image(*SHAPE), CPU) is None


@pytest.mark.parametrize("name", KINDS)
def test_a_map_leaves_the_network_as_it_was(name: str) -> None:
    shape = (3, 64, 64) if name == "torchvision" else SHAPE
    model = network(name, shape, **KINDS[name])
    before, pixels = copy.deepcopy(model.state_dict()), image(*shape)
    with torch.no_grad():
        outputs = model(pixels)
        assert class_map(model, pixels, CPU) is not None
        assert not torch.is_grad_enabled()
        assert torch.equal(model(pixels), outputs)
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before.keys() | after.keys())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not _global_forward_hooks
    assert not any(module.training for module in model.modules())
    assert not pixels.requires_grad


def test_the_hook_is_removed_after_an_error_too() -> None:
    class Failing(Tiny):
        def forward(self, images: Tensor) -> Tensor:
            super().forward(images)
            raise RuntimeError("not today")

    with pytest.raises(RuntimeError, match="not today"):
        class_map(Failing([1.0], torch.ones(1, 4)).eval(), image(1, 2, 2), CPU)
    assert not _global_forward_hooks


def test_frozen_layers_and_side_branches_and_changes_in_place_are_no_obstacle() -> None:
    class Branched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.side = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 1, 1)
            self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(4, 2)

        def forward(self, images: Tensor) -> Tensor:
            features = self.relu(self.first(images))
            self.side(features)
            with torch.no_grad():
                self.side(features)
            return self.head(features.mean(dim=(2, 3)))

    torch.manual_seed(0)
    model = Branched().eval().requires_grad_(False)
    found = class_map(model, image(*SHAPE), CPU)
    features = model.first(image(*SHAPE)).relu()[0]  # the gradient is the class's weight over the pixels
    predicted = int(model(image(*SHAPE)).argmax())
    expected = (features * model.head.weight[predicted].relu()[:, None, None]).sum(dim=0)
    expected = F.interpolate(expected[None, None], SHAPE[1:], mode="bilinear", align_corners=False)[0, 0]
    assert found is not None
    assert torch.allclose(found, expected / expected.max(), atol=1e-6)


def test_a_map_in_bf16_is_close_to_that_in_fp32() -> None:
    model = network("lenet")
    one, other = (class_map(model, image(*SHAPE), runtime) for runtime in (CPU, BF16))
    assert one is not None
    assert other is not None
    assert torch.allclose(one, other, atol=0.1)


def test_nothing_that_speaks_for_a_class_is_a_map_of_zeros() -> None:
    found = class_map(Tiny([1.0], -torch.ones(1, 4)).eval(), torch.ones(1, 1, 2, 2), CPU)
    assert found is not None
    assert found.tolist() == [[0, 0], [0, 0]]


def test_a_map_colours_the_grey_image() -> None:
    shown = overlaid(torch.full((3, 1, 2), 100, dtype=torch.uint8), torch.tensor([[0.0, 1.0]]))
    assert shown[:, 0, 0].tolist() == [100] * 3
    assert shown[:, 0, 1].tolist() == [round(20 + 0.8 * part) for part in COLOUR]
    assert overlaid(torch.zeros(1, 4, 5, dtype=torch.uint8), torch.zeros(4, 5)).shape == (3, 4, 5)


# --- in the analysis and on the page


def analyzed(model: nn.Module, task: str = "classification") -> dict[str, Any]:
    images = torch.randint(0, 256, (9, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    targets = torch.arange(9) % 3
    found = Examples(images, targets, CLASSES)
    loader = TensorLoader(found, CPU.device, batch_size=4, statistics=channel_statistics(images))
    return analysis.analyze(model, found, loader, CLASSES, task, CPU, split="test")


def test_only_mistakes_have_maps_and_the_analysis_is_still_json() -> None:
    model, passes = network("lenet"), []
    model.register_forward_hook(lambda module, inputs, output: passes.append(len(output)))
    found = analyzed(model)
    assert 0 < len(found["mistakes"]) < 9
    assert all(each["class_map"].startswith("data:image/png;base64,") for each in found["mistakes"])
    assert sum(passes) == 9 + len(found["mistakes"])
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize("name", ["mlp", "lstm"])
def test_mistakes_of_other_networks_have_none(name: str) -> None:
    found = analyzed(network(name, **WITHOUT[name]))
    assert found["mistakes"]
    assert not any("class_map" in each for each in found["mistakes"])


def test_an_error_leaves_the_maps_out_and_is_reported(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NeedsBatches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network("lenet")

        def forward(self, images: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                raise RuntimeError("no gradients here")
            return self.net(images)

    monkeypatch.setattr(logging.getLogger("dltrain"), "propagate", True)
    found = analyzed(NeedsBatches())
    assert found["mistakes"]
    assert not any("class_map" in each for each in found["mistakes"])
    assert "class maps of the model are left out: RuntimeError: no gradients here" in caplog.text


def test_a_reconstruction_by_convolutions_has_none() -> None:
    model = nn.Conv2d(1, 1, 3, padding=1)
    assert analyzed(model, "reconstruction").keys() == {"task", "split", "examples", "pictures"}


def test_the_page_shows_maps_beside_the_mistakes_and_says_what_they_are(trained: Trained) -> None:
    folder = trained("model=lenet", "epochs=1", "data.limit=100", "report=true")
    text = (folder / "report.html").read_text()
    mistakes = text.count("taken for <b>")
    assert "where the network saw the class it predicted (LayerCAM)" in text
    assert text.count('alt="the same image in grey, coloured where the network saw ') == mistakes > 0
    content = json.loads((folder / "analysis.json").read_text())
    content["mistakes"][1]["class_map"] = "file:///etc/passwd"  # omitted with its mistake
    (folder / "analysis.json").write_text(json.dumps(content))
    text = run_page.text(read_run(folder), {})
    assert (text.count("taken for <b>"), "passwd" in text) == (mistakes - 1, False)
    for mistake in content["mistakes"]:
        del mistake["class_map"]
    (folder / "analysis.json").write_text(json.dumps(content))
    text = run_page.text(read_run(folder), {})
    assert (text.count("taken for <b>"), "LayerCAM" in text) == (mistakes, False)
