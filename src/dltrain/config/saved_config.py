"""The config inside a checkpoint: joined with what is typed now, and never trusted to name code."""

import copy
import hashlib
import logging
from collections.abc import Collection
from typing import Any

from dltrain.config.registry import GROUPS
from dltrain.runtime.errors import ConfigError, printable

log = logging.getLogger(__name__)

# What may not change in a run that is resumed: with other data, another network or another task it is another run.
# Of an optimizer the moments lie in groups of one rate each.
FIXED = ("data", "model", "task", "seed", "batch_size", "accumulate")
FIXED_GROUPS = ("optim.head_factor", "optim.bias_factor", "optim.norm_factor", "optim.decay_biases")
# What may change and leaves the weights as they would have been; of another device the run tells itself.
HARMLESS = ("data.root", "device", "logger", "log_every", "checkpoint_every", "keep", "report")
STOPPING = ("limit_steps", "max_seconds", "patience")
# Keys that the checkpoints of older versions lack, with the value they are read with.
ADDED = {"report": True, "ema": None}
START_ONLY = ("resume", "trust", "name", "init")


def merge_overrides(stored: dict[str, Any], given: dict[str, Any], typed: Collection[str]) -> dict[str, Any]:
    """The stored config with the typed keys taken from the given one; `optim.lr` and whole groups alike."""
    joined = copy.deepcopy(stored)
    for key in typed:
        *parents, last = key.split(".")
        source, target = given, joined
        for parent in parents:
            source, target = source[parent], target.setdefault(parent, {})
        if not isinstance(target, dict):
            raise ConfigError(f"{key}: cannot be set; what the checkpoint has there is no group of keys")
        if last not in source:
            raise ConfigError(f"{key}: cannot be taken away from a run that is resumed")
        target[last] = copy.deepcopy(source[last])
    return joined


def resume_config(stored: dict[str, Any], given: dict[str, Any], typed: Collection[str]) -> dict[str, Any]:
    """The config of a run that is continued: its own, with what is typed now where that may change."""
    if unfit := [key for key in typed if key in ("experiment", "init", "name")]:
        raise ConfigError(f"resume: {', '.join(unfit)} cannot be combined with it. Start a new run, or leave it out")
    stored = ADDED | stored
    joined = merge_overrides(stored, given, [key for key in typed if key not in ("resume", "trust")])
    changed = _differences(stored, joined)
    if fixed := [key for key in changed if key in FIXED_GROUPS or key.partition(".")[0] in FIXED]:
        raise ConfigError(f"resume: {', '.join(fixed)} cannot change in a resumed run. Start a new one with init=")
    if changed:
        log.warning("resume: %s changed: from here on the run is not what it would have been", ", ".join(changed))
    return joined


def restart_config(config: dict[str, Any], typed: Collection[str], folder: str) -> tuple[dict[str, Any], list[str]]:
    """The config and typed keys of a command line that is given once more, to go on with the run that it began."""
    trust = [config["trust"]] if isinstance(config["trust"], str) else config["trust"]
    own = [package for _, package in custom_imports(config)]
    kept = [key for key in typed if key not in ("experiment", "init", "name")]
    return config | {"resume": folder, "trust": [*trust, *own]}, kept


def digests(values: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of the value of each key that matters, references filled in: no value itself is told."""
    return {key: hashlib.sha256(repr(value).encode()).hexdigest() for key, value in _leaves(values).items()}


def warn_changed_interpolations(values: dict[str, Any], before: dict[str, str], typed: Collection[str]) -> None:
    """Say which keys that are not typed refer to something else than they did; raise ConfigError for fixed ones."""
    now = digests(values)
    kept = [key for key in before if key in now and not {key, key.partition(".")[0]} & set(typed)]
    changed = [key for key in kept if before[key] != now[key]]
    if fixed := [key for key in changed if key.partition(".")[0] in FIXED]:
        raise ConfigError(
            f"resume: {', '.join(fixed)} had another value when the run was saved: what it refers to has changed, "
            "such as an environment variable. Bring that back"
        )
    if changed:
        log.warning("resume: %s had another value when the run was saved", ", ".join(changed))


def _differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Dotted keys that matter and are not the same in two configs."""
    before, after = _leaves(one), _leaves(other)
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))


def _leaves(config: dict[str, Any]) -> dict[str, Any]:
    """Values by dotted key, of groups and outside them, without the harmless ones."""
    leaves = {}
    for key, value in config.items():
        for name, leaf in value.items() if isinstance(value, dict) else [("", value)]:
            dotted = f"{key}.{name}" if name else key
            if key not in HARMLESS + STOPPING + START_ONLY and dotted not in HARMLESS:
                leaves[dotted] = leaf
    return leaves


def read_only_reason(values: dict[str, Any], typed: Collection[str]) -> str:
    """Why nothing is downloaded into the folder of the data; empty where the checkpoint has not chosen it."""
    root = values["data"].get("root")
    if root is None or {"data", "data.root"} & set(typed):
        return ""
    return f"what a checkpoint names is only read. To download, add data.root={root}"


def require_trusted(stored: dict[str, Any], trust: Collection[str] | str, what: str = "the checkpoint") -> None:
    """Raise ConfigError where a checkpoint names a person's own code whose package is not in `trust`."""
    trusted = [trust] if isinstance(trust, str) else trust
    for name, package in custom_imports(stored):
        if package not in trusted:
            name = printable(name[:200])
            raise ConfigError(f"{what} wants to run {name}. If you trust that code, add trust=[{package}]")


def require_typed_address(values: dict[str, Any], typed: Collection[str], what: str = "the checkpoint") -> None:
    """Raise ConfigError where a checkpoint, and nobody's hand, says to which server or folder figures go."""
    nodes = values.get("logger")
    node = nodes.get("mlflow") if isinstance(nodes, dict) else None
    keys = {"logger", "logger.mlflow", "logger.mlflow.tracking_uri"}
    if isinstance(node, dict) and node.get("tracking_uri") is not None and not keys & set(typed):
        raise ConfigError(
            f"{what} says to which logger.mlflow.tracking_uri its figures go. Type it yourself, or set it to null and "
            "the environment variable MLFLOW_TRACKING_URI to it, or go on without it: logger=none"
        )


def custom_imports(config: dict[str, Any]) -> list[tuple[str, str]]:
    """What a config names of a person's own code, each with its package."""
    nodes = [config.get(group) for group in GROUPS]
    names = [node.get("name") for node in nodes if isinstance(node, dict)]
    own = [name for name in names if isinstance(name, str) and ":" in name]
    return [(name, name.partition(":")[0].partition(".")[0]) for name in own]
