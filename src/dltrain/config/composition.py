"""Compose a command line into one config. Hydra composes and runs nothing: no job, no folder, no log.

Hydra and OmegaConf are imported where configs are composed, and nowhere else: see tests/test_architecture.py.
"""

import argparse
import contextlib
import itertools
import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.singleton import Singleton
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra.version import VersionBase
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dltrain.config import registry
from dltrain.config.hydra_guard import hydra_sandbox
from dltrain.config.overrides import hydra_argv, parse_flags
from dltrain.config.provenance import Provenance
from dltrain.config.registry import config_folder
from dltrain.config.resolution import resolve, with_text_keys
from dltrain.config.safe_yaml import UnsafeConfig, read_yaml
from dltrain.runtime.errors import ConfigError, InputError
from dltrain.runtime.folders import expand_user

# What Hydra raises for a command line that it cannot use.
COMPOSE_ERRORS = HydraException, OmegaConfBaseException, ValueError
LOCK = threading.RLock()  # Hydra's state is that of the process, not of a thread
HYDRA_STATE = GlobalHydra, HydraConfig, VersionBase


@dataclass(frozen=True)
class Composed:
    """One job's config as plain data, references such as ${oc.env:HOME} kept, and the overrides typed for it."""

    config: dict[str, Any]
    overrides: list[str]
    typed: list[str]  # dotted keys
    origin: Provenance


@dataclass(frozen=True)
class Sweeping:
    """What a sweep composes its jobs from; `loader` is valid only within `sweeping`."""

    loader: ConfigLoader
    config_name: str
    settings: Any  # the node `sweep`
    hydra_overrides: list[str]  # of each job
    overrides: list[str]
    implied: list[str]


def run(command: str, argv: list[str]) -> Composed | int:
    """Return the config that a command line composes, or the exit code if Hydra prints something instead.

    Raises one of COMPOSE_ERRORS at the first mistake; `diagnostics.explain` finds the others.
    """
    try:
        flags, implied = parse(command, argv)
        with hydra_loader(flags.config_dir) as loader:
            if _print(flags):
                return 0
            if flags.multirun:  # cut short, as in --multi
                raise ConfigError("--multirun: must be written out, or as -m")
            return compose_job(loader, flags.config_name, flags.overrides, implied)
    except SystemExit as stop:  # after --version, or for a --package that does not exist
        return 2 if stop.code else 0


def parse(command: str, argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse the arguments of a subcommand; return also the overrides that a resumed run adds. Raises ConfigError."""
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise InputError("the current folder no longer exists; cd to one that does") from error
    implied = options_of_resumed(argv)
    flags = parse_flags(command, hydra_argv([*implied, *argv]))
    flags.config_name = flags.config_name or command
    return flags, implied


@contextlib.contextmanager
def _own_hydra() -> Iterator[None]:
    """Put aside, inside the `with` block, the state of a Hydra app that dltrain is used in.

    Without one the state stays after the block, so that references such as ${hydra:job.num} can be filled in.
    """
    known: dict[Any, Any] = Singleton._instances
    with LOCK:
        is_inside = GlobalHydra.instance().is_initialized()
        outer = {kind: known.pop(kind) for kind in HYDRA_STATE if kind in known} if is_inside else {}
        try:
            yield
        finally:
            for kind in HYDRA_STATE if is_inside else ():
                known.pop(kind, None)
            known.update(outer)


@contextlib.contextmanager
def hydra_loader(config_dir: str | None = None) -> Iterator[ConfigLoader]:
    """Yield Hydra's loader of configs/ and then `config_dir`, within the limits of `hydra_sandbox`."""
    with _own_hydra(), hydra_sandbox(), hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        listed = loader.get_group_options

        def options(group_name: str, results_filter: ObjectType | None = ObjectType.CONFIG, **named: Any) -> list[str]:
            """List the options in sub-folders of experiment/ too, so that glob(*) finds them."""
            folders = listed(group_name, ObjectType.GROUP) if group_name == "experiment" else []
            inside = [f"{sub}/{name}" for sub in folders for name in listed(f"{group_name}/{sub}", results_filter)]
            return listed(group_name, results_filter, **named) + inside

        loader.get_group_options = options  # type: ignore[assignment, method-assign]
        if config_dir is not None:
            search_path = loader.get_search_path()
            folder = f"file://{Path(config_dir).absolute()}"
            search_path.prepend("command-line", folder, SearchPathQuery(provider="schema"))
            loader.repository.initialize_sources(search_path)  # type: ignore[attr-defined]
        yield loader


def _print(flags: argparse.Namespace) -> bool:
    """Let Hydra print what a flag such as --cfg asks for; return False if there is no such flag. Nothing runs."""
    engine = GlobalHydra.instance().hydra
    assert engine is not None
    arguments, root = (flags.config_name, flags.overrides), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        if flags.hydra_help:
            flags.overrides = []  # it shows a config of Hydra's own, to which none of them applies
            engine.hydra_help(None, get_args_parser(), flags)
        elif flags.help:
            engine.app_help(flags.config_name, get_args_parser(), flags)
        elif flags.cfg:
            engine.show_cfg(*arguments, flags.cfg, flags.package, flags.resolve)
        elif flags.info:
            engine.show_info(flags.info, *arguments)
        elif flags.shell_completion:
            engine.shell_completion(*arguments)
        else:
            return False
        return True
    finally:  # --info adds a log
        root.handlers[:] = handlers
        root.setLevel(level)


@contextlib.contextmanager
def sweeping(command: str, argv: list[str]) -> Iterator[Sweeping]:
    """Compose the first job of a sweep, for its settings; yield what the other jobs are composed with."""
    flags, implied = parse(command, argv)
    with hydra_loader(flags.config_dir) as loader:
        first = first_values(loader, flags.overrides)
        config = loader.load_configuration(flags.config_name, first, run_mode=RunMode.MULTIRUN)
        sweeper: Any = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
        overrides = [f"{key}={'null' if value is None else value}" for key, value in (sweeper["params"] or {}).items()]
        of_hydra = [override for override in flags.overrides if override.lstrip("+~").startswith("hydra")]
        overrides += [override for override in flags.overrides if override not in of_hydra]
        settings = OmegaConf.to_container(config.sweep, resolve=True)
        yield Sweeping(loader, flags.config_name, settings, of_hydra, overrides, implied)


def compose(command: str, overrides: list[str]) -> dict[str, Any]:
    """Compose the config of a subcommand and fill in its references. Raises ConfigError at the first mistake."""
    try:
        with hydra_loader() as loader:
            return resolve(compose_job(loader, command, hydra_argv(overrides)).config)
    except COMPOSE_ERRORS as error:
        raise ConfigError(" ".join(str(error).split())) from error


def options_of_resumed(argv: list[str]) -> list[str]:
    """Return overrides that choose the options of the run to resume, so that keys of these options can be typed.

    Only names of options are taken from the run's folder; the config itself comes from its checkpoint.
    """
    typed = {word.partition("=")[0]: word.partition("=")[2] for word in argv}
    if not (path := typed.get("resume")):
        return []
    folder = expand_user(path.strip("'\""))
    for candidate in (folder, *folder.parents[:2]):
        with contextlib.suppress(UnsafeConfig, AttributeError, TypeError):
            own = read_yaml(candidate / ".hydra" / "config.yaml")
            groups = [group for group in registry.GROUPS if group not in typed]
            chosen = {group: registry.option_of(group, own.get(group, {})) for group in groups}
            return [f"{group}={option}" for group, option in chosen.items() if option]
    return []


def preview(command: str, argv: list[str]) -> Composed:
    """Compose a command line, of a sweep its first job, for help and --explain. Raises what `run` raises."""
    flags, implied = parse(command, argv)
    with hydra_loader(flags.config_dir) as loader:
        return compose_job(loader, flags.config_name, first_values(loader, flags.overrides), implied)


def compose_job(loader: ConfigLoader, config_name: str, texts: list[str], implied: Sequence[str] = ()) -> Composed:
    """Compose one config; `implied` are those overrides that the user did not type."""
    config = loader.load_configuration(config_name, texts, run_mode=RunMode.RUN)
    HydraConfig.instance().set_config(config)  # for references such as ${hydra:runtime.cwd}
    plain = OmegaConf.to_container(config, resolve=False)  # ${oc.env:KEY} stays a reference
    assert isinstance(plain, dict)
    node = plain.pop("hydra")
    overrides = [text for text in node["overrides"]["task"] if text not in implied]
    parsed = OverridesParser.create().parse_overrides(overrides)
    known = (*plain, "experiment")
    typed = [it.key_or_group for it in parsed if it.is_delete() or it.key_or_group.partition(".")[0] in known]
    runtime = node["runtime"]
    sources = [Path(source["path"]) for source in runtime["config_sources"] if source["schema"] == "file"]
    chosen = {str(group): str(option) for group, option in runtime["choices"].items()}
    overrides = [it.input_line or "" for it in parsed if it.key_or_group.partition(".")[0] != "sweep"]
    groups = [override.partition("=")[0] for override in implied]
    return Composed(with_text_keys(plain), overrides, typed, Provenance(config_name, typed, groups, sources, chosen))


def first_values(loader: ConfigLoader, overrides: list[str]) -> list[str]:
    """Reduce each override that sweeps to its first value; leave out intervals, and keys of the sweep itself."""
    replaced: list[str] = []
    for text in overrides:
        values: Iterable[str] = [text]
        with contextlib.suppress(HydraException, ValueError):  # a mistake, which composing reports
            override = OverridesParser.create(loader).parse_override(text)
            if override.is_sweep_override():
                is_listed = override.is_discrete_sweep() and not text.startswith("sweep.")
                first = itertools.islice(override.sweep_string_iterator(), 1) if is_listed else ()
                values = [f"{override.get_key_element()}={value}" for value in first]
        replaced += values
    return replaced
