"""`dltrain list`: every option of every group, read from the sources and the YAML files."""

import json
from pathlib import Path
from typing import Any

from dltrain.commands import json_schema
from dltrain.config import registry
from dltrain.config.hints import describe
from dltrain.runtime.errors import ConfigError


def text(arguments: list[str], configs: Path) -> str:
    """What `dltrain list` prints with these arguments. Raises ConfigError for one it does not know."""
    if not arguments:
        return "\n".join(lines(configs))
    if arguments not in (["--json"], ["--schema"]):
        raise ConfigError(f"list takes no arguments but --json or --schema. Received {' '.join(arguments)}")
    content = as_json(configs) if arguments == ["--json"] else json_schema.schema_of_configs(configs)
    return json.dumps(content, indent=2, ensure_ascii=False)


def lines(configs: Path) -> list[str]:
    """The list, aligned, a heading for each group."""
    found = []
    for group in registry.LISTED_GROUPS:
        options = registry.options(group, [configs])
        found.append(f"{group}:")
        width = max((len(name) for name in options), default=0)
        found += [f"  {name:<{width}}  {registry.summary(group, name, path)}" for name, path in options.items()]
    return found


def as_json(configs: Path) -> dict[str, Any]:
    """Groups to their options; of each its line, its keys and the YAML file with their defaults."""
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
