"""The config inside a checkpoint: joined with what is typed now, and never trusted to name code."""

import copy
import logging
from collections.abc import Collection
from typing import Any

from dltrain.errors import ConfigError
from dltrain.schema import GROUPS

log = logging.getLogger(__name__)

# A run continued with other data, another network or another task would be another run.
FIXED = ("data", "model", "task", "seed", "batch_size", "accumulate")
FREE = ("data.root",)


def overlay(stored: dict[str, Any], given: dict[str, Any], typed: Collection[str]) -> dict[str, Any]:
    """The stored config with the typed keys taken from the given one; `optim.lr` and whole groups alike."""
    joined = copy.deepcopy(stored)
    for key in typed:
        *parents, last = key.split(".")
        source, target = given, joined
        for parent in parents:
            source, target = source[parent], target.setdefault(parent, {})
        if last not in source:
            raise ConfigError(f"{key}: cannot be taken away from a run that is resumed")
        target[last] = copy.deepcopy(source[last])
    return joined


def resumed(stored: dict[str, Any], given: dict[str, Any], typed: Collection[str]) -> dict[str, Any]:
    """The config of a run that is continued: its own, with what is typed now where that may change."""
    if unfit := [key for key in typed if key in ("experiment", "init", "name")]:
        raise ConfigError(f"resume: {', '.join(unfit)} cannot be combined with it. Start a new run, or leave it out")
    changed = [key for key in typed if key not in ("resume", "trust")]
    joined = overlay(stored, given, changed)
    refuse_changes(stored, joined)
    if changed:
        log.warning("resume: changed %s, so the run will not be what it would have been", ", ".join(changed))
    return joined


def refuse_changes(stored: dict[str, Any], joined: dict[str, Any]) -> None:
    """Raise ConfigError where a resumed run would no longer be the run that was stored."""
    changed = []
    for key in FIXED:
        before, after = _without_free(key, stored.get(key)), _without_free(key, joined.get(key))
        if isinstance(before, dict) and isinstance(after, dict):
            names = [f"{key}.{name}" for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
            changed += sorted(names)
        elif before != after:
            changed.append(key)
    if changed:
        raise ConfigError(f"resume: {', '.join(changed)} cannot change in a resumed run. Start a new one with init=")


def _without_free(key: str, value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: item for name, item in value.items() if f"{key}.{name}" not in FREE}


def refuse_untrusted(stored: dict[str, Any], trust: Collection[str] | str) -> None:
    """Raise ConfigError where a checkpoint names a person's own code whose package is not in `trust`."""
    trusted = [trust] if isinstance(trust, str) else trust
    for group in GROUPS:
        node = stored.get(group)
        name = node.get("name") if isinstance(node, dict) else None
        if isinstance(name, str) and ":" in name:
            package = name.partition(":")[0].partition(".")[0]
            if package not in trusted:
                raise ConfigError(f"the checkpoint wants to run {name}. If you trust that code, add trust=[{package}]")
