"""`dltrain list`: prints every option of every group, read from the sources and the YAML files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dltrain.commands import json_schema
from dltrain.config import registry
from dltrain.config.hints import describe
from dltrain.runtime.errors import ConfigError


def text(arguments: list[str], configs: Path) -> str:
    """Return what `dltrain list` prints with these arguments. Raises ConfigError for unknown ones."""
    if not arguments:
        return "\n".join(lines(configs))
    if arguments not in (["--json"], ["--schema"]):
        raise ConfigError(f"list takes no arguments but --json or --schema. Received {' '.join(arguments)}")
    content = as_json(configs) if arguments == ["--json"] else json_schema.schema_of_configs(configs)
    return json.dumps(content, indent=2, ensure_ascii=False)


def lines(configs: Path) -> Iterator[str]:
    """Yield the lines of the list: a heading for each group, then its options in aligned columns."""
    for group in registry.LISTED_GROUPS:
        options = registry.options(group, [configs])
        width = max(map(len, options), default=0)
        yield f"{group}:"
        yield from (f"  {name:<{width}}  {registry.summary(group, name, path)}" for name, path in options.items())


def as_json(configs: Path) -> dict[str, Any]:
    """Return the options of each group with their summaries and keys; each key with its type, meaning and default."""
    return {
        group: {
            name: {"summary": registry.summary(group, name, path), "keys": _keys(group, name, path)}
            for name, path in registry.options(group, [configs]).items()
        }
        for group in registry.LISTED_GROUPS
    }


def _keys(group: str, name: str, path: Path) -> dict[str, Any]:
    signature = registry.of_option(group, name)
    is_under_name = group in registry.GROUPS and registry.GROUPS[group].several
    defaults = json_schema.defaults_of(path, name if is_under_name else "")
    return {
        key: {"type": describe(rule.hint), "meaning": rule.meaning}
        | ({"default": defaults[key]} if key in defaults and defaults[key] != registry.REQUIRED else {})
        for key, rule in (signature.keys if signature else {}).items()
        if key != "name"
    }
