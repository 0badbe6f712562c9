"""Find all mistakes of a command line that cannot be composed, with the nearest valid names. Hydra reports only one."""

import contextlib
import itertools
import re
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dltrain.config import registry, validation
from dltrain.config.composition import COMPOSE_ERRORS, compose_job, hydra_loader
from dltrain.config.dotted import at, has, leaves
from dltrain.config.hints import to_cli
from dltrain.config.overrides import hydra_argv, parse_flags, quote_override, split_argv
from dltrain.config.registry import config_folder
from dltrain.config.safe_yaml import UnsafeConfig
from dltrain.config.suggestions import of_bare, of_key, of_option, suggest
from dltrain.config.validation import TYPED
from dltrain.runtime.errors import ConfigError


def explain(command: str, argv: list[str], error: Exception) -> ConfigError:
    """Return all mistakes of a command line that Hydra refused; if none is found, Hydra's own message."""
    if isinstance(error, UnsafeConfig) and error.__cause__ is None:  # else Hydra failed, and does not say where
        return ConfigError(str(error))
    arguments = parse_flags(command, hydra_argv(argv))
    overrides, unreadable = _parsed(arguments.overrides)
    if unreadable and (torn := _torn(split_argv(argv)[1])):
        return ConfigError("\n".join(torn))
    faults: list[str] = []
    composed: dict[str, Any] | None = None
    with contextlib.suppress(*COMPOSE_ERRORS), hydra_loader(arguments.config_dir) as loader:
        options = {override.key_or_group: loader.get_group_options(override.key_or_group) for override in overrides}
        if "experiment" in options:  # Hydra lists none of a sub-folder
            options["experiment"] = _option_names("experiment", arguments.config_dir)
        option_overrides, faults = _options(overrides, options, command)
        composed = compose_job(loader, command, option_overrides).config
    known = [] if composed is None else known_keys(composed, command)
    faults += [_unreadable_fault(text, command, known) for text in unreadable]
    if "multirun" in str(error):
        faults += [_needs_sweep(each, composed or {}) for each in overrides if each.is_sweep_override()]
    if composed is not None:
        keys = [override for override in overrides if not options[override.key_or_group]]
        faults += _key_faults(composed, command, keys, known)
    faults += [] if faults else _in_experiment(command, arguments.config_dir, str(error))
    lines = dict.fromkeys(" ".join(fault.splitlines()) for fault in faults)
    return ConfigError("\n".join(lines) if faults else " ".join(str(error).split()))


def _parsed(texts: list[str]) -> tuple[list[Override], list[str]]:
    """Parse overrides; return them and the texts that Hydra's grammar cannot read."""
    overrides, unreadable = [], []
    for text in texts:
        override: Override | None = None
        with contextlib.suppress(HydraException):
            override = OverridesParser.create().parse_override(text)
        if override and override.key_or_group:
            overrides.append(override)
        else:
            unreadable.append(text)
    return overrides, unreadable


def _options(overrides: list[Override], options: dict[str, list[str]], command: str) -> tuple[list[str], list[str]]:
    """Return overrides that choose options, and problems of those that cannot; `options` has the names by group."""
    valid, faults = [], []
    nodes = registry.COMMANDS[command][2]
    chosen = [node for node in nodes if node in registry.SHARED or nodes[node] is None]
    for override in overrides:
        group = override.key_or_group
        names = options[group]
        if not names or override.value_type is ValueType.GLOB_CHOICE_SWEEP:  # a key, or any options that there are
            continue
        if group.partition("/")[0] not in (*chosen, *["experiment"] * (command == "train"), "hydra"):
            faults.append(f"{group}: no such key{of_key(group, chosen, command)}")
            continue
        wrong = [value for value in _values(override) if value not in names]
        faults += [_no_option(group, it, names) for it in wrong]
        if not wrong and not override.is_delete():
            option = f"[{','.join(_values(override))}]" if isinstance(override.value(), list) else _values(override)[0]
            valid.append(f"{'+' * override.is_add()}{group}={option}")
    return valid, faults


def _torn(texts: list[str]) -> list[str]:
    """Describe the arguments that a space has torn apart: `model = mlp`, `model.hidden=[128, 64]`."""
    found = re.findall(r"[^\s=]+(?: += *| *= +)[^\s=]+(?!\S*=)|\S+=\[[^\]=]* [^\]=]*\]", " ".join(texts))
    return [f"{text}: did you mean {text.replace(' ', '')}, without spaces?" for text in found]


def _unreadable_fault(text: str, command: str, known: list[str]) -> str:
    key, equals, _ = text.lstrip("+~").partition("=")
    if any(text.count(one) > text.count(other) for one, other in ("()", "[]", "{}")):
        return f"{text}: a bracket is not closed"
    # Hydra cannot parse a key in which a part begins with a digit, as a typo of a valid key may.
    hint = of_bare(text, command, known) if not equals else suggest(key, known) if key not in known else ""
    return f"{text}: cannot be read as KEY=VALUE{hint}"


def _needs_sweep(override: Override, config: dict[str, Any]) -> str:
    text, key = override.input_line or "", override.key_or_group
    value, hint = text.partition("=")[2], ""
    if has(config, key) and isinstance(at(config, key), list):
        hint = f"; a list is written {key}=[{value}]"
    elif " " in value.strip():
        hint = f"; a text with commas is quoted: \"{key}='{value}'\""
    return f"{text}: several values make a sweep: add -m{hint}"


def _in_experiment(command: str, config_dir: str | None, message: str) -> list[str]:
    """Find the problem in an experiment's defaults list from Hydra's message; `config_dir` has more configs."""
    place = " (in the defaults of the experiment)"
    if command != "train":
        return []
    if "@experiment." in message:  # where Hydra puts them without the first line
        return [f'experiment: its YAML must begin with "{registry.WHOLE}"']
    if (found := re.search(r"Could not find '(\w+)/([^'/]+)'", message)) and found[1] in registry.GROUPS:
        return [f"{_no_option(found[1], found[2], _option_names(found[1], config_dir))}{place}"]
    if found := re.search(r"Multiple values for (\w+)\. To override a value use 'override (\w+: \S+)'", message):
        if found[1] == "experiment":
            return ["experiment: only one per run, not included in another; several in turn: -m experiment=NAME,NAME"]
        return [f"{found[1]}: must be chosen by `- override /{found[2]}`{place}"]
    if found := re.search(r"Could not override '(\w+)'\. No match in the defaults list", message):
        return [f"{found[1]}: no such group{suggest(found[1], registry.COMMANDS['train'][2])}{place}"]
    return []


def _option_names(group: str, config_dir: str | None) -> list[str]:
    """Return the options of a group, including those in the folder of --config-dir."""
    return list(registry.options(group, [config_folder(), *([Path(config_dir)] if config_dir else [])]))


def _no_option(group: str, value: Any, names: list[str]) -> str:
    text = to_cli(value)
    return f"{group}={text}: no such option{of_option(group, text, names)}"


def _values(override: Override) -> list[Any]:
    """Return the value of an override, or all values of a sweep."""
    if override.is_discrete_sweep():
        return [value.strip("'\"") for value in _swept(override)]
    value = override.value()
    return value if isinstance(value, list) else [value]


def _swept(override: Override) -> list[str]:
    """Return the first values that an override sweeps over; the typed text if they cannot be listed, as for glob(*)."""
    try:
        return [str(value) for value in itertools.islice(override.sweep_string_iterator(), 100)] or [""]
    except (HydraException, ValueError):
        return [override.input_line.partition("=")[2] if override.input_line else ""]


def _key_faults(config: dict[str, Any], command: str, overrides: list[Override], known: list[str]) -> list[str]:
    """Check the overrides of keys, each applied to the composed config."""
    faults = []
    swept: list[tuple[dict[str, Any], str, Any]] = []  # node and key of each further value, and the value
    for override in overrides:
        key = override.key_or_group
        if key.startswith("hydra."):
            continue
        if override.is_delete():
            if not has(config, key):
                faults.append(f"~{key}: no such key{_hint(key, config, command, known)}")
            elif at(config, key) is None:
                faults.append(f"~{key}: is null already")
            continue
        node: Any = config if override.is_add() or has(config, key) else None
        for parent in key.split(".")[:-1]:
            node = node.setdefault(parent, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict):  # such as +optim.lr.x, below a value
            faults.append(f"{key}: no such key{_hint(key, config, command, known)} (from the command line)")
            continue
        values: list[Any] = []
        for single in _each(override):
            try:
                values.append(OmegaConf.to_container(OmegaConf.create({"value": single.value()})))
            except OmegaConfBaseException as error:  # an unclosed ${
                faults.append(f"{key}={single.value()}: {str(error).splitlines()[0]}")
        last = key.rpartition(".")[2]
        swept += [(node, last, value["value"]) for value in values[1:]]
        if values:
            node[last] = values[0]["value"]
    typed = [override.key_or_group for override in overrides]

    def check() -> list[str]:
        return validation.find_problems(config, command, lambda key: TYPED if key in typed else "")

    faults += check()
    for node, last, value in swept:
        before, node[last] = node[last], value
        faults += check()
        node[last] = before
    return faults


def _each(override: Override) -> list[Override]:
    """Return an override, or one for each value that it sweeps over."""
    if not override.is_discrete_sweep():
        return [override]
    found = []
    for value in _swept(override):
        with contextlib.suppress(HydraException, ValueError):  # for quotes within quotes, say
            found.append(OverridesParser.create().parse_override(quote_override(f"{override.key_or_group}={value}")))
    return found


def _hint(key: str, config: dict[str, Any], command: str, known: list[str]) -> str:
    """Say what to do about an unknown key: it can be added, is misspelt, or belongs to other options."""
    group, _, parameter = key.partition(".")
    node = config.get(group)
    name = node.get("name") if isinstance(node, dict) else None
    if group in registry.GROUPS and isinstance(name, str):  # a command other than train has no such options
        with contextlib.suppress(ConfigError):
            found = registry.signature(group, name)
            if found is not None and parameter in found.keys:  # of the user's code, or missing in their YAML
                return f"; to add it write +{key}="
    return of_key(key, known, command)


def known_keys(config: dict[str, Any], command: str) -> list[str]:
    """Return what can stand before the = of an override: dotted keys, and groups."""
    keys = [key for key, value in leaves(config).items() if value != {} and not key.startswith("hydra")]
    return [*keys, *registry.COMMANDS[command][2], *["experiment"] * (command == "train")]
