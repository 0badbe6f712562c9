"""Checks a whole config at once against the signatures it stands for; names to code. Imports no torch.

A node of a group names one function or class (`name: lenet`) and holds its keyword arguments. Option NAME of group G
is the public function or class NAME in G/NAME.py or in the group's one file. `name: my_package.nets:MyNet` names a
user's own code.
"""

import contextlib
import functools
import importlib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from dltrain import signatures
from dltrain.errors import ConfigError
from dltrain.fault import TYPED, Fault, refuse, suggest
from dltrain.hints import as_typed, describe, is_number, obeys
from dltrain.signatures import PACKAGE, Key, Signature

Origin = Callable[[str], str]
REQUIRED = "???"  # Hydra's word for a value that must be set
WHOLE = "# @package _global_"  # the first line of an experiment, which sets keys of the whole config


@dataclass(frozen=True)
class Group:
    """Where a group's options are defined, and which of their arguments the program passes in.

    What has the first of these arguments is an option, other functions in the same place are not.
    """

    source: str
    injected: tuple[str, ...] = ()
    shared: tuple[tuple[str, str], ...] = ()  # functions whose keys every option of the group has as well
    several: bool = False  # whether its node holds a node for each of several options, by its name


GROUPS = {
    "data": Group(
        "data",
        ("split", "source", "seed", "images"),
        (
            ("data/examples.py", "train_and_val"),
            ("data/batches.py", "normalization"),
            ("data/augmentation.py", "augmentation"),
        ),
    ),
    "model": Group("models", ("input_shape", "num_classes")),
    "optim": Group("optim.py", ("named_parameters", "optimizer", "model"), (("optim.py", "scaled"),)),
    "schedule": Group("schedules.py", ("total_steps", "step")),
    "task": Group("tasks.py"),
    "logger": Group("trackers", ("folder", "config"), several=True),
}
OPTIONAL = ("sweep", "logger")  # a run by itself has no sweep; without a logger it keeps metrics.jsonl alone
# Nodes that always stand for the same function, and the function or class of a command's own keys.
SHARED: dict[str, tuple[str, str] | None] = {"device": ("runtime.py", "device"), "sweep": ("settings.py", "Sweep")}
COMMANDS: dict[str, tuple[str, str, dict[str, tuple[str, str] | None]]] = {
    "train": ("settings.py", "Train", {**dict.fromkeys(GROUPS), **SHARED}),
    "eval": ("settings.py", "Eval", {"data": ("settings.py", "EvalData"), **SHARED}),
    "predict": ("settings.py", "Predict", SHARED),
    "export": ("settings.py", "Export", SHARED),
}


@functools.cache
def names(group: str) -> list[str]:
    """Built-in options of a group, sorted."""
    source = GROUPS[group].source
    is_file = source.endswith(".py")
    found = signatures.public_names(source) if is_file else [path.stem for path in (PACKAGE / source).glob("*.py")]
    return sorted(name for name in found if builtin(group, name))


def builtin(group: str, name: Any) -> Signature | None:
    """Signature of a built-in option, with what the program passes in; None where there is none.

    Reads the source of that option alone: those of all take a twentieth of a second.
    """
    place = GROUPS[group]
    is_file = place.source.endswith(".py")
    known = signatures.public_names(place.source) if is_file else [name]
    if not isinstance(name, str) or not name.isidentifier() or name not in known:
        return None
    with contextlib.suppress(signatures.NoSuch):  # or a file of helpers
        found = signatures.builtin(place.source if is_file else f"{place.source}/{name}.py", name)
        return found if set(place.injected[:1]) <= set(found.keys) else None
    return None


def chosen(group: str, node: dict[str, Any]) -> str:
    """What is typed for the built-in options of a group that a node holds; empty for none."""
    several = GROUPS[group].several
    known: list[Any] = [name for name in (node if several else [node.get("name")]) if builtin(group, name)]
    return f"[{','.join(known)}]" if several and known else "".join(known)


def signature(group: str, name: str) -> Signature | None:
    """Signature of an option without what the program itself passes in; None for an unknown name."""
    place = GROUPS[group]
    if ":" in name:
        found = signatures.user_signature(signatures.user_object(name))
        if group in ("optim", "data"):  # it gets the parameters, or the split, first, whatever it calls them
            found = replace(found, keys=dict(list(found.keys.items())[1:]))
    elif (own := builtin(group, name)) is not None:
        found = own
    else:
        return None
    injected = () if ":" in name and group == "data" else place.injected
    keys = {key: rule for key, rule in found.keys.items() if key not in injected}
    return replace(found, keys=keys | _shared(group))


@functools.cache
def _shared(group: str) -> dict[str, Key]:
    """Keys that every option of a group has."""
    keys: dict[str, Key] = {}
    for source, name in GROUPS[group].shared:
        found = signatures.builtin(source, name)
        keys |= {key: rule for key, rule in found.keys.items() if key not in GROUPS[group].injected}
    return keys


def bind(group: str, node: dict[str, Any], **injected: Any) -> functools.partial[Any]:
    """What a checked node names, with those of its keys and of `injected` that its signature has."""
    name = node["name"]
    function = signatures.user_object(name) if ":" in name else _builtin_object(group, name)
    parameters = inspect.signature(function).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    # With **options it gets what was meant for it, not what dltrain itself does with every option of the group.
    taken = parameters.keys() | (node.keys() - _shared(group).keys() if takes_any else set())
    own = {key: value for key, value in node.items() if key != "name" and key in taken}
    return functools.partial(function, **own, **{key: value for key, value in injected.items() if key in parameters})


def _builtin_object(group: str, name: str) -> Any:
    source = GROUPS[group].source
    if builtin(group, name) is None:
        raise ConfigError(f"{group}={name}: no such option; there are {', '.join(names(group))}")
    module = source.removesuffix(".py") if source.endswith(".py") else f"{source}.{name}"
    loaded = importlib.import_module(f"dltrain.{module}")
    own = {key: found for key, found in vars(loaded).items() if getattr(found, "__module__", "") == loaded.__name__}
    return next(found for key, found in own.items() if signatures.is_called(key, name))


def require(config: dict[str, Any], command: str, origin: Origin = lambda key: "") -> None:
    """Raise a ConfigError that tells all faults of a config, one a line."""
    refuse(check(config, command, origin))


def check(config: dict[str, Any], command: str, origin: Origin = lambda key: "") -> list[Fault]:
    """All faults of a composed config, its interpolations resolved; `origin` tells where a key's value is from."""

    def where(key: str) -> str:
        return f" (from {place})" if (place := origin(key)) else ""

    source, name, nodes = COMMANDS[command]
    settings = signatures.builtin(source, name)
    faults = []
    top = {key: value for key, value in config.items() if key not in nodes}
    own = top.get("experiment")  # keys of a file that speaks of itself, not of the whole config
    is_lost = isinstance(own, dict | list) and not any(TYPED in where(f"experiment.{key}") for key in own)
    if command == "train" and is_lost:
        del top["experiment"]
        faults.append(Fault("experiment", f': its YAML must begin with "{WHOLE}", and hold keys and their values'))
    others = [*nodes, *(f"{node}.{key}" for node in nodes for key in _known(config, node, nodes[node]))]
    faults += _check_keys("", top, settings, where, others)
    for node, place in nodes.items():
        value = config.get(node)
        if node in OPTIONAL and node not in config:
            continue
        if not isinstance(value, dict):
            faults.append(Fault(node, f"={as_typed(value)}: must be a group of keys{where(node)}"))
            continue
        if place is not None:
            faults += _check_keys(f"{node}.", value, signatures.builtin(*place), where, settings.keys)
        elif GROUPS[node].several:
            faults += _check_several(node, value, where, settings.keys)
        else:
            faults += _check_option(node, value, where, settings.keys)
    return faults


def _check_option(group: str, node: dict[str, Any], where: Origin, others: Iterable[str]) -> list[Fault]:
    name, key = node.get("name"), f"{group}.name"
    if not isinstance(name, str) or name == REQUIRED:
        return [Fault(key, f" is required: set it to module:name, your own code, or to an option's name{where(key)}")]
    try:
        found = signature(group, name)
    except ConfigError as error:
        return [Fault(key, f"={error}")]
    if found is None:
        return [Fault(key, f"={name}: no such {group}{suggest(name, names(group))}{where(key)}")]
    return _check_keys(f"{group}.", {k: v for k, v in node.items() if k != "name"}, found, where, others)


def _check_several(group: str, nodes: dict[str, Any], where: Origin, others: Iterable[str]) -> list[Fault]:
    faults = []
    for name, node in nodes.items():
        key = f"{group}.{name}"
        found = signature(group, name) if builtin(group, name) else None
        if found is None:
            faults.append(Fault(key, f": no such {group}{suggest(name, names(group))}{where(key)}"))
        elif not isinstance(node, dict):
            faults.append(Fault(key, f"={as_typed(node)}: must be a group of keys{where(key)}"))
        else:
            faults += _check_keys(f"{key}.", node, found, where, others)
    return faults


def _check_keys(
    prefix: str, node: dict[str, Any], found: Signature, where: Origin, others: Iterable[str]
) -> list[Fault]:
    faults = []
    known = {prefix + key: rule for key, rule in found.keys.items()}
    for name, value in node.items():
        key = f"{prefix}{name}"
        if key in known:
            faults += _check_value(key, value, known[key], where)
        elif not found.takes_any:
            faults.append(Fault(key, f": no such key{suggest(key, [*known, *others])}{where(key)}"))
    missing = [key for key, rule in known.items() if rule.required and key.removeprefix(prefix) not in node]
    return faults + [Fault(key, f" is required: {known[key].meaning or describe(known[key].hint)}") for key in missing]


def _check_value(key: str, value: Any, rule: Key, where: Origin) -> list[Fault]:
    if value == REQUIRED:
        return [Fault(key, f" is required: {rule.meaning or describe(rule.hint)}")]
    if obeys(value, rule.hint):
        return []
    shown, advice = as_typed(value), ""
    if isinstance(value, int | float) and obeys(shown, rule.hint):
        advice = f"; as text: '{key}=\"{shown}\"'"
    elif isinstance(value, str) and is_number(value):
        shown, advice = f'"{value}"', ", not text"
    return [Fault(key, f"={shown}: must be {describe(rule.hint)}{advice}{where(key)}")]


def _known(config: dict[str, Any], node: str, place: tuple[str, str] | None) -> list[str]:
    """Keys of a node as it is configured, for suggestions."""
    if place is not None:
        return list(signatures.builtin(*place).keys)
    own = config.get(node)
    if GROUPS[node].several and isinstance(own, dict):
        chosen = [(name, signature(node, name)) for name in own if builtin(node, name)]
        return [f"{name}.{key}" for name, found in chosen if found for key in found.keys]
    name: Any = own.get("name") if isinstance(own, dict) else None
    found = signature(node, name) if builtin(node, name) else None
    return ["name", *found.keys] if found else []
