"""Shell completion: what Hydra offers, with subcommands in front and the values of keys behind."""

import contextlib
import io
import itertools
import os
from collections.abc import Callable, Sequence

from dltrain import hints, schema, signatures


def candidates(line: str, shell: str, commands: Sequence[str], hydra: Callable[[str, list[str]], int]) -> list[str]:
    """Words that may follow a command line; `hydra` runs a subcommand with arguments and prints Hydra's own answer."""
    _, *words = line.split() or [""]
    current = words.pop() if words and not line.endswith(" ") else ""
    if not words:
        return [command for command in commands if command.startswith(current)]
    command = words[0]
    if command not in schema.COMMANDS:
        return []
    flags = [f"--config-dir={folder}" for folder in _config_folders(words)]
    output = io.StringIO()
    os.environ["COMP_LINE"] = " ".join(["dltrain", *words[1:], current])
    with contextlib.redirect_stdout(output):
        hydra(command, ["-sc", f"query={shell}", *flags])
    own = schema.COMMANDS[command][2]
    offered = [word for word in output.getvalue().split() if _belongs(word.lstrip("+~"), own)]
    return sorted({*offered, *values(command, current)})


def _belongs(word: str, nodes: dict[str, tuple[str, str] | None]) -> bool:
    """Whether a word is not a group of another subcommand; Hydra offers every folder of configs/."""
    if word in ("common", "hydra", "hydra/"):
        return False
    name = word.partition("=")[0].partition("/")[0].partition(".")[0]
    if name == "experiment":
        return "model" in nodes
    return not (name in (*schema.GROUPS, "device") and name not in nodes) and not (
        name in nodes and "=" in word and nodes[name] is not None and name in schema.GROUPS
    )


def _config_folders(words: Sequence[str]) -> list[str]:
    """What --config-dir (or -cd) names on the line."""
    found = [word.partition("=")[2] for word in words if word.startswith("--config-dir=")]
    following = itertools.pairwise(words)
    return found + [value for flag, value in following if flag in ("--config-dir", "-cd")]


def values(command: str, word: str) -> list[str]:
    """`model.cell=` and the like to `model.cell=gru` …, where the values can be counted."""
    key, equals, partial = word.lstrip("+").partition("=")
    if not equals:
        return []
    source, name, nodes = schema.COMMANDS[command]
    node, dot, last = key.partition(".")
    places: list[signatures.Signature | None] = []
    if not dot:
        places, last = [signatures.builtin(source, name)], key
    elif node in nodes:
        place = nodes[node]
        places = [signatures.builtin(*place)] if place else [schema.signature(node, it) for it in schema.names(node)]
    rules = [place.keys[last] for place in places if place and last in place.keys]
    return [f"{key}={choice}" for rule in rules for choice in hints.choices(rule.hint) if choice.startswith(partial)]
