"""What a command line composes, without running it: for its help, and to explain keys."""

import contextlib

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from dltrain.composition import VERSION_BASE, Composed, choices_of_resumed, composed
from dltrain.folders import config_folder
from dltrain.guard import guarded
from dltrain.words import read_flags, readable, searched


def preview(command: str, argv: list[str]) -> Composed:
    """What a command line composes, of a sweep its first job: all that a help needs, in half the time of a run.

    Raises ConfigError for an unknown flag, else as `run`.
    """
    implied = choices_of_resumed(argv)
    arguments = read_flags(command, readable([*implied, *argv]))
    words = [*map(_first, arguments.overrides), *searched(arguments)]
    with guarded(), hydra.initialize_config_dir(str(config_folder()), version_base=VERSION_BASE):
        config = hydra.compose(arguments.config_name or command, words, return_hydra_config=True)
        return composed(config, config.hydra, implied)


def _first(word: str) -> str:
    """Of a word that sweeps the first value; the others as they are."""
    with contextlib.suppress(HydraException, ValueError):
        override = OverridesParser.create().parse_override(word)
        if override.is_discrete_sweep():
            return f"{override.get_key_element()}={next(override.sweep_string_iterator())}"
    return word
