"""`dltrain SUBCOMMAND --help`: examples, groups with their options, every key with its type, range, value and meaning.

Generated from signatures, docstrings, YAML files and usage.py. Imports no torch.
"""

import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator

from dltrain import __version__
from dltrain.commands.usage import COMMANDS
from dltrain.config import registry
from dltrain.config.composition import Composed
from dltrain.config.dotted import at, has
from dltrain.config.hints import describe, to_cli
from dltrain.config.signatures import Param
from dltrain.runtime import terminal
from dltrain.runtime.errors import printable

WIDEST = 120  # longer lines are hard to read
NARROW = 60  # columns below which the second column goes beneath the first

Section = tuple[str, list[tuple[str, str]]]  # a heading and the rows of two columns under it


def overview() -> str:
    """Return the help of dltrain itself."""
    more = [
        ("dltrain COMMAND --help", "examples, groups, keys and values of a command"),
        ('eval "$(dltrain -sc install=bash)"', "shell completion (zsh likewise; fish: install=fish | source)"),
    ]
    sections = [
        ("Commands", [(f"dltrain {name}", usage.summary) for name, usage in COMMANDS.items()]),
        ("Examples", [(f"dltrain {line}", what) for usage in COMMANDS.values() for line, what in usage.examples[:1]]),
        ("More", more),
    ]
    return layout(f"dltrain {__version__}: trains networks from configuration files", sections)


def page(command: str, composed: Composed | None = None) -> str:
    """Return the help of a subcommand, with the config composed for it if it has one."""
    usage = COMMANDS[command]
    sections = [("Examples", [(f"dltrain {line}", what) for line, what in usage.examples])]
    if composed is not None:
        sections += [*_groups(composed), *_keys(command, composed)]
    sections.append(("Arguments and flags", [*usage.takes, *usage.flags]))
    return layout(f"dltrain {command}: {usage.summary}", sections)


def _groups(composed: Composed) -> Iterator[Section]:
    chosen = composed.origin.chosen
    for group in registry.LISTED_GROUPS:
        if group in chosen or (group == "experiment" and "model" in chosen):
            files = registry.options(group, composed.origin.sources)
            names = [f"{group}={name}{' (chosen)' if name == chosen.get(group) else ''}" for name in files]
            summaries = [registry.summary(group, name, path) for name, path in files.items()]
            yield f"Options of {group}", list(zip(names, summaries, strict=True))


def _keys(command: str, composed: Composed) -> Iterator[Section]:
    for node, signature in registry.nodes(command, composed.config).items():
        keys = registry.typed_keys(node, signature)
        heading = f"Keys of {node}" if node else "Keys of the command"
        if keys:
            yield heading, [(_set(key, composed), _meaning(key, rule, composed)) for key, rule in keys.items()]


def _set(key: str, composed: Composed) -> str:
    """Return `key=value` as composed, or say that the key is required."""
    value = at(composed.config, key) if has(composed.config, key) else registry.REQUIRED
    return f"{key} (required)" if value == registry.REQUIRED else f"{key}={to_cli(value)}"


def _meaning(key: str, rule: Param, composed: Composed) -> str:
    """Return the type and the meaning of a key, and its default if its value is another."""
    parts = [describe(rule.hint), *filter(None, [rule.meaning])]
    default = composed.origin.default(key)
    if default is not None and has(composed.config, key) and default[0] != at(composed.config, key):
        parts.append(f"default {to_cli(default[0])}")
    return "; ".join(parts)


def layout(title: str, sections: Iterable[Section]) -> str:
    """Lay out sections to the width of the terminal."""
    columns = min(shutil.get_terminal_size().columns, WIDEST)
    start, end = ("\033[1m", "\033[0m") if terminal.is_interactive(sys.stdout) else ("", "")
    lines = textwrap.wrap(title, columns)
    for heading, rows in sections:
        lines += ["", f"{start}{heading}{end}"]
        # The first column is as wide as its longest entry, within limits: a longer one takes a line of its own.
        longest = max((len(left) for left, _ in rows if len(left) + 4 <= columns * 2 // 3), default=0)
        indent = longest + 4 if columns >= NARROW else 4
        for left, right in rows:
            lines += _two_columns(printable(left), printable(right), indent, columns)
    return "\n".join(lines)


def _two_columns(left: str, right: str, indent: int, columns: int) -> list[str]:
    wrapped = textwrap.wrap(right, columns, initial_indent=" " * indent, subsequent_indent=" " * indent)
    if wrapped and len(left) + 4 <= indent:
        return [f"  {left}".ljust(indent) + wrapped[0].lstrip(), *wrapped[1:]]
    return textwrap.wrap(left, columns, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False) + wrapped
