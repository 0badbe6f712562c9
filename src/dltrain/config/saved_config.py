"""Merge the config saved in a checkpoint with the keys typed now, and refuse code and addresses that it names."""

import copy
import hashlib
import logging
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from dltrain.config import validation
from dltrain.config.registry import GROUPS
from dltrain.config.resolution import Config, resolve
from dltrain.runtime.errors import ConfigError, listed, printable

log = logging.getLogger(__name__)

# Keys that may not change in a resumed run: with other data, another network or another task it is another run. The
# optimizer's moments are stored in parameter groups, one for each learning rate.
FIXED = ("data", "model", "task", "seed", "batch_size", "accumulate", "metric", "hardest", "proxy")
FIXED_GROUPS = ("optim.head_factor", "optim.bias_factor", "optim.norm_factor", "optim.decay_biases")
# Keys that may change without a warning: the weights stay the same. A run reports another device itself.
HARMLESS = (
    *("data.root", "data.memory", "device", "logger", "log_every", "checkpoint_every", "keep", "report"),
    *("tags", "note"),
)
STOPPING = ("limit_steps", "max_seconds", "patience")
# Keys that configs of older versions lack, with the value that behaves as before. Every new key is entered here: KEY,
# GROUP.KEY where all options of a group have it, GROUP.OPTION.KEY where one has it.
ADDED: dict[str, Any] = {"report": True, "ema": None, "init_partial": False, "metric": None, "hooks": []}
ADDED |= {"data.folder.range": None, "data.folder.memory": None, "data.balance": 0, "data.folds": None}
ADDED |= {"data.fold": None, "task.classification.class_weights": None, "task.classification.focal": 0.0}
ADDED |= {"data.augment": "none", "data.resized_crop": None, "data.policy": None, "data.erase": None}
ADDED |= {"data.brightness": None, "data.contrast": None, "data.saturation": None, "profile": 0}
ADDED |= {"tags": [], "note": None, "device.graph": "auto", "device.compile": False}
ADDED |= {"model.attention.drop_path": 0.0, "hardest": None, "proxy": None}
# Keys of ADDED that digests of jobs include, as they did before digests left out the others.
IN_DIGESTS = ("ema",)
ADDED_TO_EVAL = {"ensemble": False}  # keys of eval, whose config no checkpoint has
# Where metrics are sent, never taken from a file; and the environment variable that says the same.
ADDRESSES = {"logger.mlflow.tracking_uri": "MLFLOW_TRACKING_URI", "logger.wandb.entity": "WANDB_ENTITY"}
START_ONLY = ("resume", "trust", "name", "init", "init_partial", "profile")


def with_added(config: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a config in which the keys of ADDED that it lacks have the value that behaves as before."""
    completed = copy.deepcopy(config)
    for key, value in ADDED.items():
        if (node := _node_of(completed, key)) is not None:
            node.setdefault(key.rpartition(".")[2], value)
    return completed


def without_added(config: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a config as a version before the keys of ADDED composed it, if they behave as before.

    The digest of a sweep's job is made of it, so that a sweep of an older version recognises its jobs.
    """
    older = copy.deepcopy(config)
    for key, value in (ADDED | ADDED_TO_EVAL).items():
        node, name = _node_of(older, key), key.rpartition(".")[2]
        if key not in IN_DIGESTS and node is not None and node.get(name, ...) == value:
            del node[name]
    return older


def _node_of(config: dict[str, Any], key: str) -> dict[str, Any] | None:
    """Return the node that a key of ADDED belongs to; None if the config lacks the group or has another option."""
    node: Any = config
    for depth, parent in enumerate(key.split(".")[:-1]):
        if isinstance(node, dict) and (depth == 0 or node.get("name") != parent):
            node = node.get(parent)
    return node if isinstance(node, dict) else None


def merge_overrides(stored: dict[str, Any], given: dict[str, Any], typed: Collection[str]) -> dict[str, Any]:
    """Return the stored config with the typed keys, such as `optim.lr` or a whole group, taken from `given`.

    Raises ConfigError for a key that the stored config has no place for, or that is deleted.
    """
    joined = copy.deepcopy(stored)
    for key in typed:
        *parents, last = key.split(".")
        source, target = given, joined
        for parent in parents:
            source, target = source[parent], target.setdefault(parent, {})
        if not isinstance(target, dict):
            raise ConfigError(f"{key}: cannot be set; the checkpoint has a single value there, not a group of keys")
        if last not in source:
            raise ConfigError(f"{key}: cannot be removed from a resumed run")
        target[last] = copy.deepcopy(source[last])
    return joined


def resume_config(stored: dict[str, Any], given: dict[str, Any], typed: Collection[str]) -> dict[str, Any]:
    """Return the config of a resumed run: the stored one with the keys typed now; log changes. Raises ConfigError."""
    if unfit := [key for key in typed if key in ("experiment", "init", "name")]:
        raise ConfigError(f"resume: {', '.join(unfit)} cannot be combined with it. Start a new run, or leave it out")
    stored = with_added(stored)
    joined = with_added(merge_overrides(stored, given, [key for key in typed if key not in ("resume", "trust")]))
    before, after = _leaves(stored), _leaves(joined)
    changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    if fixed := [key for key in changed if key in FIXED_GROUPS or key.partition(".")[0] in FIXED]:
        raise ConfigError(f"resume: {', '.join(fixed)} cannot change in a resumed run. Start a new one with init=")
    if changed:
        log.warning("resume: %s changed: from here on the run differs from an uninterrupted one", ", ".join(changed))
    return joined


def resumed(config: Config, content: dict[str, Any]) -> Config:
    """Return the config of a run that continues from a checkpoint; `config` has what the user typed now.

    Code that the config names is imported by the last step, the check, and only if the user trusts it.
    """
    typed = config.typed
    stored = resume_config(content["config"], config.stored, typed)
    values = resolve(stored)
    require_trusted(values, config.stored.get("trust") or [])
    require_typed_address(values, typed)
    warn_changed_interpolations(values, content["digests"].get("config", {}), typed)
    validation.validate(values, "train", config.origin)
    return replace(config, stored=stored, values=values)


def restart_config(config: Config, folder: str) -> Config:
    """Return the config with which a restarted command line continues the run that it began in `folder`."""
    trust = config.stored["trust"]
    packages = [package for _, package in custom_imports(config.stored)]
    trusted = [*([trust] if isinstance(trust, str) else trust), *packages]
    typed = [key for key in config.typed if key not in ("experiment", "init", "name")]
    return replace(config, stored=config.stored | {"resume": folder, "trust": trusted}, typed=typed)


def digests(values: dict[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of each value that matters, interpolations resolved: comparable, without revealing secrets."""
    return {key: hashlib.sha256(repr(value).encode()).hexdigest() for key, value in _leaves(values).items()}


def warn_changed_interpolations(values: dict[str, Any], before: dict[str, str], typed: Collection[str]) -> None:
    """Warn of untyped keys that resolve to another value than when the run was saved.

    Raises ConfigError for keys that may not change. `before` are the `digests` of that time.
    """
    now = digests(values)
    kept = [key for key in before if key in now and not {key, key.partition(".")[0]} & set(typed)]
    changed = [key for key in kept if before[key] != now[key]]
    if fixed := [key for key in changed if key.partition(".")[0] in FIXED]:
        raise ConfigError(
            f"resume: {', '.join(fixed)} had another value when the run was saved: an environment variable or another "
            "key that it refers to has changed. Set it back"
        )
    if changed:
        log.warning("resume: %s had another value when the run was saved", ", ".join(changed))


def _leaves(config: dict[str, Any]) -> dict[str, Any]:
    """Return the values by dotted key, without those that may change freely in a resumed run."""
    leaves = {}
    for key, value in config.items():
        for name, leaf in value.items() if isinstance(value, dict) else [("", value)]:
            dotted = f"{key}.{name}" if name else key
            if key not in HARMLESS + STOPPING + START_ONLY and dotted not in HARMLESS:
                leaves[dotted] = leaf
    return leaves


def read_only_reason(values: dict[str, Any], typed: Collection[str]) -> str:
    """Return why nothing may be downloaded into the data folder; empty unless only the checkpoint names that folder."""
    root = values["data"].get("root")
    if root is None or {"data", "data.root"} & set(typed):
        return ""
    return f"a data.root from a checkpoint is only read. To download, add data.root={root}"


def require_trusted(stored: dict[str, Any], trust: Collection[str] | str, what: str = "the checkpoint") -> None:
    """Raise ConfigError if a checkpoint names custom code of a package that is not in `trust`."""
    trusted, imports = [trust] if isinstance(trust, str) else trust, custom_imports(stored)
    if unknown := [printable(name[:200]) for name, package in imports if package not in trusted]:
        packages = ",".join(dict.fromkeys(printable(package[:200]) for _, package in imports))
        raise ConfigError(f"{what} wants to run {listed(unknown)}. If you trust that code, add trust=[{packages}]")


def require_typed_address(values: dict[str, Any], typed: Collection[str], what: str = "the checkpoint") -> None:
    """Raise ConfigError if only a checkpoint, not the user, names the server or folder that metrics are sent to."""
    nodes = values.get("logger")
    for key, variable in ADDRESSES.items():
        _, tracker, name = key.split(".")
        node = nodes.get(tracker) if isinstance(nodes, dict) else None
        keys = {"logger", f"logger.{tracker}", key}
        if isinstance(node, dict) and node.get(name) is not None and not keys & set(typed):
            raise ConfigError(
                f"{what} names the {key} to send metrics to. Type it yourself, or set it to null and "
                f"the environment variable {variable} to it, or continue without it: logger=none"
            )


def custom_imports(config: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the import path and the package of each piece of custom code that a config names."""
    nodes = [config.get(group) for group in GROUPS]
    hooks = config.get("hooks")
    names = [node.get("name") for node in nodes if isinstance(node, dict)] + (hooks if isinstance(hooks, list) else [])
    custom = [name for name in names if isinstance(name, str) and ":" in name]
    return [(name, name.partition(":")[0].partition(".")[0]) for name in custom]
