"""Hydra composes a command line into one config. With sweeps/ the only importer of hydra and omegaconf.

Hydra makes no folder and no log. Where it stops at the first fault, `explain` finds all of them.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dltrain import schema
from dltrain.errors import ConfigError

VERSION_BASE = "1.3"
# Hydra's flags that are followed by a value (--info and --cfg can be, and are here if they are written so).
VALUE_FLAGS = {"--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"}
VALUE_FLAGS |= {"--info", "-i", "--experimental-rerun"}


@dataclass(frozen=True)
class Composed:
    """One job's config as plain data, references such as ${oc.env:HOME} kept; and what was typed for it."""

    config: dict[str, Any]
    overrides: list[str]
    typed: list[str]  # dotted keys
    origin: schema.Origin
    number: int  # in its sweep


def config_folder() -> Path:
    """configs/ of the checkout, else the copy inside the installed package."""
    checkout = Path(__file__).resolve().parents[2] / "configs"
    return checkout if (checkout / "train.yaml").is_file() else Path(__file__).resolve().parent / "configs"


def run(command: str, argv: list[str], job: Callable[[Composed], None]) -> int:
    """Let Hydra read a subcommand's arguments and call `job` for each config; returns the exit code of its flags.

    Raises ConfigError with all faults where nothing can be composed.
    """

    implied = _choices_of_resumed(argv)

    def compose(config: DictConfig) -> None:
        job(_composed(config, implied))

    argv = [*implied, *argv]
    try:
        with _arguments(_flags_first(argv)):
            hydra.main(config_path=str(config_folder()), config_name=command, version_base=VERSION_BASE)(compose)()
    except SystemExit as stop:  # after --help and the like, and for unknown flags
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 2
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if os.environ.get("DLTRAIN_TRACEBACK"):
            raise
        raise explain(command, argv, error) from error
    return 0


def _flags_first(argv: list[str]) -> list[str]:
    """Hydra takes overrides only in one piece: bring flags, with their values, before them."""
    flags: list[str] = []
    overrides: list[str] = []
    words = iter(argv)
    for word in words:
        if word.startswith("-"):
            flags += [word, next(words, "")] if word in VALUE_FLAGS else [word]
        else:
            overrides.append(word)
    return [word for word in flags if word] + overrides


@contextlib.contextmanager
def _arguments(argv: list[str]) -> Iterator[None]:
    """Hydra reads sys.argv, raises only with HYDRA_FULL_ERROR (else it prints and leaves); --info adds a log."""
    before, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    sys.argv = [before[0], *argv]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = before
        root.handlers[:] = handlers
        root.setLevel(level)
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error


def compose(command: str, overrides: list[str]) -> dict[str, Any]:
    """The config of a subcommand with overrides, its references filled in: for `dltrain.run.train` from Python."""
    with hydra.initialize_config_dir(str(config_folder()), version_base=VERSION_BASE):
        plain = OmegaConf.to_container(hydra.compose(command, overrides), resolve=False)
    assert isinstance(plain, dict)
    return resolve(_named(plain))


def resolve(config: dict[str, Any]) -> dict[str, Any]:
    """A config with its references filled in. Raises ConfigError for one that leads nowhere."""
    try:
        filled = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(" ".join(str(error).split())) from error
    assert isinstance(filled, dict)
    return _named(filled)


def _named(config: dict[Any, Any]) -> dict[str, Any]:
    return {str(key): value for key, value in config.items()}


def _choices_of_resumed(argv: list[str]) -> list[str]:
    """The options of a run that is to be resumed, where none is typed: so that its own keys can be typed.

    Only names of options are taken from the run's folder; the config that counts is the one in its checkpoint.
    """
    typed = {word.partition("=")[0]: word.partition("=")[2] for word in argv}
    if not (path := typed.get("resume")):
        return []
    folder = Path(path.strip("'\"")).expanduser()
    for candidate in (folder, *folder.parents[:2]):
        with contextlib.suppress(OSError, yaml.YAMLError, AttributeError):
            own = yaml.safe_load((candidate / ".hydra" / "config.yaml").read_text(encoding="utf-8"))
            chosen = {group: own.get(group, {}).get("name") for group in schema.GROUPS if group not in typed}
            return [f"{group}={name}" for group, name in chosen.items() if name in schema.names(group)]
    return []


def _composed(config: DictConfig, implied: list[str]) -> Composed:
    own = HydraConfig.get()
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    overrides = OmegaConf.to_container(own.overrides.task, resolve=False)  # ${oc.env:KEY} stays a reference
    assert isinstance(overrides, list)
    overrides = [word for word in overrides if word not in implied]
    typed = [override.key_or_group for override in OverridesParser.create().parse_overrides(overrides)]
    typed = [key for key in typed if key.partition(".")[0] in plain]
    sources = [Path(source.path) for source in own.runtime.config_sources if source.schema == "file"]
    chosen = {str(group): str(option) for group, option in own.runtime.choices.items()}
    name = str(own.job.config_name)
    number = 0 if OmegaConf.is_missing(own.job, "num") else int(own.job.num)
    return Composed(_named(plain), overrides, typed, lambda key: _origin(key, typed, sources, chosen, name), number)


def _origin(key: str, typed: list[str], sources: list[Path], chosen: dict[str, str], command: str) -> str:
    """The command line, or the YAML file that has the last word on a key: experiments come after groups."""
    parents = [key.rsplit(".", count)[0] for count in range(key.count(".") + 1)]
    if any(parent in typed and parent not in chosen for parent in parents):
        return "the command line"
    group, _, last = key.partition(".")
    places = [(f"experiment/{chosen.get('experiment')}.yaml", key), (f"{group}/{chosen.get(group)}.yaml", last)]
    for name, path in [*places, (f"{command}.yaml", key)]:
        for source in sources:
            file = source / name
            if path and file.is_file() and _has(yaml.safe_load(file.read_text(encoding="utf-8")), path):
                return str(file)
    return ""


def _has(node: Any, path: str) -> bool:
    for key in path.split("."):
        if not isinstance(node, dict) or key not in node:
            return False
        node = node[key]
    return True


def explain(command: str, argv: list[str], error: Exception) -> ConfigError:
    """All faults of a command line that Hydra refused, with the nearest right names; else Hydra's own words."""
    from hydra._internal.utils import get_args_parser  # Hydra's own flags, the one place where they are listed

    arguments = get_args_parser().parse_args(_flags_first(argv))
    nodes = schema.COMMANDS[command][2]
    faults: list[schema.Fault] = []
    overrides: list[Override] = []
    for word in arguments.overrides:
        try:
            overrides += OverridesParser.create().parse_overrides([word])
        except HydraException:
            faults.append(schema.Fault(word, ": cannot be read as KEY=VALUE; are its quotes and brackets closed?"))
    extra = [f"hydra.searchpath=[file://{Path(arguments.config_dir).absolute()}]"] if arguments.config_dir else []
    with hydra.initialize_config_dir(str(config_folder()), version_base=VERSION_BASE):
        loader = GlobalHydra.instance().config_loader()
        options = [loader.get_group_options(override.key_or_group, overrides=extra) for override in overrides]
        keys = [override for override, names in zip(overrides, options, strict=True) if not names]
        words = []
        for override, names in zip(overrides, options, strict=True):
            group = override.key_or_group
            if names and group.partition("/")[0] not in (*nodes, "experiment", "hydra"):
                faults.append(schema.Fault(group, f": no such key{schema.suggest(group, nodes)}"))
                continue
            wrong = [value for value in _values(override) if value not in names] if names else []
            faults += [schema.Fault(group, f"={it}: no such option{schema.suggest(str(it), names)}") for it in wrong]
            if names and not wrong and not override.is_delete():
                words.append(f"{'+' * override.is_add()}{group}={_values(override)[0]}")
        try:
            composed = OmegaConf.to_container(hydra.compose(command, [*words, *extra]), resolve=False)
        except (HydraException, OmegaConfBaseException):
            composed = None
    if isinstance(composed, dict):
        faults += _key_faults(_named(composed), command, keys)
    return ConfigError("\n".join(map(str, faults)) if faults else " ".join(str(error).split()))


def _values(override: Override) -> list[Any]:
    """The value of an override, or each of those it sweeps over."""
    if override.is_discrete_sweep():
        return [value.strip("'\"") if isinstance(value, str) else value for value in override.sweep_string_iterator()]
    value = override.value()
    return value if isinstance(value, list) else [value]


def _key_faults(config: dict[str, Any], command: str, overrides: list[Override]) -> list[schema.Fault]:
    """Faults of the keys that are set, each tried on the composed config."""
    known = [key for key in _dotted(config) if not key.startswith("hydra")] + list(schema.COMMANDS[command][2])
    faults = []
    for override in overrides:
        key = override.key_or_group
        if key.startswith("hydra.") or override.is_delete():
            continue
        if not override.is_add() and not _has(config, key):
            hint = schema.suggest(key, known)
            faults.append(schema.Fault(key, f": no such key{hint} (from the command line)"))
            continue
        node = config
        for parent in key.split(".")[:-1]:
            node = node.setdefault(parent, {}) if isinstance(node, dict) else {}
        values = override.value() if not override.is_sweep_override() else _values(override)[0]
        node[key.rpartition(".")[2]] = OmegaConf.to_container(OmegaConf.create({"value": values}))["value"]  # type: ignore[index,call-overload]
    typed = [override.key_or_group for override in overrides]
    return faults + schema.check(config, command, lambda key: "the command line" if key in typed else "")


def _dotted(config: dict[str, Any], prefix: str = "") -> list[str]:
    """Keys of a nested config, written with dots."""
    found = []
    for key, value in config.items():
        found += _dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return found
