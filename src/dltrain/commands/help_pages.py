"""`dltrain SUBCOMMAND --help`: examples, groups with their options, every key with its type, range, value and meaning.

Out of what is there anyway: signatures, docstrings, YAML files, usage.py. Imports no torch.
"""

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

Section = tuple[str, list[tuple[str, str]]]  # a heading, and what stands under it in two columns


def overview() -> str:
    """The help of dltrain itself."""
    more = [
        ("dltrain COMMAND --help", "examples, groups, keys and values of one of them"),
        ('eval "$(dltrain -sc install=bash)"', "completion (zsh alike; fish: install=fish | source)"),
    ]
    sections = [
        ("Commands", [(f"dltrain {name}", usage.summary) for name, usage in COMMANDS.items()]),
        ("Examples", [(f"dltrain {line}", what) for usage in COMMANDS.values() for line, what in usage.examples[:1]]),
        ("More", more),
    ]
    return _page(f"dltrain {__version__}: trains networks from configuration files", sections)


def page(command: str, composed: Composed | None = None) -> str:
    """The help of a subcommand; with the config that is composed for it where it has one."""
    usage = COMMANDS[command]
    sections = [("Examples", [(f"dltrain {line}", what) for line, what in usage.examples])]
    if composed is not None:
        sections += [*_groups(composed), *_keys(command, composed)]
    sections.append(("What may follow", [*usage.takes, *usage.flags]))
    return _page(f"dltrain {command}: {usage.summary}", sections)


def _groups(composed: Composed) -> Iterator[Section]:
    chosen = composed.origin.chosen
    for group in registry.LISTED_GROUPS:
        if group in chosen or (group == "experiment" and "model" in chosen):
            files = registry.options(group, composed.origin.sources)
            names = [f"{group}={name}{' (chosen)' if name == chosen.get(group) else ''}" for name in files]
            told = [registry.summary(group, name, path) for name, path in files.items()]
            yield f"Options of {group}", list(zip(names, told, strict=True))


def _keys(command: str, composed: Composed) -> Iterator[Section]:
    for node, signature in registry.nodes(command, composed.config).items():
        keys = registry.typed_keys(node, signature)
        heading = f"Keys of {node}" if node else "Keys of the command"
        if keys:
            yield heading, [(_set(key, composed), _meaning(key, rule, composed)) for key, rule in keys.items()]


def _set(key: str, composed: Composed) -> str:
    """A key with the value it has."""
    value = at(composed.config, key) if has(composed.config, key) else registry.REQUIRED
    return f"{key} (required)" if value == registry.REQUIRED else f"{key}={to_cli(value)}"


def _meaning(key: str, rule: Param, composed: Composed) -> str:
    """What a key takes and means, and its default where another value is shown."""
    told = [describe(rule.hint), *filter(None, [rule.meaning])]
    default = composed.origin.default(key)
    if default is not None and has(composed.config, key) and default[0] != at(composed.config, key):
        told.append(f"default {to_cli(default[0])}")
    return "; ".join(told)


def _page(title: str, sections: Iterable[Section]) -> str:
    """Sections as wide as the terminal."""
    columns = min(terminal.width(), WIDEST)
    start, end = ("\033[1m", "\033[0m") if terminal.is_interactive(sys.stdout) else ("", "")
    lines = textwrap.wrap(title, columns)
    for heading, rows in sections:
        lines += ["", f"{start}{heading}{end}"]
        # As wide as the first column, within limits: what is longer takes a line of its own.
        longest = max((len(left) for left, _ in rows if len(left) + 4 <= columns * 2 // 3), default=0)
        indent = longest + 4 if columns >= NARROW else 4
        for left, right in rows:
            lines += _two_columns(printable(left), printable(right), indent, columns)
    return "\n".join(lines)


def _two_columns(left: str, right: str, indent: int, columns: int) -> list[str]:
    beside = len(left) + 4 <= indent
    wrapped = textwrap.wrap(right, columns, initial_indent=" " * indent, subsequent_indent=" " * indent)
    if beside and wrapped:
        return [f"  {left}".ljust(indent) + wrapped[0].lstrip(), *wrapped[1:]]
    first = textwrap.wrap(left, columns, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
    return first + wrapped
