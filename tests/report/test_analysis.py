"""What an analysis tells: confusions and calibration as computed by hand, the surest mistakes, attention."""

import base64
import io
import json
import logging
import math
from typing import Any

import numpy
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from dltrain.config import registry
from dltrain.config.signatures import PACKAGE
from dltrain.data.loader import TensorLoader, channel_statistics
from dltrain.data.splits import Examples
from dltrain.report import analysis
from dltrain.runtime.devices import Runtime
from dltrain.training import build

CPU = Runtime(torch.device("cpu"), "fp32", 1)
CLASSES = ("cat", "dog", "owl")
CONFIGS = PACKAGE.parents[1] / "configs" / "model"


class Told(nn.Module):
    """A network whose logits for picture n are row n of a table: the first pixel is the row's number."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits
        self.passes = 0

    def forward(self, images: Tensor) -> Tensor:
        self.passes += len(images)
        return self.logits[images[:, 0, 0, 0].round().long()]


def examples(targets: list[int], shape: tuple[int, ...] = (1, 4, 4)) -> Examples:
    images = torch.zeros(len(targets), *shape, dtype=torch.uint8)
    images[:, :, 0, 0] = torch.arange(len(targets)).view(-1, 1).byte()
    return Examples(images, torch.tensor(targets), CLASSES)


def as_they_are(found: Examples, batch_size: int = 2) -> TensorLoader:
    """Batches that are not normalised: a byte n is the number n."""
    channels = found.images.shape[1]
    return TensorLoader(found, CPU.device, batch_size=batch_size, statistics=((0.0,) * channels, (1 / 255,) * channels))


def analyzed(logits: list[list[float]], targets: list[int]) -> dict[str, Any]:
    found = examples(targets)
    model = Told(torch.tensor(logits))
    return analysis.analyze(model, found, as_they_are(found), CLASSES, "classification", CPU, split="test")


def sure(predicted: int, probability: float) -> list[float]:
    """Logits of a prediction with a probability, the rest of which the other classes share."""
    return [math.log(probability if index == predicted else (1 - probability) / 2) for index in range(3)]


def decoded(url: str) -> numpy.ndarray:
    kind, _, content = url.partition(",")
    assert kind == "data:image/png;base64"
    return numpy.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def network(name: str, shape: tuple[int, int, int] = (1, 8, 12), **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    node = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) | changes
    return build.model(node, shape, 3).eval()


def pictures(count: int, shape: tuple[int, int, int] = (1, 8, 12), seed: int = 0) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)
    return Examples(images, torch.arange(count) % 3, CLASSES)


def normalized(found: Examples) -> TensorLoader:
    return TensorLoader(found, CPU.device, batch_size=4, statistics=channel_statistics(found.images))


def test_the_confusion_matrix_and_fractions_equal_those_counted_by_hand() -> None:
    predicted, targets = [0, 0, 1, 1, 0, 1], [0, 0, 0, 1, 1, 1]
    found = analyzed([sure(label, 0.9) for label in predicted], targets)
    assert found["confusion"] == [[2, 1, 0], [1, 2, 0], [0, 0, 0]]
    assert found["per_class"]["cat"] == {"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "examples": 3}
    assert found["per_class"]["owl"] == {"precision": 0, "recall": 0, "f1": 0, "examples": 0}
    assert found["macro"] == {"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3}
    assert [found[key] for key in ("task", "split", "examples", "classes")] == [
        "classification",
        "test",
        6,
        ["cat", "dog", "owl"],
    ]


def test_f1_is_the_harmonic_mean_of_precision_and_recall() -> None:
    found = analyzed([sure(label, 0.9) for label in (0, 0, 0, 0, 1)], [0, 1, 1, 2, 0])["per_class"]["cat"]
    assert (found["precision"], found["recall"]) == (1 / 4, 1 / 2)
    assert found["f1"] == pytest.approx(2 / (4 + 2))


def test_calibration_is_the_formula_written_out() -> None:
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(500, generator=generator, dtype=torch.float64)
    correct = torch.rand(500, generator=generator) < 0.6
    expected = 0.0
    for index in range(15):
        inside = [n for n in range(500) if index / 15 < float(confidence[n]) <= (index + 1) / 15]
        right = sum(bool(correct[n]) for n in inside)
        expected += abs(right - sum(float(confidence[n]) for n in inside)) / 500
    found = analysis.calibration(confidence, correct)
    assert found["error"] == pytest.approx(expected)
    assert sum(each["count"] for each in found["bins"]) == 500
    assert [each["from"] for each in found["bins"][1:]] == [each["to"] for each in found["bins"][:-1]]


def test_a_bin_tells_its_examples_their_confidence_and_accuracy() -> None:
    found = analyzed([sure(0, 0.9), sure(0, 0.92), sure(0, 0.5)], [0, 1, 0])["calibration"]
    filled = {round(each["to"] * 15): each for each in found["bins"] if each["count"]}
    assert filled.keys() == {8, 14}  # 0.5 is in (7/15, 8/15], 0.9 and 0.92 in (13/15, 14/15]
    assert (filled[14]["count"], filled[14]["accuracy"]) == (2, 0.5)
    assert filled[14]["confidence"] == pytest.approx(0.91)
    assert found["error"] == pytest.approx(2 / 3 * 0.41 + 1 / 3 * 0.5)


def test_mistakes_are_sorted_by_confidence_with_their_images() -> None:
    logits = [sure(0, 0.6), sure(1, 0.8), sure(0, 0.99), sure(2, 0.7)]
    found = analyzed(logits, [1, 0, 0, 1])["mistakes"]
    assert [(each["index"], each["true"], each["predicted"]) for each in found] == [
        (1, "cat", "dog"),
        (3, "dog", "owl"),
        (0, "dog", "cat"),
    ]
    assert [each["probability"] for each in found] == pytest.approx([0.8, 0.7, 0.6])
    assert [decoded(each["image"])[0, 0] for each in found] == [1, 3, 0]


def test_at_most_24_mistakes_are_kept() -> None:
    found = analyzed([sure(0, 0.4 + index / 100) for index in range(40)], [1] * 40)["mistakes"]
    assert [each["index"] for each in found] == list(range(39, 15, -1))


def test_a_network_without_mistakes_has_none() -> None:
    assert analyzed([sure(0, 0.9)], [0])["mistakes"] == []


def test_one_pass_over_the_examples_is_enough() -> None:
    found = examples([0] * 9)
    model = Told(torch.zeros(9, 3))
    analysis.analyze(model, found, as_they_are(found), CLASSES, "classification", CPU, split="val")
    assert model.passes == 9


def test_nonfinite_outputs_are_mistakes_without_confidence() -> None:
    found = analyzed([[math.nan] * 3, sure(1, 0.9)], [1, 1])
    assert [(each["index"], each["probability"]) for each in found["mistakes"]] == [(0, 0.0)]
    assert json.dumps(found, allow_nan=False)


def test_the_network_is_left_in_the_mode_it_was_in() -> None:
    found = examples([0, 1])
    for training in (True, False):
        model = Told(torch.zeros(2, 3)).train(training)
        analysis.analyze(model, found, as_they_are(found), CLASSES, "classification", CPU, split="test")
        assert model.training is training


def test_more_than_1000_classes_have_no_confusion_matrix() -> None:
    outputs, targets = torch.eye(1001)[:5], torch.arange(5)
    found = analysis.classified(outputs, targets, [str(label) for label in range(1001)])
    assert "confusion" not in found
    assert found["per_class"]["4"]["recall"] == 1


def test_mistaken_images_are_bytes_with_a_title() -> None:
    found = examples([1, 0], shape=(3, 4, 4))
    model = Told(torch.tensor([sure(0, 0.75), sure(0, 0.9)]))
    told = analysis.analyze(model, found, as_they_are(found), CLASSES, "classification", CPU, split="test")
    ((image, title),) = analysis.mistaken_pictures(found, told)
    assert (image.dtype, tuple(image.shape), title) == (torch.uint8, (3, 4, 4), "0: dog taken for cat (0.75)")


@pytest.mark.parametrize(("channels", "shown"), [(1, 1), (2, 1), (3, 3), (4, 1)])
def test_an_image_of_any_number_of_channels_can_be_shown(channels: int, shown: int) -> None:
    image = torch.full((channels, 5, 6), 40, dtype=torch.uint8)
    found = analysis.to_uint8(image)
    assert (tuple(found.shape), found.unique().tolist()) == ((shown, 5, 6), [40])
    assert decoded(analysis.data_url(found)).shape[:2] == (5, 6)


def test_an_image_of_floats_is_scaled_from_black_to_white() -> None:
    image = torch.tensor([[[-2.0, 0.0, 2.0]]])
    assert analysis.to_uint8(image).flatten().tolist() == [0, 128, 255]
    assert analysis.to_uint8(torch.zeros(1, 1, 3)).flatten().tolist() == [0, 0, 0]


def test_large_images_are_shown_small() -> None:
    url = analysis.data_url(torch.zeros(3, 300, 600, dtype=torch.uint8))
    assert decoded(url).shape == (64, 128, 3)


def test_regression_is_reported_as_at_most_500_points() -> None:
    x = torch.linspace(-1, 1, 1203).view(-1, 1, 1, 1)
    found = Examples(x, 3 * x.view(-1, 1), ())
    batches = TensorLoader(found, CPU.device, batch_size=100, statistics=((0.0,), (1.0,)))
    told = analysis.analyze(nn.Flatten(), found, batches, (), "regression", CPU, split="test")
    assert told.keys() == {"task", "split", "examples", "points"}
    assert len(told["points"]) == 500
    assert all(true == pytest.approx(3 * predicted) for true, predicted in told["points"])


def test_numbers_that_json_has_not_are_no_points() -> None:
    found = Examples(torch.tensor([1.0, math.nan, math.inf]).view(-1, 1, 1, 1), torch.ones(3, 1), ())
    batches = TensorLoader(found, CPU.device, batch_size=3, statistics=((0.0,), (1.0,)))
    assert analysis.analyze(nn.Flatten(), found, batches, (), "regression", CPU, split="test")["points"] == [[1.0, 1.0]]


def test_a_reconstruction_is_shown_with_the_grey_levels_of_the_image() -> None:
    found = pictures(30, shape=(3, 5, 6))
    told = analysis.analyze(nn.Identity(), found, normalized(found), (), "reconstruction", CPU, split="val")
    assert told.keys() == {"task", "split", "examples", "pictures"}
    assert len(told["pictures"]) == 12
    for each in told["pictures"]:
        assert numpy.array_equal(decoded(each["image"]), found.images[each["index"]].permute(1, 2, 0).numpy())
        assert each["output"] == each["image"]


GRIDS = [
    ("attention", {"patch": 4, "width": 8, "depth": 1, "heads": 2}, (2, 3)),
    ("attention", {"tokens": "rows", "width": 8, "depth": 1, "heads": 2}, (8, 1)),
    ("lstm", {"hidden": 6, "pool": "attention"}, (8, 1)),
]


@pytest.mark.parametrize(("name", "keys", "grid"), GRIDS, ids=str)
def test_attention_weights_cover_the_image_and_sum_to_1(name: str, keys: dict[str, Any], grid: tuple[int, int]) -> None:
    found = pictures(20)
    told = analysis.analyze(
        network(name, **keys), found, normalized(found), CLASSES, "classification", CPU, split="test"
    )
    assert len(told["attention"]) == 6
    for each in told["attention"]:
        weights = torch.tensor(each["weights"])
        assert tuple(weights.shape) == grid
        assert (float(weights.sum()), bool((weights >= 0).all())) == (pytest.approx(1, abs=1e-5), True)
        assert numpy.array_equal(decoded(each["image"]), found.images[each["index"], 0].numpy())
        assert each["true"] == CLASSES[each["index"] % 3]


@pytest.mark.parametrize(("name", "keys", "grid"), GRIDS, ids=str)
def test_weights_of_attention_are_those_of_the_pooling(name: str, keys: dict[str, Any], grid: tuple[int, int]) -> None:
    """With the weights of the map, the pooled features give the network's own output: it is what forward uses."""
    model = network(name, **keys)
    images = torch.randn(3, 1, 8, 12, generator=torch.Generator().manual_seed(1))
    features = model._tokens(images) if name == "attention" else model._states(images)[0]
    pooled = (model.attention_map(images).flatten(1).unsqueeze(2) * features).sum(dim=1)
    assert torch.equal(model.classifier(pooled), model(images))


@pytest.mark.parametrize(("name", "keys", "grid"), GRIDS, ids=str)
def test_attention_weights_depend_on_the_image(name: str, keys: dict[str, Any], grid: tuple[int, int]) -> None:
    model = network(name, **keys)
    one, other = (normalized(pictures(1, seed=seed)).normalize(pictures(1, seed=seed).images) for seed in (0, 1))
    assert not torch.allclose(model.attention_map(one), model.attention_map(other), atol=1e-6)


@pytest.mark.parametrize("name", [name for name in registry.names("model") if name not in ("attention", "autoencoder")])
def test_a_network_without_attention_has_no_maps(name: str) -> None:
    found = pictures(3, shape=(1, 16, 16))
    model = network(name, shape=(1, 16, 16))
    told = analysis.analyze(model, found, normalized(found), CLASSES, "classification", CPU, split="test")
    assert "attention" not in told


@pytest.mark.parametrize("answer", ["raises", "a list", "wrong shape"])
def test_an_invalid_attention_map_of_a_custom_model_is_skipped_and_reported(
    answer: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Own(Told):
        def attention_map(self, images: Tensor) -> Any:
            if answer == "raises":
                raise RuntimeError("not today")
            return [1.0] if answer == "a list" else torch.ones(len(images), 16)

    monkeypatch.setattr(logging.getLogger("dltrain"), "propagate", True)
    found = examples([0, 1])
    told = analysis.analyze(
        Own(torch.zeros(2, 3)), found, as_they_are(found), CLASSES, "classification", CPU, split="test"
    )
    assert "attention" not in told
    assert "attention_map of the model" in caplog.text


def test_an_analysis_is_valid_json() -> None:
    found = pictures(5)
    told = analysis.analyze(
        network(*GRIDS[0][:1], **GRIDS[0][1]), found, normalized(found), CLASSES, "classification", CPU, split="test"
    )
    assert json.loads(json.dumps(told, allow_nan=False)) == told
