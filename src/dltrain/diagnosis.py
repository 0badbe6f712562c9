"""Why a command line cannot be composed: Hydra tells the first fault, this tells all, with the nearest right names."""

import contextlib
import itertools
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser  # the one place where Hydra's own flags are listed
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dltrain import schema
from dltrain.composition import REFUSED, VERSION_BASE, config_folder, named, readable
from dltrain.errors import ConfigError
from dltrain.guard import Refused, guarded
from dltrain.origins import has


def explain(command: str, argv: list[str], error: Exception) -> ConfigError:
    """All faults of a command line that Hydra refused, with the nearest right names; else Hydra's own words."""
    if isinstance(error, Refused) and error.__cause__ is None:  # else Hydra itself broke, and cannot say at what
        return ConfigError(str(error))
    arguments = get_args_parser().parse_args(readable(argv))
    nodes = schema.COMMANDS[command][2]
    faults: list[schema.Fault] = []
    overrides: list[Override] = []
    unreadable: list[str] = []
    keys: list[Override] = []
    composed: Any = None
    for word in arguments.overrides:
        try:
            (override,) = OverridesParser.create().parse_overrides([word])
        except HydraException:
            override = None
        if override and override.key_or_group:
            overrides.append(override)
        else:
            unreadable.append(word)
    extra = [f"hydra.searchpath=[file://{Path(arguments.config_dir).absolute()}]"] if arguments.config_dir else []
    with (
        contextlib.suppress(*REFUSED),  # what Hydra cannot even list it tells itself
        guarded(),
        hydra.initialize_config_dir(str(config_folder()), version_base=VERSION_BASE),
    ):
        loader = GlobalHydra.instance().config_loader()
        options = [loader.get_group_options(override.key_or_group, overrides=extra) for override in overrides]
        keys += [override for override, names in zip(overrides, options, strict=True) if not names]
        words = []
        for override, names in zip(overrides, options, strict=True):
            group = override.key_or_group
            if names and group.partition("/")[0] not in (*nodes, "experiment", "hydra"):
                faults.append(schema.Fault(group, f": no such key{schema.suggest(group, nodes)}"))
                continue
            wrong = [value for value in _values(override) if value not in names] if names else []
            faults += [schema.Fault(group, f"={it}: no such option{schema.suggest(str(it), names)}") for it in wrong]
            if names and not wrong and not override.is_delete():
                several = isinstance(override.value(), list)
                option = f"[{','.join(_values(override))}]" if several else _values(override)[0]
                words.append(f"{'+' * override.is_add()}{group}={option}")
        composed = OmegaConf.to_container(hydra.compose(command, [*words, *extra]), resolve=False)
    known = known_keys(named(composed), command) if isinstance(composed, dict) else []
    for word in unreadable:
        key, equals, _ = word.lstrip("+~").partition("=")
        # Hydra reads no part of a key that begins with a digit; a typo of ours may.
        hint = schema.suggest(key, known) if equals and key not in known else ""
        faults.append(schema.Fault(word, f": cannot be read as KEY=VALUE{hint}"))
    if isinstance(composed, dict):
        faults += _key_faults(named(composed), command, keys)
    return ConfigError("\n".join(dict.fromkeys(map(str, faults))) if faults else " ".join(str(error).split()))


def _values(override: Override) -> list[Any]:
    """The value of an override, or each of those it sweeps over."""
    if override.is_discrete_sweep():
        return [value.strip("'\"") for value in _swept(override)]
    value = override.value()
    return value if isinstance(value, list) else [value]


def _swept(override: Override) -> list[str]:
    """The first values that an override sweeps over; what was typed where only Hydra can tell, as of glob(*)."""
    try:
        return [str(value) for value in itertools.islice(override.sweep_string_iterator(), 100)] or [""]
    except (HydraException, ValueError):
        return [override.input_line.partition("=")[2] if override.input_line else ""]


def _key_faults(config: dict[str, Any], command: str, overrides: list[Override]) -> list[schema.Fault]:
    """Faults of the keys that are set, each tried on the composed config."""
    known = known_keys(config, command)
    faults = []
    for override in overrides:
        key = override.key_or_group
        if key.startswith("hydra.") or override.is_delete():
            continue
        node: Any = config if override.is_add() or has(config, key) else None
        for parent in key.split(".")[:-1]:
            node = node.setdefault(parent, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict):  # +optim.lr.x has no place either
            hint = f"; to add it write +{key}=" if _can_be_added(key, config) else schema.suggest(key, known)
            faults.append(schema.Fault(key, f": no such key{hint} (from the command line)"))
            continue
        if override.is_discrete_sweep():
            override = OverridesParser.create().parse_override(f"{key}={_swept(override)[0]}")
        try:
            plain: Any = OmegaConf.to_container(OmegaConf.create({"value": override.value()}))
        except OmegaConfBaseException as error:  # ${ without an end
            faults.append(schema.Fault(key, f"={override.value()}: {str(error).splitlines()[0]}"))
            continue
        node[key.rpartition(".")[2]] = plain["value"]
    typed = [override.key_or_group for override in overrides]
    return faults + schema.check(config, command, lambda key: "the command line" if key in typed else "")


def _can_be_added(key: str, config: dict[str, Any]) -> bool:
    """Whether it is a parameter of the code, a person's own, that its group names."""
    group, _, parameter = key.partition(".")
    name = config[group].get("name") if isinstance(config.get(group), dict) else None
    if group not in schema.GROUPS or not isinstance(name, str) or ":" not in name:
        return False
    with contextlib.suppress(ConfigError):
        found = schema.signature(group, name)
        return found is not None and parameter in found.keys
    return False


def known_keys(config: dict[str, Any], command: str) -> list[str]:
    """What can stand before the = of a command line: keys, written with dots, and groups."""
    keys = [key for key in _dotted(config) if not key.startswith("hydra")]
    return [*keys, *schema.COMMANDS[command][2], *["experiment"] * (command == "train")]


def _dotted(config: dict[str, Any], prefix: str = "") -> list[str]:
    """Keys of a nested config, written with dots."""
    found = []
    for key, value in config.items():
        found += _dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return found
