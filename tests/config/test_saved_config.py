"""The config in a checkpoint: what may be typed over it, what makes it another run, and whose code it may name."""

import copy
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from dltrain.config import saved_config
from dltrain.runtime.errors import ConfigError

STORED: dict[str, Any] = {
    "seed": 0,
    "report": False,
    "ema": None,
    "init_partial": False,
    "metric": None,
    "hooks": [],
    "epochs": 5,
    "batch_size": 64,
    "data": {"name": "mnist", "root": "here", "val": 0.1, "balance": 0, "folds": None, "fold": None},
    "model": {"name": "mlp", "hidden": [128, 64]},
    "optim": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
    "schedule": {"name": "constant", "warmup": 0.0},
    "task": {"name": "classification", "label_smoothing": 0.0, "class_weights": None, "focal": 0.0},
    "trust": [],
    "resume": None,
}
STORED = saved_config.with_added(STORED)


def given(**changes: Any) -> dict[str, Any]:
    """A config as it is composed now: other everywhere, so that only what is typed may come through."""
    other = {"seed": 9, "epochs": 9, "batch_size": 9, "trust": [], "resume": "run"}
    nodes = {
        "data": {"name": "digits", "root": "there", "val": 0.9},
        "model": {"name": "lenet"},
        "optim": {"name": "adam", "lr": 0.9, "beta1": 0.9},
        "schedule": {"name": "cosine", "warmup": 0.9},
        "task": {"name": "regression"},
    }
    return copy.deepcopy(other | nodes | changes)


@pytest.mark.parametrize(
    ("typed", "changes"),
    [
        ([], {}),
        (["epochs"], {"epochs": 9}),
        (["optim.lr"], {"optim": {"name": "sgd", "lr": 0.9, "momentum": 0.9}}),
        (["optim"], {"optim": {"name": "adam", "lr": 0.9, "beta1": 0.9}}),
        (["optim", "optim.lr"], {"optim": {"name": "adam", "lr": 0.9, "beta1": 0.9}}),
        (["schedule", "epochs"], {"schedule": {"name": "cosine", "warmup": 0.9}, "epochs": 9}),
        (["optim.beta1"], {"optim": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "beta1": 0.9}}),
    ],
    ids=str,
)
def test_only_the_overridden_keys_replace_stored_ones(typed: list[str], changes: dict[str, Any]) -> None:
    assert saved_config.merge_overrides(STORED, given(), typed) == STORED | changes


def test_a_key_of_a_group_that_was_not_stored_is_added() -> None:
    without = {key: value for key, value in STORED.items() if key != "optim"}
    assert saved_config.merge_overrides(without, given(), ["optim.lr"])["optim"] == {"lr": 0.9}


def test_merged_configs_share_nothing_with_their_sources() -> None:
    now, before = given(), copy.deepcopy(STORED)
    joined = saved_config.merge_overrides(STORED, now, ["optim"])
    joined["optim"]["lr"] = joined["model"]["hidden"] = "changed"
    assert (STORED, now) == (before, given())


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        (["seed"], "seed"),
        (["batch_size"], "batch_size"),
        (["data.val"], "data.val"),
        (["data.name", "data.val"], "data.name, data.val"),
        (["model"], "model.hidden, model.name"),
        (["task.name"], "task.name"),
        (["seed", "model.name", "data.val"], "data.val, model.name, seed"),
    ],
    ids=str,
)
def test_a_change_that_makes_another_run_is_refused_by_name(typed: list[str], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        saved_config.resume_config(STORED, given(), typed)
    assert str(caught.value) == f"resume: {named} cannot change in a resumed run. Start a new one with init="


def test_an_override_equal_to_the_stored_value_is_no_change() -> None:
    now = given(seed=0, data=STORED["data"])
    assert saved_config.resume_config(STORED, now, ["seed", "data", "data.val"]) == STORED


@pytest.mark.parametrize("typed", [["data.root"], ["epochs"], ["optim.lr"], ["optim"], ["schedule"]], ids=str)
def test_a_resumed_run_may_change_its_data_folder_and_training_settings(typed: list[str]) -> None:
    assert saved_config.resume_config(STORED, given(), typed) == saved_config.merge_overrides(STORED, given(), typed)


def test_a_resumed_run_keeps_its_stored_resume_and_trust() -> None:
    now = given(trust=["my_package"])
    assert saved_config.resume_config(STORED, now, ["resume", "trust"]) == STORED


@pytest.fixture
def told() -> Iterator[list[str]]:
    """Lines of the log; whether they reach the root logger depends on who used it before."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("dltrain.config.saved_config")
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def test_a_change_is_logged(told: list[str]) -> None:
    saved_config.resume_config(STORED, given(), ["resume", "epochs", "optim.lr"])
    assert told == ["resume: epochs, optim.lr changed: from here on the run differs from an uninterrupted one"]


def test_no_change_is_not_logged(told: list[str]) -> None:
    saved_config.resume_config(STORED, given(), ["resume"])
    assert told == []


@pytest.mark.parametrize("group", ["data", "model", "optim", "schedule", "task"])
def test_user_code_in_a_checkpoint_is_refused_with_the_key_to_trust_it(group: str) -> None:
    config = STORED | {group: {"name": "my_package.nets:Net"}}
    with pytest.raises(ConfigError) as caught:
        saved_config.require_trusted(config, [])
    assert str(caught.value) == (
        "the checkpoint wants to run my_package.nets:Net. If you trust that code, add trust=[my_package]"
    )


OWN = STORED | {"model": {"name": "my_package.nets:Net"}}


@pytest.mark.parametrize("trust", [["my_package"], ["other", "my_package"], ("my_package",), "my_package"], ids=str)
def test_user_code_is_imported_from_a_trusted_package(trust: list[str] | str) -> None:
    assert saved_config.require_trusted(OWN, trust) is None


@pytest.mark.parametrize("trust", [[], "", ["other"], "other", ["my_pack"], "my_package_and_more", ["nets"]], ids=str)
def test_user_code_is_refused_if_another_package_is_trusted(trust: list[str] | str) -> None:
    with pytest.raises(ConfigError, match="wants to run my_package"):
        saved_config.require_trusted(OWN, trust)


def test_every_package_needs_trust() -> None:
    config = OWN | {"optim": {"name": "other.optim:Lion"}}
    with pytest.raises(ConfigError, match=r"wants to run other\.optim:Lion"):
        saved_config.require_trusted(config, ["my_package"])


def test_built_in_code_needs_no_trust() -> None:
    assert saved_config.require_trusted(STORED, []) is None


def test_a_data_file_of_ones_own_may_lack_the_keys_that_were_added() -> None:
    own = {"name": "mnist", "root": "there", "val": 0.1}
    assert saved_config.resume_config(STORED, given(data=own), ["data"])["data"] == STORED["data"] | own
