"""Map options of groups to functions and classes, and their signatures to keys. Imports no torch.

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
from pathlib import Path
from typing import Any

from dltrain.config import signatures
from dltrain.config.signatures import PACKAGE, Param, Signature
from dltrain.runtime.errors import ConfigError

LISTED_GROUPS = ("model", "data", "optim", "schedule", "task", "device", "logger", "experiment")


def options(group: str, folders: Iterable[Path]) -> dict[str, Path]:
    """Return the options of a group and their files, FOLDER/NAME for one in a sub-folder; the first folder wins."""
    bases = [folder / group for folder in reversed(list(folders))]
    files = {path.relative_to(base).with_suffix("").as_posix(): path for base in bases for path in base.rglob("*.yaml")}
    return dict(sorted(files.items()))


def summary(group: str, name: str, path: Path) -> str:
    """Return the first line of an option's docstring, else the comment at the top of its file."""
    if group in GROUPS and (option := signature(group, name)):
        return option.summary
    for_machines = ("@package", "yaml-language-server:")
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = (line for line in lines if line.startswith("# ") and not any(it in line for it in for_machines))
    return next(comments, "").lstrip("# ")


def of_option(group: str, name: str) -> Signature | None:
    """Return the signature of an option; None for `custom` and experiments, whose keys are unknown here."""
    if place := SHARED.get(group):
        return signatures.builtin(*place)
    return signature(group, name) if group in GROUPS else None


def nodes(command: str, config: dict[str, Any]) -> dict[str, Signature]:
    """Return the signature of each node of a config, under "" that of the command itself. Raises ConfigError."""
    source, name, places = COMMANDS[command]
    found: dict[str, Signature | None] = {"": signatures.builtin(source, name)}
    for node, place in places.items():
        own: Any = value if isinstance(value := config.get(node), dict) else {}
        if place is not None:
            found[node] = signatures.builtin(*place)
        elif GROUPS[node].several:
            found |= {f"{node}.{option}": signature(node, option) for option in own}
        elif isinstance(chosen := own.get("name"), str) and chosen != REQUIRED:
            found[node] = signature(node, chosen)
    return {node: signature for node, signature in found.items() if signature is not None}


def keys(command: str, config: dict[str, Any]) -> dict[str, Param]:
    """Return every dotted key of a config and its rule."""
    return {key: rule for node, own in nodes(command, config).items() for key, rule in typed_keys(node, own).items()}


def typed_keys(node: str, signature: Signature) -> dict[str, Param]:
    """Return the dotted keys of a node; the node "" is the command itself."""
    return {f"{node}.{key}" if node else key: rule for key, rule in signature.keys.items()}


Origin = Callable[[str], str]
REQUIRED = "???"  # how Hydra marks a value that must be set
WHOLE = "# @package _global_"  # the first line of an experiment, which sets keys of the whole config


@dataclass(frozen=True)
class Group:
    """Where a group's options are defined, and which of their arguments the program passes in.

    A function that takes the first of the `injected` arguments is an option; others in the same module are helpers.
    """

    source: str
    injected: tuple[str, ...] = ()
    shared: tuple[tuple[str, str], ...] = ()  # functions whose keys every option of the group has as well
    several: bool = False  # True if its node holds one node for each of several options
    offered: tuple[str, ...] = ()  # arguments that the program passes in too, to those options that have them


GROUPS = {
    "data": Group(
        "data/datasets",
        ("split", "source", "seed", "images", "targets", "generator"),
        (
            ("data/splits.py", "split_train_val"),
            ("data/balance.py", "balanced_order"),
            ("data/loader.py", "normalization"),
            ("data/augmentation.py", "augmentation"),
        ),
    ),
    "model": Group("models", ("input_shape", "num_classes")),
    "optim": Group(
        "optim/optimizers.py", ("named_parameters", "optimizer", "model"), (("optim/optimizers.py", "scale_lr"),)
    ),
    "schedule": Group("optim/schedules.py", ("total_steps", "step", "scores")),
    "task": Group("optim/tasks.py", offered=("class_counts",)),
    "logger": Group("report/trackers", ("folder", "config"), several=True),
}
OPTIONAL = ("sweep", "logger")  # a single run has no sweep; without a logger it writes only metrics.jsonl
Places = dict[str, tuple[str, str] | None]  # a source file, and what is defined in it
# Nodes that always stand for the same function, and the function or class of a command's own keys.
SHARED: Places = {"device": ("runtime/devices.py", "device"), "sweep": ("config/settings.py", "Sweep")}
COMMANDS: dict[str, tuple[str, str, Places]] = {
    "train": ("config/settings.py", "Train", {**dict.fromkeys(GROUPS), **SHARED}),
    "eval": ("config/settings.py", "Eval", {"data": ("config/settings.py", "EvalData"), **SHARED}),
    "predict": ("config/settings.py", "Predict", SHARED),
    "export": ("config/settings.py", "Export", SHARED),
}


@functools.cache
def names(group: str) -> list[str]:
    """Return the built-in options of a group, sorted."""
    source = GROUPS[group].source
    is_file = source.endswith(".py")
    found = signatures.public_names(source) if is_file else [path.stem for path in (PACKAGE / source).glob("*.py")]
    return sorted(name for name in found if builtin(group, name))


def builtin(group: str, name: Any) -> Signature | None:
    """Return the signature of a built-in option, injected arguments included; None if there is no such option.

    Reads only the source of that option: reading all takes a twentieth of a second.
    """
    place = GROUPS[group]
    is_file = place.source.endswith(".py")
    known = signatures.public_names(place.source) if is_file else [name]
    if not isinstance(name, str) or not name.isidentifier() or name not in known:
        return None
    with contextlib.suppress(signatures.SignatureNotFound):  # or a file of helpers
        found = signatures.builtin(place.source if is_file else f"{place.source}/{name}.py", name)
        return found if set(place.injected[:1]) <= set(found.keys) else None
    return None


def option_of(group: str, node: dict[str, Any]) -> str:
    """Return how to type the built-in options that a group's node holds; empty if there is none."""
    several = GROUPS[group].several
    known: list[Any] = [name for name in (node if several else [node.get("name")]) if builtin(group, name)]
    return f"[{','.join(known)}]" if several and known else "".join(known)


def signature(group: str, name: str) -> Signature | None:
    """Return the signature of an option without injected arguments; None for an unknown name."""
    place, found = GROUPS[group], builtin(group, name)
    if ":" in name:
        found = signatures.user_signature(signatures.user_object(name))
        if group in ("optim", "data"):  # its first argument gets the parameters or the split, whatever its name
            found = replace(found, keys=dict(list(found.keys.items())[1:]))
    if found is None:
        return None
    injected = () if ":" in name and group == "data" else place.injected + place.offered
    keys = {key: rule for key, rule in found.keys.items() if key not in injected}
    keys |= {key: replace(keys[key], required=False) for key in _inherited_defaults(group, name) if key in keys}
    return replace(found, keys=keys | _shared(group))


def base_option(group: str, name: str) -> str:
    """Return the built-in option that a user's class derives from, to treat it like that one; else the name itself."""
    bases = getattr(signatures.user_object(name), "__mro__", ()) if ":" in name else ()
    options = (base.__name__.lower() for base in bases if base.__module__.startswith("dltrain."))
    return next((option for option in options if builtin(group, option)), name)


def _inherited_defaults(group: str, name: str) -> dict[str, Any]:
    """Return the defaults of keys that a user's class has from a built-in option and gives no default of its own."""
    if (option := base_option(group, name)) == name:
        return {}
    from dltrain.config.safe_yaml import read_yaml  # it imports Hydra

    parameters = inspect.signature(signatures.user_object(name)).parameters
    defaults = read_yaml(config_folder() / group / f"{option}.yaml")
    return {key: defaults[key] for key, rule in parameters.items() if key in defaults and rule.default is rule.empty}


@functools.cache
def _shared(group: str) -> dict[str, Param]:
    """Return the keys that every option of a group has."""
    found = [signatures.builtin(*place).keys.items() for place in GROUPS[group].shared]
    return {key: rule for items in found for key, rule in items if key not in GROUPS[group].injected}


def partial_call(group: str, node: dict[str, Any], **injected: Any) -> functools.partial[Any]:
    """Return the function of a checked node, bound to its keys and to those of `injected` that it takes."""
    name = node["name"]
    function = signatures.user_object(name) if ":" in name else _builtin_object(group, name)
    parameters = inspect.signature(function).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    # A function with **options gets its own keys, not those that dltrain handles for every option of the group.
    taken = parameters.keys() | (node.keys() - _shared(group).keys() if takes_any else set())
    own = {k: v for k, v in (_inherited_defaults(group, name) | node).items() if k != "name" and k in taken}
    return functools.partial(function, **own, **{key: value for key, value in injected.items() if key in parameters})


def _builtin_object(group: str, name: str) -> Any:
    source = GROUPS[group].source
    if builtin(group, name) is None:
        raise ConfigError(f"{group}={name}: no such option; there are {', '.join(names(group))}")
    module = source.removesuffix(".py") if source.endswith(".py") else f"{source}.{name}"
    loaded = importlib.import_module(f"dltrain.{module.replace('/', '.')}")
    own = {key: found for key, found in vars(loaded).items() if getattr(found, "__module__", "") == loaded.__name__}
    return next(found for key, found in own.items() if signatures.matches_name(key, name))


def config_folder() -> Path:
    """Return configs/ of the installed package, else of the checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"  # first: two folders above an installed package are the user's own files
    return installed if (installed / "train.yaml").is_file() else package.parents[1] / "configs"
