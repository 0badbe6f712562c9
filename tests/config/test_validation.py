"""A config is checked whole against the signatures it stands for, and every YAML file in configs/ passes that check."""

import copy
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from dltrain.config import registry, validation
from dltrain.config.composition import compose
from dltrain.config.validation import suggest
from dltrain.data.augmentation import Augmentation
from dltrain.runtime.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"
OPTIONS = [
    (group, name) for group in (*registry.GROUPS, "device", "experiment") for name in registry.options(group, [CONFIGS])
]
NEEDED = {
    "folder": "data.root=pictures",
    "table": "data.file=labels.csv",
    "arrays": "data.file=a.npz",
}  # what has no default
BUILT_IN = [(group, name) for group in registry.GROUPS for name in registry.names(group)]


@pytest.fixture(scope="module")
def composed() -> dict[str, Any]:
    """`dltrain train` without arguments."""
    return compose("train", [])


@pytest.fixture
def config(composed: dict[str, Any]) -> dict[str, Any]:
    """The same, to be changed."""
    return copy.deepcopy(composed)


def faults(config: dict[str, Any], origin: registry.Origin = lambda key: "") -> list[str]:
    return validation.find_problems(config, "train", origin)


def written(group: str, name: str) -> dict[str, Any]:
    """What stands in an option's YAML file."""
    node = yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text())
    return {"name": name, **node[name]} if registry.GROUPS[group].several else node


@pytest.mark.parametrize(("group", "option"), [option for option in OPTIONS if option[1] not in ("custom", *NEEDED)])
def test_every_yaml_option_passes_the_check(group: str, option: str) -> None:
    override = f"+experiment={option}" if group == "experiment" else f"{group}={option}"
    assert faults(compose("train", [override])) == []


@pytest.mark.parametrize("option", NEEDED)
def test_data_of_ones_own_passes_the_check_once_it_is_named(option: str) -> None:
    assert faults(compose("train", [f"data={option}", NEEDED[option]])) == []


@pytest.mark.parametrize("group", ["data", "model", "optim"])
def test_a_custom_option_lacks_nothing_but_its_name(group: str) -> None:
    assert faults(compose("train", [f"{group}=custom"])) == [
        f"{group}.name is required: set it to module:name, your own code, or to an option's name"
    ]


@pytest.mark.parametrize("command", ["eval", "predict", "export"])
def test_the_other_commands_lack_nothing_but_their_inputs(command: str) -> None:
    values = {"ckpt": "run", "input": "a.png"}
    overrides = [f"{key}={value}" for key, value in values.items() if key == "ckpt" or command == "predict"]
    assert validation.find_problems(compose(command, overrides), command) == []


@pytest.mark.parametrize(("group", "name"), BUILT_IN)
def test_every_key_of_an_option_stands_in_its_yaml_and_no_other(group: str, name: str) -> None:
    signature = registry.signature(group, name)
    assert signature is not None
    assert {"name", *signature.keys} == set(written(group, name))


@pytest.mark.parametrize(("group", "name"), BUILT_IN)
def test_defaults_are_only_in_yaml(group: str, name: str) -> None:
    signature = registry.signature(group, name)
    assert signature is not None
    # These came later: a user's own YAML may be without them. Augmentation is
    elsewhere = {
        "class_weights",
        "focal",
        "balance",
        "folds",
        "fold",
        "head_factor",
        "bias_factor",
        "norm_factor",
        *(key.name for key in fields(Augmentation)),
    }  # off where a split is evaluated, whatever the config says
    assert {key for key, rule in signature.keys.items() if not rule.required} <= elsewhere


@pytest.mark.parametrize(
    ("folds", "fold", "fault"),
    [
        (5, None, "data.folds=5 data.fold=null: set both, the fold from 0 to 4; all in turn: -m data.folds=5"),
        (3, 3, "data.folds=3 data.fold=3: the fold from 0 to 2"),
        (None, 1, "data.folds=null data.fold=1: set both, the fold from 0 to 4"),
        (1, 0, "data.folds=1: must be a whole number >= 2"),
        (3, -1, "data.fold=-1: must be a whole number >= 0"),
    ],
)
def test_a_fold_is_one_of_the_folds(config: dict[str, Any], folds: int | None, fold: int | None, fault: str) -> None:
    config["data"] |= {"folds": folds, "fold": fold}
    (found,) = faults(config)
    assert found.startswith(fault)
    config["data"] |= {"folds": 3, "fold": 2}
    assert not faults(config)


@pytest.mark.parametrize("group", registry.GROUPS)
def test_every_built_in_option_has_a_yaml_file_of_its_name(group: str) -> None:
    files = {path.stem for path in (CONFIGS / group).glob("*.yaml")} - {"custom", "none"}
    assert files == set(registry.names(group))
    assert all(written(group, name)["name"] == name for name in files)


def test_all_problems_are_found_together(config: dict[str, Any]) -> None:
    config |= {"epochs": 0, "sed": 1, "model": {"name": "lennet"}}
    config["optim"] |= {"lrr": 1, "lr": -5, "momentum": "x"}
    config["data"]["val"] = 1.5
    config["device"]["threads"] = 0
    del config["patience"], config["optim"]["nesterov"]
    assert sorted(faults(config)) == [
        "data.val=1.5: must be a number >= 0, < 1 or a whole number >= 0",
        "device.threads=0: must be a whole number >= 1, <= 1024 or null",
        "epochs=0: must be a whole number >= 1",
        "model.name=lennet: no such model; did you mean lenet?",
        "optim.lr=-5: must be a number > 0",
        "optim.lrr: no such key; did you mean optim.lr?",
        "optim.momentum=x: must be a number >= 0, < 1",
        "optim.nesterov is required: look ahead along the momentum (needs momentum > 0)",
        "patience is required: stop after this many epochs without a better validation metric; null for never",
        "sed: no such key; did you mean seed?",
    ]


@pytest.mark.parametrize(
    ("node", "key", "message"),
    [
        ("", "epoch", "epoch: no such key; did you mean epochs?"),
        ("", "lr", "lr: no such key; did you mean optim.lr?"),
        ("", "crop", "crop: no such key; did you mean data.crop?"),
        ("optim", "epochs", "optim.epochs: no such key; did you mean epochs?"),
        ("optim", "beta1", "optim.beta1: no such key"),
        ("device", "thread", "device.thread: no such key; did you mean device.threads?"),
        ("data", "flipp", "data.flipp: no such key; did you mean data.flip?"),
        ("task", "label_smooth", "task.label_smooth: no such key; did you mean task.label_smoothing?"),
    ],
)
def test_an_unknown_key_is_reported_with_the_nearest_name(
    config: dict[str, Any], node: str, key: str, message: str
) -> None:
    (config[node] if node else config)[key] = 1
    found = faults(config)
    assert len(found) == 1
    assert found[0].startswith(message)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", -1, "seed=-1: must be a whole number >= 0, < 18446744073709551616"),
        ("epochs", True, "epochs=true: must be a whole number >= 1"),
        ("epochs", None, "epochs=null: must be a whole number >= 1"),
        ("clip_norm", 0, "clip_norm=0: must be a number > 0 or null"),
        ("clip_norm", float("nan"), "clip_norm=nan: must be a number > 0 or null"),
        (
            "checkpoint_every",
            "30",
            'checkpoint_every="30": must be a whole number >= 1 or a time such as 30s, 5m or 1h, not text',
        ),
        ("trust", [1], "trust=[1]: must be text or a list, each text"),
        ("epochs", "???", "epochs is required: passes over the training set"),
        ("optim", {}, "optim.name is required: set it to module:name, your own code, or to an option's name"),
        ("task", {"name": "clasification"}, "task.name=clasification: no such task; did you mean classification?"),
        (
            "task",
            {"name": "zzz"},
            "task.name=zzz: no such task; there are classification, reconstruction, regression; "
            "for your own code give its module, task.name=module:zzz",
        ),
    ],
)
def test_a_wrong_value_is_reported_with_the_rule(config: dict[str, Any], key: str, value: object, message: str) -> None:
    config[key] = value
    assert faults(config) == [message]


def test_a_group_without_keys_is_one_problem(config: dict[str, Any]) -> None:
    config["optim"] = None
    (fault,) = validation.find_problems(config, "train")
    assert fault == "optim=null: must be a group of keys"


def test_a_problem_names_the_source_of_its_value(config: dict[str, Any]) -> None:
    config |= {"epochs": 0, "sed": 1, "model": {"name": "lennet"}}
    origins = {"epochs": "the command line", "sed": "mine.yaml", "model.name": "other.yaml"}
    assert faults(config, lambda key: origins.get(key, "")) == [
        "epochs=0: must be a whole number >= 1 (from the command line)",
        "sed: no such key; did you mean seed? (from mine.yaml)",
        "model.name=lennet: no such model; did you mean lenet? (from other.yaml)",
    ]


def test_an_argument_injected_by_the_program_is_not_a_key(config: dict[str, Any]) -> None:
    config["model"] |= {"input_shape": [1, 2, 3], "num_classes": 4}
    assert [fault.partition(":")[0] for fault in faults(config)] == ["model.input_shape", "model.num_classes"]


@pytest.mark.parametrize("group", registry.GROUPS)
def test_helpers_beside_the_options_are_no_options(group: str) -> None:
    assert not {"seeded_generator", "augmentation", "data_root", "block", "examples", "pictures", "batches"} & set(
        registry.names(group)
    )
    assert all(registry.signature(group, name) for name in registry.names(group))


def test_an_unknown_built_in_has_no_signature() -> None:
    assert registry.signature("model", "lennet") is None


@pytest.mark.parametrize(("group", "name"), BUILT_IN)
def test_bind_finds_the_code_behind_every_option(group: str, name: str) -> None:
    bound = registry.partial_call(group, written(group, name))
    assert bound.func.__name__.lower() == name


def test_partial_call_passes_only_config_and_injected_arguments() -> None:
    node = {"name": "line", "count": 3, "val": 0, "limit": None, "flip": True}
    bound = registry.partial_call("data", node, device="not for this function")
    assert (bound.args, bound.keywords) == ((), {"count": 3})


def test_bind_refuses_an_unknown_option_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="task=zzz: no such option; there are classification, reconstruction, regr"):
        registry.partial_call("task", {"name": "zzz"})


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module schema_own in the current folder, with a strict and a lenient function."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "schema_own.py").write_text(
        "def strict(named_parameters, *, lr: float, decay: float = 0.0): ...\n"
        "def lenient(named_parameters, **settings): ...\n"
    )
    monkeypatch.delitem(sys.modules, "schema_own", raising=False)


@pytest.mark.usefixtures("own_code")
def test_user_code_is_checked_like_built_in_code(config: dict[str, Any]) -> None:
    config["optim"] = {"name": "schema_own:strict", "decay": "x", "momentum": 0.9}
    assert faults(config) == [
        "optim.decay=x: must be a number",
        "optim.momentum: no such key; there is optim.momentum with optim=muon, rmsprop, sgd",
        "optim.lr is required: a number",
    ]


@pytest.mark.usefixtures("own_code")
def test_user_code_with_kwargs_accepts_all_keys(config: dict[str, Any]) -> None:
    config["optim"] = {"name": "schema_own:lenient", "anything": [1, 2]}
    assert faults(config) == []
    assert registry.partial_call("optim", config["optim"]).keywords == {"anything": [1, 2]}


@pytest.mark.usefixtures("own_code")
def test_missing_user_code_is_one_problem_among_the_others(config: dict[str, Any]) -> None:
    config |= {"epochs": 0, "optim": {"name": "schema_own:nothing"}}
    assert faults(config) == [
        "epochs=0: must be a whole number >= 1",
        "optim.name=schema_own:nothing: schema_own has no function or class nothing",
    ]


@pytest.mark.parametrize(
    ("word", "known", "hint"),
    [
        ("epoch", ["epochs", "seed"], "; did you mean epochs?"),
        ("lr", ["optim.lr", "epochs"], "; did you mean optim.lr?"),
        ("zzz", ["a", "b"], "; there are a, b"),
        ("zzz", [], ""),
        ("zzz", [str(number) for number in range(13)], ""),
    ],
)
def test_a_suggestion_is_the_nearest_name_or_all_of_a_few(word: str, known: list[str], hint: str) -> None:
    assert suggest(word, known) == hint


def test_every_problem_is_reported_on_a_separate_line(config: dict[str, Any]) -> None:
    config |= {"seed": "a\nb", "epochs": 0}
    with pytest.raises(ConfigError) as caught:
        validation.validate(config, "train")
    lines = ["epochs=0: must be a whole number >= 1", "seed=a b: must be a whole number >= 0, < 18446744073709551616"]
    assert (sorted(str(caught.value).splitlines()), caught.value.exit_code) == (lines, 2)


def test_a_config_without_problems_passes(config: dict[str, Any]) -> None:
    validation.validate(config, "train")
