"""The words of a command line, as Hydra can read them: its flags, and overrides quoted where they need to be."""

import argparse
import contextlib
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser  # the one place where Hydra's own flags are listed
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from dltrain.config.registry import config_folder
from dltrain.runtime.errors import ConfigError

# Hydra's flags that are followed by a value (--info and --cfg can be, and are here if they are written so).
VALUE_FLAGS = {"--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"}
VALUE_FLAGS |= {"--info", "-i", "--experimental-rerun"}
FUNCTIONS = ("choice(", "range(", "interval(", "glob(", "shuffle(", "sort(", "tag(")  # of Hydra's grammar


def parse_flags(command: str, argv: list[str]) -> argparse.Namespace:
    """Readable arguments as Hydra's own parser takes them. Raises ConfigError for flags that cannot be used."""
    parser = get_args_parser()
    told = f"dltrain {command} --hydra-help lists Hydra's"

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message}; {told}")

    parser.error = refuse  # type: ignore[method-assign]  # its own prints all flags, and leaves
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        key = unknown[0].lstrip("-").partition("=")[0]
        raise ConfigError(f"{unknown[0]}: no such flag; keys have no dashes: {key}=VALUE. {told}")
    primary = (arguments.config_name or command).removesuffix(".yaml")
    if primary != command and (config_folder() / f"{primary}.yaml").is_file():
        raise ConfigError(f"--config-name={primary}: is not that of dltrain {command}. Leave it out")
    if (own := arguments.config_dir) is not None:
        if not Path(own).is_dir():
            raise ConfigError(f"--config-dir={own}: no such folder")
        _refuse_hidden(Path(own))
    return arguments


def search_path_override(arguments: argparse.Namespace) -> list[str]:
    """The word that has Hydra search the folder of --config-dir too."""
    own = arguments.config_dir
    return [] if own is None else [quote_override(f"hydra.searchpath=['file://{Path(own).absolute()}']")]


def _refuse_hidden(own: Path) -> None:
    """Hydra takes dltrain's file of two that have one name, and says nothing."""
    for builtin in sorted(config_folder().rglob("*.yaml")):
        path = own / builtin.relative_to(config_folder())
        if path.is_file() and path.read_bytes() != builtin.read_bytes():
            raise ConfigError(f"{path}: dltrain has a file of this name, which is the one that counts. Rename yours")


def hydra_argv(argv: list[str]) -> list[str]:
    """Arguments as Hydra can read them: flags with their values first, overrides in one piece, quoted where needed."""
    flags, overrides = split_argv(argv)
    return flags + [quote_override(f"+{word}" if word.startswith("experiment=") else word) for word in overrides]


def split_argv(argv: list[str]) -> tuple[list[str], list[str]]:
    """Flags with their values, and overrides."""
    flags: list[str] = []
    overrides: list[str] = []
    words = iter(argv)
    for word in words:
        if word.startswith("-"):
            flags += [word, next(words, "")] if word in VALUE_FLAGS else [word]
        else:
            overrides.append(word)
    return [word for word in flags if word], overrides


def quote_override(word: str) -> str:
    """A value that Hydra's grammar cannot read, such as a path with = in it, as a quoted text."""
    key, equals, value = word.partition("=")
    is_function = value.startswith(FUNCTIONS) and (value.endswith(")") or value.count("(") > value.count(")"))
    if not equals or is_function:  # a mistake in one is told as such
        return word
    escaped = value.replace("'", "\\'")
    for form in (word, f"{key}='{escaped}'"):
        with contextlib.suppress(HydraException, ValueError):  # the latter for a number of thousands of digits
            OverridesParser.create().parse_overrides([form])
            return form
    return word  # as it was typed, to be told so


def sweep_group_keys(argv: list[str]) -> list[str]:
    """`data=mnist,cifar10 data.root=X` with X as a sweep of one value.

    Before a sweep Hydra composes once with the default option of a swept group, to which the key may be unknown; it
    leaves out what is swept itself.
    """
    parser = OverridesParser.create()
    swept = set()
    for word in argv:
        with contextlib.suppress(HydraException, ValueError):  # a flag, or a mistake that is told later
            swept |= {it.key_or_group for it in parser.parse_overrides([word]) if it.is_sweep_override()}
    words = []
    for word in argv:
        key, _, value = word.partition("=")
        of_swept = key.lstrip("+").partition(".")[0] in swept and "." in key
        words.append(f"{key}=choice({value})" if of_swept and key.lstrip("+") not in swept else word)
    return words
