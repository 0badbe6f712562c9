"""Typos get an answer: each name one edit away from a real one is refused, and the right name is told.

What may be mistyped are the keys of every subcommand, with every option of every group, the options themselves, the
values that can be counted, and the subcommands. All go through what answers them; those drawn through the command line.
"""

import copy
import functools
import random
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dltrain import cli
from dltrain.config import diagnostics, hints, registry, signatures, validation
from dltrain.config.composition import compose
from support.command import Command
from support.tiers import counts

CONFIGS = Path(__file__).parents[2] / "configs"
GROUPS = (*registry.GROUPS, "device", "experiment")
INPUTS = {"train": [], "eval": ["ckpt=run"], "predict": ["ckpt=run", "input=a.png"], "export": ["ckpt=run"]}
# What an option has no default for.
NEEDED = {"folder": ["data.root=pictures"], "table": ["data.file=labels.csv"], "arrays": ["data.file=a.npz"]}
LETTERS = string.ascii_lowercase + string.digits + "_"
NOT_WORDS = {"true", "false", "null"}
COUNTED = re.compile(r"(?:there are|must be(?: one of)?) ([^()\n]+)")


@dataclass(frozen=True)
class Place:
    """Where names are typed: arguments before, what stands around a name, those tried here, all that are right here."""

    kind: str
    arguments: tuple[str, ...]
    form: str
    names: tuple[str, ...]
    known: tuple[str, ...]
    answer: Callable[[str], str]


def edits(word: str) -> set[str]:
    """All words that one deletion, insertion, substitution, or swap of neighbours makes of a word."""
    found = set()
    for at in range(len(word) + 1):
        before, behind = word[:at], word[at:]
        found |= {before + behind[1:], before + behind[1:2] + behind[:1] + behind[2:]}
        found |= {before + letter + rest for letter in LETTERS for rest in (behind, behind[1:])}
    return found - {word, ""}


def typos(name: str) -> set[str]:
    """Edits of the last part of a dotted key, and of the part before it."""
    parent, dot, last = name.rpartition(".")
    return {parent + dot + edit for edit in edits(last)} | {f"{edit}.{last}" for edit in edits(parent) if dot}


def options(group: str) -> tuple[str, ...]:
    return tuple(registry.options(group, [CONFIGS]))


@functools.cache
def places(every: int) -> list[Place]:
    """Everywhere names are typed, each key with the first option that has it; with one in `every` options."""

    def nearest(kind: str, arguments: list[str], form: str, names: tuple[str, ...], known: tuple[str, ...]) -> Place:
        return Place(kind, tuple(arguments), form, names, known, lambda typo: validation.suggest(typo, known))

    def key(arguments: list[str], names: tuple[str, ...], known: tuple[str, ...]) -> Place:
        return Place("key", tuple(arguments), "{}=1", names, known, lambda typo: validation.of_key(typo, known))

    found = [nearest("subcommand", [], "{}", cli.COMMANDS, cli.COMMANDS)]
    found += [nearest("option", ["train"], f"{group}={{}}", options(group), options(group)) for group in GROUPS]
    lines = [[command, *inputs] for command, inputs in INPUTS.items()]
    chosen = [(group, option) for group in GROUPS[:-1] for option in options(group)][::every]
    lines += [["train", f"{group}={option}", *NEEDED.get(option, [])] for group, option in chosen]
    seen = set()
    for line in lines:
        config = compose(line[0], line[1:])
        known = tuple(diagnostics.known_keys(config, line[0]))
        new = tuple(key for key in known if (line[0], key) not in seen)
        seen |= {(line[0], key) for key in new}
        found.append(key(line, new, known))
        found += [checked_value(line, config, key, words) for key, words in counted(config, line[0]) if key in new]
    return found


def counted(config: dict[str, Any], command: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Keys that take one of a few words, and these."""
    source, name, nodes = registry.COMMANDS[command]
    own = {"": signatures.builtin(source, name)}
    own |= {f"{node}.": signatures.builtin(*place) for node, place in nodes.items() if place}
    one = [node for node, place in nodes.items() if not place and not registry.GROUPS[node].several]
    built_in = [node for node in one if config[node]["name"] != "???"]
    own |= {f"{node}.": registry.signature(node, config[node]["name"]) for node in built_in}
    for prefix, signature in own.items():
        for key, rule in signature.keys.items() if signature else ():
            if set(words := hints.choices(rule.hint)) - NOT_WORDS:
                yield prefix + key, tuple(words)


def checked_value(line: list[str], config: dict[str, Any], key: str, words: tuple[str, ...]) -> Place:
    def answer(typo: str) -> str:
        wrong = copy.deepcopy(config)
        parent, _, last = key.rpartition(".")
        (wrong[parent] if parent else wrong)[last] = typo
        faults = validation.find_problems(wrong, line[0])
        return "\n".join(fault.removeprefix(key) for fault in faults if fault.startswith(f"{key}="))

    names = tuple(word for word in words if word not in NOT_WORDS)
    return Place("value", tuple(line), f"{key}={{}}", names, words, answer)


def every_typo(every: int) -> Iterator[tuple[Place, str, str]]:
    """All typos, each with the right name; what happens to be another right name is no typo."""
    for place in places(every):
        for name in place.names:
            for typo in sorted(typos(name) - set(place.known)):
                yield place, name, typo


def told(answer: str) -> set[str]:
    """The names in `did you mean X?`, `there are X, Y` or `must be one of X, Y`."""
    if guess := re.search(r"did you mean (\S+)\?", answer):
        return {guess[1]}
    return {name.strip() for names in COUNTED.findall(answer) for name in re.split(", | or ", names)}


@pytest.mark.parametrize(
    ("share", "every"),
    [(0.01, 8), pytest.param(0.1, 1, marks=pytest.mark.slow), pytest.param(1.0, 1, marks=pytest.mark.torture)],
)
def test_at_least_95_percent_of_all_typos_are_answered_with_the_right_name(share: float, every: int) -> None:
    generator = random.Random(0)
    asked, right = Counter[str](), Counter[str]()
    for place, name, typo in every_typo(every):
        if generator.random() < share:
            asked[place.kind] += 1
            answer = place.answer(typo)
            assert answer or place.kind != "value", f"{place.form.format(typo)} is taken"
            right[place.kind] += name in told(answer)
    print({kind: f"{right[kind]} of {asked[kind]}" for kind in asked})
    assert set(asked) == {"subcommand", "option", "key", "value"}
    assert all(right[kind] >= 0.95 * asked[kind] for kind in asked)


@counts(3, 30, 300)
def test_a_typo_on_the_command_line_is_refused_with_the_right_name(dltrain: Command, count: int) -> None:
    right = 0
    for place, name, typo in random.Random(count + 1).sample(list(every_typo(8 if count < 30 else 1)), count):
        line = [*place.arguments, place.form.format(typo)]
        result = dltrain(*line)
        assert result.code == 2, line
        assert "Traceback" not in result.err, line
        assert len(result.err.splitlines()) <= 3, f"{line}: {result.err}"
        assert typo in result.err
        right += name in told(result.err)
    print(f"{right} of {count}")
    assert right >= 0.95 * count
    assert not Path("outputs").exists()


def test_edits_are_those_of_one_stroke() -> None:
    assert {"r", "l", "rl", "l1", "lrr", "xlr", "l_", "lr0"} <= edits("lr")
    assert len(edits("lr")) == 2 + (3 * 37 - 2) + 2 * 36 + 1  # l and r doubled are the same wherever they come


def test_an_answer_without_the_right_name_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the tests above could not fail."""
    monkeypatch.setattr(validation, "of_key", lambda word, known: f"; did you mean {sorted(known)[0]}?")
    with pytest.raises(AssertionError):
        test_at_least_95_percent_of_all_typos_are_answered_with_the_right_name(0.01, 8)
