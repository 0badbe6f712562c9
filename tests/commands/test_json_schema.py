"""The schema for editors: it is a valid one, what dltrain takes conforms, and typical mistakes do not."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from omegaconf import OmegaConf

from dltrain.commands.json_schema import schema_of_configs, value_schema
from dltrain.config import registry
from dltrain.config.composition import compose
from dltrain.config.hints import conforms
from dltrain.config.registry import config_folder
from support.command import Command
from support.tiers import mostly_slow

EXPERIMENTS = sorted(config_folder().glob("experiment/**/*.yaml"))


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    return Draft202012Validator(json.loads(json.dumps(schema_of_configs(config_folder()))))


def is_valid(validator: Draft202012Validator, text: str) -> bool:
    return validator.is_valid(yaml.safe_load(text))


def test_list_prints_a_valid_json_schema(dltrain: Command, validator: Draft202012Validator) -> None:
    printed = json.loads(dltrain("list", "--schema").out)
    assert printed["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(printed)
    assert printed == validator.schema


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_conforms(validator: Draft202012Validator, path: Path) -> None:
    assert [error.message for error in validator.iter_errors(OmegaConf.to_container(OmegaConf.load(path)))] == []


def composed() -> list[list[str]]:
    words: list[list[str]] = [[]]
    for group in registry.GROUPS:
        words += [[f"{group}={name}"] for name in registry.names(group)]
    return words


@pytest.mark.parametrize("words", mostly_slow(composed(), fast=composed()[::6]), ids=" ".join)
def test_every_composed_config_conforms(validator: Draft202012Validator, words: list[str]) -> None:
    assert [error.message for error in validator.iter_errors(compose("train", words))] == []


def test_the_config_that_a_run_leaves_conforms(dltrain: Command, validator: Draft202012Validator) -> None:
    run = dltrain("train", "model=linear", "data.limit=100", "epochs=1").folder
    assert is_valid(validator, (run / ".hydra" / "config.yaml").read_text())


RIGHT = [
    "optim: {lr: 0.1}",
    "data: {root: '${oc.env:HOME}/data'}",
    "init: ???",
    "checkpoint_every: 30s",
    "checkpoint_every: 100",
    "patience: null",
    "model: {hidden: 5}",
    "model: {hidden: [5, 6]}",
    "model: {name: 'my_nets:MyNet', anything: 3}",
    "defaults: [{override /model: custom}]\nmodel: {name: 'my_nets:MyNet', anything: 3}",
    "defaults: [_self_, {override /model: mlp}, {override hydra/launcher: joblib}]\nmodel: {hidden: [3]}",
    "hydra: {sweeper: {params: {seed: 'range(3)'}}}",
    "sweep: {workers: 2, job_timeout: 10m}",
]
WRONG = [
    "optim: {lr: -1}",
    "optim: {lrr: 0.1}",
    "optim: {lr: fast}",
    "optim: {lr: true}",
    "epoch: 3",
    "epochs: 0",
    "epochs: 1.5",
    "epochs: null",
    "batch_size: '64'",
    "checkpoint_every: soon",
    "data: {val: 2.5}",
    "data: {flip: maybe}",
    "device: {name: gpu}",
    "model: {name: lennet}",
    "model: {name: mlp, depth: 3}",
    "model: {name: mlp, activation: rleu}",
    "model: {name: mlp, hidden: 5}",
    "model: mlp",
    "sweep: {worker: 2}",
    "defaults: [{override /model: lennet}]",
    "defaults: [{override /modle: mlp}]",
    "defaults: [{override /model: mlp}]\nmodel: {patch: 4}",
    "defaults: [{override /model: cnn}]\nmodel: {hidden: [5]}",
]


@pytest.mark.parametrize("text", RIGHT)
def test_configs_that_dltrain_accepts_conform_to_the_schema(validator: Draft202012Validator, text: str) -> None:
    assert is_valid(validator, text)


@pytest.mark.parametrize("text", WRONG)
def test_a_typical_mistake_does_not_conform_to_the_schema(validator: Draft202012Validator, text: str) -> None:
    assert not is_valid(validator, text)


def test_the_schema_has_every_key_of_every_option_with_meaning_and_default(validator: Draft202012Validator) -> None:
    definitions = validator.schema["$defs"]
    for group in registry.GROUPS:
        for name in registry.names(group):
            signature = registry.of_option(group, name)
            assert signature is not None
            if registry.GROUPS[group].several:
                properties = validator.schema["properties"][group]["properties"][name]["properties"]
            else:
                properties = definitions[f"{group}.{name}"]["properties"]
            for key, rule in signature.keys.items():
                assert rule.meaning in properties[key]["description"]
    assert definitions["optim.sgd"]["properties"]["lr"]["default"] == 0.05
    assert validator.schema["properties"]["epochs"]["default"] == 20


VALUES: list[Any] = [None, True, False, 0, 1, -1, 7, 0.5, 1.0e9, "", "30s", "relu", [], [1], [1, 2], [0.1], ["a"], {}]


def test_the_schema_of_a_type_hint_agrees_with_the_checks() -> None:
    hints = {
        repr(rule.hint): rule.hint
        for group in registry.GROUPS
        for name in registry.names(group)
        if (signature := registry.of_option(group, name)) is not None
        for rule in signature.keys.values()
    }
    hints |= {repr(rule.hint): rule.hint for rule in registry.keys("train", compose("train", [])).values()}
    assert len(hints) > 20
    for hint in hints.values():
        checker = Draft202012Validator(value_schema(hint))
        for value in VALUES:
            if isinstance(value, float) and value.is_integer():  # JSON has no two kinds of numbers
                continue
            assert checker.is_valid(value) == conforms(value, hint), (hint, value)


def test_hydra_reads_an_experiment_with_the_line_for_editors(dltrain: Command) -> None:
    Path("mine/experiment").mkdir(parents=True)
    lines = ["# @package _global_", "# yaml-language-server: $schema=../../dltrain.schema.json", "# Short", "epochs: 3"]
    Path("mine/experiment/short.yaml").write_text("\n".join(lines))
    assert "experiment=short" in dltrain("train", "--config-dir", "mine", "--help").out
    assert "yaml-language-server" not in dltrain("train", "--config-dir", "mine", "--help").out
    result = dltrain("train", "--config-dir", "mine", "experiment=short", "--explain", "epochs")
    assert (result.code, result.out.splitlines()[0]) == (0, "epochs=3")


def test_list_as_json_has_the_options_with_their_keys(dltrain: Command) -> None:
    content = json.loads(dltrain("list", "--json").out)
    assert list(content) == list(registry.LISTED_GROUPS)
    assert content["optim"]["sgd"]["keys"]["lr"] == {
        "type": "a number > 0",
        "meaning": "learning rate",
        "default": 0.05,
    }
    assert content["logger"]["mlflow"]["keys"]["experiment"]["default"] == "dltrain"
    for group, options in content.items():
        files = (path.relative_to(config_folder() / group) for path in (config_folder() / group).rglob("*.yaml"))
        assert sorted(options) == sorted(str(file.with_suffix("")) for file in files)
        assert all(option["summary"] for option in options.values())
