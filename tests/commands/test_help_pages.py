"""The help of each subcommand: examples that work, all options, every key with type, range, value and meaning."""

import re
import shlex
from pathlib import Path

import pytest

from dltrain import cli
from dltrain.commands import run_names
from dltrain.commands.usage import COMMANDS
from dltrain.config import composition, registry, validation
from dltrain.config.composition import compose
from dltrain.config.resolution import resolve
from support.command import Command

EXAMPLES = [(command, line) for command, usage in COMMANDS.items() for line, _ in usage.examples]


def told(text: str) -> str:
    """A help without its line breaks."""
    return " ".join(text.split())


def test_every_subcommand_has_a_usage() -> None:
    assert set(registry.COMMANDS) <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_a_help_begins_with_three_examples(dltrain: Command, command: str, flag: str) -> None:
    result = dltrain(command, flag)
    assert (result.code, result.err) == (0, "")
    heading, *rest = result.out.split("\n\n")[1].splitlines()
    assert heading == "Examples"
    assert told(" ".join(rest)).count(f"dltrain {command}") == 3


@pytest.mark.parametrize(("command", "line"), EXAMPLES, ids=str)
def test_an_example_is_a_command_line_that_can_be_used(
    command: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("outputs/DATE/TIME/checkpoints").mkdir(parents=True)
    Path("outputs/2026-11-29/10-32-00/checkpoints").mkdir(parents=True)
    for name in ("one.pt", "two.pt"):
        Path(name).touch()
    first, *words = shlex.split(line.partition(" >")[0])
    assert first == command
    if command in run_names.BARE:
        command, words = run_names.expand(command, words)
    if command in registry.COMMANDS:
        composed = composition.preview(command, words)
        assert validation.find_problems(resolve(composed.config), command) == []
    for word in words:
        if word.startswith("--"):
            assert word in [flag for flag, _ in COMMANDS[command].flags]


@pytest.mark.parametrize("words", [[], ["model=attention", "optim=adamw", "schedule=step", "data=folder"]], ids=str)
def test_the_help_has_every_key_of_the_options_typed_with_its_type_and_meaning(
    dltrain: Command, words: list[str]
) -> None:
    text = told(dltrain("train", *words, "--help").out)
    rules = registry.keys("train", compose("train", words))
    assert len(rules) > 40
    for key, rule in rules.items():
        assert re.search(rf" {re.escape(key)}(=| \(required\))", text), key
        assert rule.meaning in text, key
    assert "optim.lr=" in text
    assert ("model.heads=4 a whole number >= 1, <= 1000000; attention heads" in text) == bool(words)


def test_the_help_has_every_option_and_says_which_is_chosen(dltrain: Command) -> None:
    text = dltrain("train", "model=mlp", "--help").out
    configs = Path(__file__).parents[2] / "configs"
    for group in registry.LISTED_GROUPS:
        for path in (configs / group).rglob("*.yaml"):
            name = path.relative_to(configs / group).with_suffix("")
            assert re.search(rf"^  {group}={name}( \(chosen\))?  ", text, re.MULTILINE), name
    assert set(re.findall(r"(\S+) \(chosen\)", text)) >= {"model=mlp", "data=digits", "optim=sgd", "device=auto"}


def test_an_overridden_value_is_shown_beside_its_default(dltrain: Command) -> None:
    text = told(dltrain("train", "optim.lr=0.3", "--help").out)
    assert "optim.lr=0.3 a number > 0; learning rate; default 0.05" in text


def test_a_key_that_must_be_set_is_shown_as_required(dltrain: Command) -> None:
    assert "ckpt (required)  text or a list" in dltrain("eval", "--help").out


def test_options_of_a_user_config_folder_are_listed(dltrain: Command) -> None:
    Path("mine/model").mkdir(parents=True)
    Path("mine/model/small.yaml").write_text("# A small one\nname: linear\n")
    assert re.search(r"model=small +A small one", dltrain("train", "--config-dir", "mine", "--help").out)


def test_the_help_of_a_sweep_is_that_of_its_first_job(dltrain: Command) -> None:
    result = dltrain("train", "-m", "model=attention,lenet", "optim.lr=0.1,0.2", "--help")
    assert result.code == 0
    assert "model=attention (chosen)" in result.out
    assert "optim.lr=0.1 " in result.out


def test_a_mistake_beside_help_is_reported(dltrain: Command) -> None:
    result = dltrain("train", "model=lennet", "--help")
    assert (result.code, result.err) == (2, "error: model=lennet: no such option; did you mean lenet?\n")
    result = dltrain("train", "--nonsense", "--help")
    expected = "error: --nonsense: no such flag; dltrain train --help lists those there are\n"
    assert (result.code, result.err) == (2, expected)


def test_the_environment_is_not_shown(dltrain: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "canary")
    for words in (["--help"], ["--explain", "name"]):
        out = dltrain("train", "name=${oc.env:MY_KEY}", *words).out
        assert "name=${oc.env:MY_KEY}" in out
        assert "canary" not in out


@pytest.mark.parametrize("columns", [30, 40, 60, 80, 100, 200])
def test_a_help_is_as_wide_as_the_terminal_and_plain(
    dltrain: Command, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for command in ("train", "report"):
        lines = dltrain(command, "--help").out.splitlines()
        assert max(map(len, lines)) <= min(columns, 120)
        assert not any("\x1b" in line for line in lines)


def test_the_flags_of_hydra_still_work(dltrain: Command) -> None:
    assert "Hydra" in dltrain("train", "--hydra-help").out
    assert "configs" in dltrain("train", "--info", "searchpath").out


def test_no_arguments_and_help_are_the_same_overview(dltrain: Command) -> None:
    out = dltrain().out
    assert out == dltrain("--help").out == dltrain("help").out
    assert all(f"dltrain {command}" in out for command in cli.COMMANDS)
