"""The recorded experiments: each composes to what its header says, and trains."""

from pathlib import Path

import pytest

from dltrain.config.composition import compose
from dltrain.config.validation import find_problems
from support.command import Command
from support.tiers import mostly_slow

CONFIGS = Path(__file__).parents[2] / "configs" / "experiment"
NAMES = sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml"))
TEXTBOOK = {
    "textbook/lenet_mnist": ("lenet", "mnist", "sgd", 0.001, 64, 10),
    "textbook/mlp_mnist": ("mlp", "mnist", "sgd", 0.01, 64, 10),
    "textbook/mlp_small_mnist": ("mlp", "mnist", "sgd", 0.01, 64, 10),
    "textbook/cnn_mnist": ("cnn", "mnist", "sgd", 0.01, 64, 5),
    "textbook/lenet_cifar10": ("lenet", "cifar10", "sgd", 0.001, 100, 10),
    "textbook/linear_regression": ("linear", "line", "sgd", 0.01, 100, 1000),
    "textbook/lstm_mnist": ("lstm", "mnist", "adam", 0.001, 64, 5),
    "textbook/attention_mnist": ("attention", "mnist", "adam", 0.001, 64, 5),
    "textbook/autoencoder_mnist": ("autoencoder", "mnist", "adam", 0.001, 64, 10),
    "textbook/adam_mnist": ("mlp", "mnist", "adam", 0.001, 64, 5),
}
FAST = [name for name in NAMES if name.endswith("mlp_small_mnist")]
RECIPES = [name for name in NAMES if name.startswith(("mnist_", "cifar10_"))]


def test_every_experiment_is_a_recipe_or_a_textbook_experiment_and_none_is_missing() -> None:
    assert set(NAMES) - set(RECIPES) == set(TEXTBOOK)


@pytest.mark.parametrize("name", mostly_slow(RECIPES, fast=RECIPES[::5]))
def test_a_recipe_uses_the_data_in_its_name_without_a_validation_split(name: str) -> None:
    config = compose("train", [f"+experiment={name}"])
    assert name.split("_")[0] == config["data"]["name"]
    assert config["data"]["val"] == 0
    assert find_problems(config, "train") == []


@pytest.mark.parametrize("name", mostly_slow(TEXTBOOK, fast=list(TEXTBOOK)[::4]))
def test_a_textbook_experiment_composes_to_its_known_settings(name: str) -> None:
    config = compose("train", [f"+experiment={name}"])
    found = (config["model"]["name"], config["data"]["name"], config["optim"]["name"], config["optim"]["lr"])
    assert (*found, config["batch_size"], config["epochs"]) == TEXTBOOK[name]
    assert config["data"]["val"] == 0
    assert config["schedule"]["name"] == "constant"
    assert find_problems(config, "train") == []


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_s_header_has_its_command_and_a_measured_result(name: str) -> None:
    header = [line for line in (CONFIGS / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
    assert f"#   dltrain train experiment={name}" in header
    expected = next(line for line in header if line.startswith("# Expected: "))
    assert any(character.isdigit() for character in expected)


def test_the_command_line_overrides_an_experiment() -> None:
    assert compose("train", ["+experiment=textbook/lenet_mnist", "epochs=2", "model=mlp"])["model"]["name"] == "mlp"
    assert compose("train", ["+experiment=textbook/lenet_mnist", "epochs=2"])["epochs"] == 2


@pytest.mark.usefixtures("cifar10_sums")
@pytest.mark.parametrize("name", mostly_slow(NAMES, fast=FAST))
def test_an_experiment_trains_and_tests(dltrain: Command, data_root: Path, name: str) -> None:
    root = [] if name == "textbook/linear_regression" else [f"data.root={data_root}"]
    result = dltrain("train", f"experiment={name}", "limit_steps=2", *root)
    assert result.code == 0, result.err
    assert '"test"' in (result.folder / "summary.json").read_text()
