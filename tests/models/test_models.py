"""Networks: outputs of the right shape for every picture, textbook parameter counts, pooling that does what it says."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from dltrain.config import registry
from dltrain.models import lstm
from dltrain.models.attention import LONGEST, attend
from dltrain.runtime.errors import ConfigError
from dltrain.training import build

CONFIGS = Path(__file__).parents[2] / "configs" / "model"
DEFAULTS = {name: yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in registry.names("model")}
MNIST, CIFAR, ODD = (1, 28, 28), (3, 32, 32), (3, 48, 64)
# Small enough for a test; every branch of every model is in one of them.
VARIANTS: dict[str, dict[str, Any]] = {
    "lenet": {"name": "lenet"},
    "linear": {"name": "linear"},
    "mlp": {"name": "mlp", "hidden": [8]},
    "mlp with all": {"name": "mlp", "hidden": [8, 6], "activation": "gelu", "dropout": 0.5, "batch_norm": True},
    "cnn": {"name": "cnn", "widths": [4], "hidden": 8},
    "cnn with all": {"name": "cnn", "widths": [4, 6], "hidden": 8, "dropout": 0.5, "batch_norm": True},
    "lstm": {"name": "lstm", "hidden": 6},
    "lstm with all": {"name": "lstm", "hidden": 6, "layers": 2, "bidirectional": True, "pool": "attention"},
    "attention": {"name": "attention", "width": 8, "depth": 1, "heads": 2},
    "attention on rows": {"name": "attention", "tokens": "rows", "width": 8, "depth": 2, "heads": 2, "dropout": 0.5},
    "attention on convolutions": {
        "name": "attention",
        "tokens": "convolutions",
        "width": 8,
        "heads": 2,
        "drop_path": 0.5,
    },
    "autoencoder": {"name": "autoencoder", "hidden": [8, 4]},
    "fastnet": {"name": "fastnet", "widths": [32, 6]},
    "fastnet with all": {"name": "fastnet", "widths": [32, 6], "depth": 3, "norm_momentum": 0.1, "scale": 0.5},
    "resnet": {"name": "resnet", "widths": [4], "blocks": 1},
    "resnet with all": {"name": "resnet", "widths": [4, 4, 6], "blocks": 2},
}


def network(variant: str, shape: tuple[int, ...] = MNIST, classes: int = 10, **changes: Any) -> nn.Module:
    """A seeded network, keys that are not named as in its YAML file."""
    node = VARIANTS.get(variant, {"name": variant})
    torch.manual_seed(0)
    return build.model(DEFAULTS[node["name"]] | node | changes, shape, classes)


def pictures(shape: tuple[int, ...], count: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("classes", [2, 10, 37])
@pytest.mark.parametrize("shape", [MNIST, CIFAR, ODD], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_output_has_a_number_for_each_class(variant: str, shape: tuple[int, ...], classes: int) -> None:
    output = network(variant, shape, classes)(pictures(shape))
    assert output.shape == ((2, *shape) if variant == "autoencoder" else (2, classes))
    assert output.isfinite().all()


@pytest.mark.parametrize("name", DEFAULTS)
def test_the_yaml_file_builds_a_network_for_both_kinds_of_images(name: str) -> None:
    for shape in (MNIST, CIFAR):
        output = network(name, shape)(pictures(shape))
        assert output.shape == ((2, *shape) if name == "autoencoder" else (2, 10))


@pytest.mark.parametrize(
    ("variant", "shape", "changes", "expected"),
    [
        ("lenet", MNIST, {}, 61_706),
        ("lenet", CIFAR, {}, 62_006),
        ("mlp", MNIST, {"hidden": [128, 64]}, 109_386),
        ("linear", MNIST, {}, 7_850),
        ("linear", (1, 1, 1), {}, 20),
        ("cnn", MNIST, {"widths": [32, 64], "hidden": 128}, 320 + 18_496 + 401_536 + 1_290),
        ("cnn", MNIST, {"widths": [4], "hidden": 8, "batch_norm": True}, 36 + 8 + 6_280 + 90),  # no bias before a norm
        ("lstm", MNIST, {"hidden": 128}, 4 * 128 * (28 + 128 + 2) + 1_290),
        ("lstm", MNIST, {"cell": "gru", "hidden": 128}, 3 * 128 * (28 + 128 + 2) + 1_290),
        ("lstm", MNIST, {"cell": "rnn", "hidden": 128}, 128 * (28 + 128 + 2) + 1_290),
        # Trained are a shift for each patch, the convolutions, a shift for each channel of a norm, and the last layer.
        (
            "fastnet",
            CIFAR,
            {"widths": [64, 256, 256]},
            24 + 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256) + 1152 + 2560,
        ),
        # ResNet-20 has 0.27 million; two shortcuts by 1x1 convolutions with their norms are 2,560 and 192 of them.
        ("resnet", CIFAR, {"widths": [16, 32, 64], "blocks": 3}, 269_722 + 2_560 + 192),
        ("autoencoder", MNIST, {"hidden": [128, 64, 32]}, 100_480 + 8_256 + 2_080 + 2_112 + 8_320 + 101_136),
    ],
)
def test_parameters_are_as_many_as_in_the_textbook(
    variant: str, shape: tuple[int, ...], changes: dict[str, Any], expected: int
) -> None:
    assert build.count_parameters(network(variant, shape, **changes)) == expected


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_every_parameter(variant: str) -> None:
    model = network(variant, dropout=0.0) if "dropout" in DEFAULTS[VARIANTS[variant]["name"]] else network(variant)
    model(pictures(MNIST, count=8)).square().sum().backward()
    learning = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(parameter.grad is not None for parameter in learning.values())
    idle = {key for key, parameter in learning.items() if not parameter.grad.any()}
    assert idle <= {"score.2.bias"}  # softmax takes away what is added to every score


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_example_does_not_see_the_others_of_its_batch_in_evaluation(variant: str) -> None:
    model = network(variant).eval()
    images = pictures(MNIST, count=3)
    torch.testing.assert_close(model(images)[1:2], model(images[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("variant", "changes"),
    [("mlp", {}), ("cnn", {}), ("lstm", {}), ("lstm", {"layers": 2}), ("attention", {})],
    ids=str,
)
def test_dropout_acts_in_training_and_rests_in_evaluation(variant: str, changes: dict[str, Any]) -> None:
    model, images = network(variant, dropout=0.5, **changes), pictures(MNIST)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize("shape", [MNIST, CIFAR], ids=str)
def test_both_kinds_of_images_reach_lenets_linear_layers_as_16x5x5(shape: tuple[int, ...]) -> None:
    assert network("lenet", shape).features(pictures(shape)).shape == (2, 16, 5, 5)


def test_lenet_consists_of_layers_of_torch() -> None:
    kinds = [type(layer) for layer in (*network("lenet").features, *network("lenet").classifier)]
    block = [nn.Conv2d, nn.MaxPool2d, nn.ReLU]
    assert kinds == [*block, *block, nn.Flatten, nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]


def test_fastnet_begins_from_patches_of_unit_covariance_and_their_negatives() -> None:
    generator = torch.Generator().manual_seed(0)
    mixture = torch.randn(12, 12, generator=generator)
    patches = torch.randn(400, 12, generator=generator) @ mixture  # neighbours and colours that go together
    images = patches.view(400, 3, 2, 2)
    model = network("fastnet", (3, 2, 2), widths=[4])
    model.initialize_from_images(images)
    found = model.whiten(images).flatten(1)
    assert torch.equal(found[:, :12], -found[:, 12:])
    torch.testing.assert_close(found[:, :12].T @ found[:, :12] / 400, torch.eye(12), rtol=0, atol=0.02)


def test_fastnet_s_convolutions_begin_as_identities() -> None:
    model, images = network("fastnet", CIFAR), pictures((24, 9, 9))
    wide, narrow = (model.features[place].first[0] for place in (1, 2))
    assert torch.equal(wide(images)[:, :24], images)
    assert not torch.equal(wide(images)[:, 24:32], images[:, :8])
    assert narrow(wide(images)).shape[1] == 6


def test_fastnet_trains_neither_its_patches_nor_the_scales_of_its_norms() -> None:
    model = network("fastnet", CIFAR)
    frozen = {key for key, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {
        "whiten.weight",
        *(f"features.{group}.{norm}.weight" for group in (1, 2) for norm in ("first.2", "others.1")),
    }
    assert all(bool((model.state_dict()[key] == 1).all()) for key in frozen - {"whiten.weight"})


def test_a_group_of_three_adds_what_went_into_its_last_two() -> None:
    model, images = network("fastnet with all", CIFAR).eval(), pictures((24, 8, 8))
    group = model.features[1]
    halved = group.first(images)
    second, norm2, _, third, norm3 = group.others
    expected = nn.functional.gelu(norm3(third(nn.functional.gelu(norm2(second(halved))))) + halved)
    assert torch.equal(group(images), expected)
    assert (norm2.momentum, model.scale) == (0.1, 0.5)


@pytest.mark.parametrize("training", [True, False])
def test_resnet_computes_what_torchvisions_blocks_compute(training: bool) -> None:
    from torchvision.models.resnet import BasicBlock

    own = network("resnet with all", CIFAR).train(training)
    shapes = [(4, 4, 1), (4, 4, 1), (4, 4, 2), (4, 4, 1), (4, 6, 2), (6, 6, 1)]
    blocks = []
    for (channels, width, stride), block in zip(shapes, own.features[3:], strict=True):
        shortcut = None
        if stride > 1:
            shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        blocks.append(BasicBlock(channels, width, stride, shortcut))
        assert len(block.state_dict()) == len(blocks[-1].state_dict())
        names = {
            "first": "conv1",
            "first_norm": "bn1",
            "second": "conv2",
            "second_norm": "bn2",
            "shortcut": "downsample",
        }
        renamed = {
            ".".join([names[key.split(".")[0]], *key.split(".")[1:]]): value
            for key, value in block.state_dict().items()
        }
        blocks[-1].load_state_dict(renamed)
    images = pictures(CIFAR, count=4)
    theirs = nn.Sequential(*own.features[:3], *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), own.classifier).train(
        training
    )
    torch.testing.assert_close(own(images), theirs(images), rtol=1e-4, atol=1e-5)


def test_resnet_halves_the_image_with_each_stage_after_the_first() -> None:
    assert network("resnet with all", CIFAR).features(pictures(CIFAR)).shape == (2, 6, 8, 8)


def test_mlp_is_its_formula() -> None:
    model = network("mlp", (1, 2, 2), 3, hidden=[4], activation="tanh")
    _, first, _, last = model.layers
    images = pictures((1, 2, 2))
    expected = torch.tanh(images.flatten(1) @ first.weight.T + first.bias) @ last.weight.T + last.bias
    torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh", "sigmoid"])
def test_mlp_has_the_activation_it_is_given(activation: str) -> None:
    model = network("mlp", (1, 1, 1), 1, hidden=[1], activation=activation)
    function = getattr(torch.nn.functional, activation, None) or getattr(torch, activation)
    hidden = torch.tensor([[-1.5], [0.5]])
    torch.testing.assert_close(model.layers[2](hidden), function(hidden))


@pytest.mark.parametrize(
    ("variant", "count", "kind"),
    [("mlp with all", 2, nn.BatchNorm1d), ("cnn with all", 2, nn.BatchNorm2d), ("mlp", 0, nn.BatchNorm1d)],
)
def test_batch_norm_follows_each_hidden_layer_if_requested(variant: str, count: int, kind: type[nn.Module]) -> None:
    assert sum(isinstance(module, kind) for module in network(variant).modules()) == count


@pytest.mark.parametrize("pool", ["last", "attention"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_every_kind_of_recurrent_network_gives_a_number_for_each_class(
    cell: str, bidirectional: bool, layers: int, pool: str
) -> None:
    changes = {"cell": cell, "bidirectional": bidirectional, "layers": layers, "pool": pool, "dropout": 0.2}
    assert network("lstm", CIFAR, 7, **changes)(pictures(CIFAR)).shape == (2, 7)


@pytest.mark.parametrize("pool", ["last", "attention"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_recurrent_layers_that_are_split_compute_the_same_and_draw_dropout_from_the_saved_generator(
    cell: str, pool: str
) -> None:
    changes = {"cell": cell, "pool": pool, "layers": 3, "bidirectional": True, "dropout": 0.5}
    whole, parts = (network("lstm", CIFAR, 7, **changes) for _ in range(2))
    parts.layers = lstm.split(parts.recurrent)
    assert list(parts.state_dict()) == list(whole.state_dict())
    assert [*map(id, parts.layers[2].parameters())] == [*map(id, [*parts.recurrent.parameters()][16:])]
    for model in (whole, parts):
        torch.manual_seed(1)
        model(pictures(CIFAR)).sum().backward()
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    torch.testing.assert_close(whole.eval()(pictures(CIFAR)), parts.eval()(pictures(CIFAR)))


def test_recurrent_layers_are_split_only_off_the_cpu_and_for_dropout() -> None:
    changes = {"layers": 2, "dropout": 0.5}
    model = network("lstm", **changes).to("cpu")
    assert model.layers == []
    assert len(model.to("meta").layers) == 2
    assert all(weight.is_meta for layer in model.layers for weight in layer.parameters())
    assert network("lstm", layers=2, dropout=0.0).to("meta").layers == []


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_last_pooling_takes_the_final_state_of_each_direction(cell: str, layers: int) -> None:
    model = network("lstm", (2, 5, 3), 4, cell=cell, layers=layers, bidirectional=True).eval()
    images = pictures((2, 5, 3), count=3)
    rows = torch.stack([torch.cat([images[:, 0, row], images[:, 1, row]], dim=1) for row in range(5)], dim=1)
    _, final = model.recurrent(rows)
    hidden = final[0] if cell == "lstm" else final  # (2 * layers, B, hidden); the top layer's two come last
    torch.testing.assert_close(model(images), model.classifier(torch.cat([hidden[-2], hidden[-1]], dim=1)))


@pytest.mark.parametrize("variant", ["lstm with all", "attention", "attention on rows", "attention on convolutions"])
def test_attention_pooling_is_a_weighted_mean_whose_weights_sum_to_1(variant: str) -> None:
    model, tokens = network(variant, (1, 8, 8), 3, dropout=0.0).eval(), []
    model.score.register_forward_hook(lambda _, inputs, scores: tokens.append((inputs[0], scores)))
    output = model(pictures((1, 8, 8)))
    states, scores = tokens[0]  # (B, T, features), (B, T, 1)
    weights = scores.exp() / scores.exp().sum(dim=1, keepdim=True)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(2, 1))
    torch.testing.assert_close(output, model.classifier((weights * states).sum(dim=1)))


def test_attention_pooling_of_equal_rows_is_any_of_them() -> None:
    model = network("attention", (1, 8, 8), 3, tokens="rows").eval()
    with torch.no_grad():
        model.positions.zero_()
    images = pictures((1, 1, 8)).expand(2, 1, 8, 8)
    states = model.norm(model.blocks(model.embed(images).flatten(2).transpose(1, 2)))
    torch.testing.assert_close(model(images), model.classifier(states[:, 0]))


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [
        ({"tokens": "patches", "patch": 4}, 8 * 7),
        ({"tokens": "patches", "patch": 2}, 16 * 14),
        ({"tokens": "rows"}, 32),
        ({"tokens": "convolutions", "patch": 4}, 8 * 7),
        ({"tokens": "convolutions", "patch": 2}, 16 * 14),
    ],
    ids=str,
)
def test_tokens_are_the_patches_or_the_rows(changes: dict[str, Any], tokens: int) -> None:
    model = network("attention", (3, 32, 28), 2, **changes)
    assert model.positions.shape == (1, tokens, 8)


def test_a_patch_embedding_keeps_its_position() -> None:
    model = network("attention", (1, 8, 8), 2, patch=4)
    images = torch.zeros(1, 1, 8, 8)
    images[:, :, 0:4, 4:8] = 1.0  # the second square
    embedded = model.embed(images).flatten(2).transpose(1, 2)  # (1, T, width)
    changed = (embedded != model.embed.bias).any(dim=2)
    assert changed.tolist() == [[False, True, False, False]]


def test_convolutions_make_a_token_of_each_square_and_of_its_neighbours() -> None:
    model = network("attention", (1, 16, 16), 2, tokens="convolutions", patch=4)
    convolutions = [layer for layer in model.embed if isinstance(layer, nn.Conv2d)]
    assert [layer.weight.shape for layer in convolutions] == [(4, 1, 3, 3), (8, 4, 3, 3)]
    images = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    embedded = model.embed(images)
    assert embedded.shape == (1, 8, 4, 4)
    embedded[:, :, 1, 1].sum().backward()
    rows = images.grad.abs().sum(dim=3).flatten().nonzero().flatten()
    assert rows.min() < 4 and rows.max() >= 8  # more than its own square of rows 4 to 7


def test_drop_path_skips_the_branches_of_whole_images_and_keeps_their_mean() -> None:
    model = network("attention", (1, 8, 8), 2, tokens="rows", depth=3, drop_path=0.5)
    assert [block.drop_path for block in model.blocks] == [0.0, 0.25, 0.5]
    block, x = model.blocks[2], torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0)).expand(4000, 5, 8)
    torch.nn.init.zeros_(block.mlp[2].weight)
    torch.nn.init.zeros_(block.mlp[2].bias)
    change = block(x) - x
    skipped = (change == 0).flatten(1).all(dim=1)
    assert 0.45 < skipped.float().mean() < 0.55
    block.eval()
    branch = (block(x) - x)[:1]
    torch.testing.assert_close(change[~skipped], (2 * branch).expand(int((~skipped).sum()), 5, 8))


def test_attention_is_softmax_of_products() -> None:
    block = network("attention", (1, 8, 8), 2, tokens="rows").eval().blocks[0]
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    parts = block.query_key_value(block.norm1(x)).chunk(3, dim=2)
    query, key, value = (part.view(2, 5, 2, 4).transpose(1, 2) for part in parts)  # (B, heads, T, W / heads)
    weights = (query @ key.transpose(2, 3) / 4**0.5).softmax(dim=3)
    mixed = x + block.project((weights @ value).transpose(1, 2).reshape(2, 5, 8))
    torch.testing.assert_close(block(x), mixed + block.mlp(block.norm2(mixed)))


@pytest.mark.parametrize("tokens", [2, LONGEST, LONGEST + 1])
def test_attention_in_bf16_is_that_of_torch_to_rounding_with_its_gradients(tokens: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    exact = torch.randn(3, 2, 4, tokens, 8, generator=generator, dtype=torch.float64).requires_grad_()
    rounded = exact.detach().bfloat16().requires_grad_()
    found, expected = attend(*rounded), nn.functional.scaled_dot_product_attention(*exact)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=0.03, atol=0.03)
    found.float().square().sum().backward()
    expected.square().sum().backward()
    assert rounded.grad is not None and exact.grad is not None
    difference = (rounded.grad.double() - exact.grad).norm() / exact.grad.norm()
    assert difference < 0.02, difference


def test_the_autoencoder_squeezes_through_its_last_hidden_layer_and_mirrors_the_others() -> None:
    model = network("autoencoder", hidden=[9, 5])
    assert model.encoder(pictures(MNIST)).shape == (2, 5)
    widths = [(layer.in_features, layer.out_features) for layer in model.modules() if isinstance(layer, nn.Linear)]
    assert widths == [(784, 9), (9, 5), (5, 9), (9, 784)]


def test_neither_the_code_nor_the_image_is_cut_at_zero() -> None:
    model, images = network("autoencoder"), pictures(MNIST, count=8)
    assert (model.encoder(images) < 0).any()
    assert (model(images) < 0).any()


@pytest.mark.parametrize(
    ("variant", "shape", "changes", "message"),
    [
        ("attention", MNIST, {"patch": 5}, "model.patch must divide 28x28. Received 5"),
        ("attention", (1, 28, 30), {"patch": 4}, "model.patch must divide 28x30. Received 4"),
        ("attention", MNIST, {"tokens": "convolutions", "patch": 5}, "model.patch must divide 28x28. Received 5"),
        ("attention", MNIST, {"tokens": "convolutions", "patch": 7}, "model.patch must be 2, 4, 8 or 16"),
        ("attention", MNIST, {"heads": 3}, "model.heads must divide model.width=8. Received 3"),
        ("cnn", MNIST, {"widths": [4] * 5}, "28x28 is too small for 5 pools; set fewer model.widths"),
        ("cnn", (1, 1, 64), {}, "1x64 is too small for 1 pools"),
        ("lenet", (1, 11, 28), {}, "lenet needs images of at least 12x12 pixels, the data has 11x28"),
    ],
)
def test_a_size_that_does_not_fit_is_a_value_error(
    variant: str, shape: tuple[int, ...], changes: dict[str, Any], message: str
) -> None:
    node = VARIANTS[variant] | changes
    make = registry.partial_call("model", DEFAULTS[node["name"]] | node, input_shape=shape, num_classes=10)
    with pytest.raises(ValueError) as caught:
        make()
    assert message in str(caught.value)


@pytest.mark.parametrize("side", [12, 20, 28, 31])
def test_lenet_takes_images_from_12_pixels_on(side: int) -> None:
    assert network("lenet", (1, side, side))(pictures((1, side, side))).shape == (2, 10)


def test_build_turns_a_value_error_into_a_config_error_with_the_shape() -> None:
    with pytest.raises(ConfigError, match=r"^model=attention cannot be built for data of \(1, 28, 28\): model.patch"):
        network("attention", patch=5)


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a module models_own into the current folder; returns the import path of a name in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "models_own", raising=False)

    def write(text: str) -> str:
        (tmp_path / "models_own.py").write_text("import math\nfrom torch import nn\n" + text)
        return "models_own:Own"

    return write


CUSTOM = """
class Own(nn.Sequential):
    def __init__(self, *, input_shape, num_classes, width=3):
        inputs = math.prod(input_shape)
        super().__init__(nn.Flatten(), nn.Linear(inputs, width), nn.Linear(width, num_classes))
"""


def test_a_user_class_is_built_with_its_keys_and_the_sizes_of_the_data(own_code: Callable[[str], str]) -> None:
    model = build.model({"name": own_code(CUSTOM), "width": 5}, CIFAR, 7)
    assert [tuple(parameter.shape) for parameter in model.parameters()] == [(5, 3072), (5,), (7, 5), (7,)]
    assert model(pictures(CIFAR)).shape == (2, 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def Own(): return 5", "expected a torch.nn.Module, got int"),
        ("def Own(): return {}['a']", r"cannot be built for data of \(1, 28, 28\): KeyError: 'a'"),
        ("def Own(num_classes): raise ValueError('too many')", r"for data of \(1, 28, 28\): too many"),
    ],
)
def test_user_code_that_builds_no_network_is_a_config_error(
    own_code: Callable[[str], str], text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build.model({"name": own_code(text)}, MNIST, 10)
