"""Hydra composes a command line into one config; it makes no folder and no log.

Hydra and OmegaConf are imported where configs are composed, and nowhere else: see tests/test_architecture.py.
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
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dltrain.config import registry
from dltrain.config.hydra_guard import hydra_sandbox
from dltrain.config.overrides import hydra_argv, parse_flags, search_path_override, sweep_group_keys
from dltrain.config.provenance import Provenance
from dltrain.config.registry import config_folder
from dltrain.config.resolution import resolve, with_text_keys
from dltrain.config.safe_yaml import UnsafeConfig, read_yaml
from dltrain.runtime.errors import ConfigError, InputError
from dltrain.runtime.folders import expand_user

VERSION_BASE = "1.3"
COMPOSE_ERRORS = (
    HydraException,
    OmegaConfBaseException,
    ValueError,
)  # what Hydra raises for a command line it cannot use


@dataclass(frozen=True)
class Composed:
    """One job's config as plain data, references such as ${oc.env:HOME} kept; and what was typed for it."""

    config: dict[str, Any]
    overrides: list[str]
    typed: list[str]  # dotted keys
    origin: Provenance


@dataclass(frozen=True)
class Sweeping:
    """What Hydra gives a sweeper: its loader, a config without the words that sweep, and all words."""

    context: HydraContext
    master: DictConfig
    words: list[str]
    implied: list[str]


@dataclass(frozen=True)
class Task:
    """What Hydra calls for a config, and what its sweeper calls for all of them, which returns an exit code."""

    job: Callable[[Composed], None]
    sweep: Callable[[Sweeping], int] | None
    implied: list[str]

    def __call__(self, config: DictConfig) -> None:
        self.job(composed(config, HydraConfig.get(), self.implied))


def run(
    command: str, argv: list[str], job: Callable[[Composed], None], sweep: Callable[[Sweeping], int] | None = None
) -> int:
    """Let Hydra read a subcommand's arguments and call `job` with the config, or with -m `sweep`; returns an exit code.

    Raises one of REFUSED at the first fault; `diagnosis.explain` finds the others.
    """
    flags = [word.partition("=")[0] for word in argv]
    if any(len(flag) > 2 and "--experimental-rerun".startswith(flag) for flag in flags):
        raise ConfigError("--experimental-rerun: runs code from a file; use resume=FOLDER")
    if "--hydra-help" in argv:  # Hydra tells it of a config of its own, in which no word has a place
        argv = ["--hydra-help"]
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise InputError("the current folder is no longer there; cd to one that is") from error
    implied = options_of_resumed(argv)
    task = Task(job, sweep, implied)
    try:
        if flagged := any(word.startswith("-") for word in argv):
            parse_flags(command, hydra_argv(argv))
        guard = hydra_sandbox(sweeps=sweep is not None, flagged=flagged)
        with _arguments(sweep_group_keys(hydra_argv([*implied, *argv]))), guard:
            hydra.main(config_path=str(config_folder()), config_name=command, version_base=VERSION_BASE)(task)()
    except SystemExit as stop:  # after --help and the like, and for unknown flags
        shows = any(flag in ("--cfg", "-c") for flag in flags)  # what is not there, as with --package
        return 2 if shows and stop.code else stop.code if isinstance(stop.code, int) else 2 * (stop.code is not None)
    return 0


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
    """The config of a subcommand with overrides, its references filled in: for `dltrain.run.train` from Python.

    Raises ConfigError at the first mistake; the command line tells all.
    """
    words = hydra_argv(overrides)
    try:
        with hydra_sandbox(), hydra.initialize_config_dir(str(config_folder()), version_base=VERSION_BASE):
            plain = OmegaConf.to_container(hydra.compose(command, words), resolve=False)
    except COMPOSE_ERRORS as error:
        raise ConfigError(" ".join(str(error).split())) from error
    assert isinstance(plain, dict)
    return resolve(with_text_keys(plain))


def options_of_resumed(argv: list[str]) -> list[str]:
    """The options of a run that is to be resumed, where none is typed: so that its own keys can be typed.

    Only names of options are taken from the run's folder; the config that counts is the one in its checkpoint.
    """
    typed = {word.partition("=")[0]: word.partition("=")[2] for word in argv}
    if not (path := typed.get("resume")):
        return []
    folder = expand_user(path.strip("'\""))
    for candidate in (folder, *folder.parents[:2]):
        with contextlib.suppress(UnsafeConfig, AttributeError, TypeError):
            own = read_yaml(candidate / ".hydra" / "config.yaml")
            chosen = {
                group: registry.option_of(group, own.get(group, {})) for group in registry.GROUPS if group not in typed
            }
            return [f"{group}={words}" for group, words in chosen.items() if words]
    return []


def composed(config: DictConfig, own: Any, implied: list[str]) -> Composed:
    """A config that Hydra composed, `own` being Hydra's node; `implied` are words that nobody typed."""
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    plain.pop("hydra", None)
    overrides = OmegaConf.to_container(own.overrides.task, resolve=False)  # ${oc.env:KEY} stays a reference
    assert isinstance(overrides, list)
    overrides = [word for word in overrides if word not in implied]
    parsed = OverridesParser.create().parse_overrides(overrides)
    known = (*plain, "experiment")
    typed = [it.key_or_group for it in parsed if it.is_delete() or it.key_or_group.partition(".")[0] in known]
    sources = [Path(source.path) for source in own.runtime.config_sources if source.schema == "file"]
    chosen = {str(group): str(option) for group, option in own.runtime.choices.items()}
    name = str(own.job.config_name)
    overrides = [it.input_line or "" for it in parsed if it.key_or_group.partition(".")[0] != "sweep"]
    groups = [word.partition("=")[0] for word in implied]
    return Composed(with_text_keys(plain), overrides, typed, Provenance(name, typed, groups, sources, chosen))


def preview(command: str, argv: list[str]) -> Composed:
    """What a command line composes, of a sweep its first job: all that a help needs, in half the time of a run.

    Raises ConfigError for an unknown flag, else as `run`.
    """
    implied = options_of_resumed(argv)
    arguments = parse_flags(command, hydra_argv([*implied, *argv]))
    words = [*map(_first, arguments.overrides), *search_path_override(arguments)]
    with hydra_sandbox(), hydra.initialize_config_dir(str(config_folder()), version_base=VERSION_BASE):
        config = hydra.compose(arguments.config_name or command, words, return_hydra_config=True)
        return composed(config, config.hydra, implied)


def _first(word: str) -> str:
    """Of a word that sweeps the first value; the others as they are."""
    with contextlib.suppress(HydraException, ValueError):
        override = OverridesParser.create().parse_override(word)
        if override.is_discrete_sweep():
            return f"{override.get_key_element()}={next(override.sweep_string_iterator())}"
    return word
