"""Convert arguments to a form that Hydra can parse: flags first, and overrides quoted where necessary."""

import argparse
import contextlib
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser  # the one place where Hydra's own flags are listed
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from dltrain.config import synonyms
from dltrain.config.registry import config_folder
from dltrain.runtime.errors import ConfigError

# Hydra's flags that are followed by a value (optional for --info and --cfg, which take what follows).
VALUE_FLAGS = {"--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"}
VALUE_FLAGS |= {"--info", "-i", "--experimental-rerun"}
FUNCTIONS = ("choice(", "range(", "interval(", "glob(", "shuffle(", "sort(", "tag(")  # of Hydra's grammar


def parse_flags(command: str, argv: list[str]) -> argparse.Namespace:
    """Parse arguments with Hydra's own parser. Raises ConfigError for flags that cannot be used."""
    parser = get_args_parser()
    hint = f"dltrain {command} --hydra-help lists Hydra's"

    def refuse(message: str) -> NoReturn:
        if "--config could match" in message:
            raise ConfigError(f"--config: {synonyms.meaning(synonyms.ADVICE, 'config')}")
        raise ConfigError(f"{message}; {hint}")

    parser.error = refuse  # type: ignore[method-assign]  # its own prints all flags and exits
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        followed = [text for text in arguments.overrides if "=" not in text]
        if not followed and not any("=" in flag for flag in unknown):  # --jsn is not meant as a key
            raise ConfigError(f"{' '.join(unknown)}: no such flag; dltrain {command} --help lists those there are")
        values = iter(followed + ["VALUE"] * len(unknown))
        pairs = [flag.lstrip("-").partition("=") for flag in unknown]  # of --epochs=3, or of --epochs 3
        typed = [f"{key.replace('-', '_')}={value if equals else next(values)}" for key, equals, value in pairs]
        raise ConfigError(f"{' '.join(unknown)}: no such flag; keys have no dashes: {' '.join(typed)}. {hint}")
    if arguments.experimental_rerun is not None:
        raise ConfigError("--experimental-rerun: runs code from a file; use resume=FOLDER")
    if arguments.config_path is not None:
        raise ConfigError(f"--config-path={arguments.config_path}: use --config-dir, which keeps dltrain's own configs")
    asked = (arguments.run, arguments.multirun, arguments.cfg, arguments.info, arguments.shell_completion)
    if sum(map(bool, asked)) > 1 and not arguments.hydra_help:
        raise ConfigError("--run, --multirun, --cfg, --info and --shell-completion: only one of them can be given")
    if arguments.resolve and not arguments.cfg:
        raise ConfigError("--resolve: needs --cfg")
    primary = (arguments.config_name or command).removesuffix(".yaml")
    if primary != command and (config_folder() / f"{primary}.yaml").is_file():
        raise ConfigError(f"--config-name={primary}: is the config of another command. Leave it out")
    if (folder := arguments.config_dir) is not None:
        if not Path(folder).is_dir():
            raise ConfigError(f"--config-dir={folder}: no such folder")
        _refuse_hidden(Path(folder))
    return arguments


def _refuse_hidden(folder: Path) -> None:
    """Raise ConfigError for a file that Hydra would silently ignore, since dltrain has one of the same name."""
    for builtin in sorted(config_folder().rglob("*.yaml")):
        path = folder / builtin.relative_to(config_folder())
        if path.is_file() and path.read_bytes() != builtin.read_bytes():
            raise ConfigError(f"{path}: dltrain has a file of this name, which is used instead. Rename yours")


def hydra_argv(argv: list[str]) -> list[str]:
    """Return arguments as Hydra can read them: flags with their values first, overrides quoted where necessary."""
    flags, overrides = split_argv(argv)
    return flags + [quote_override(f"+{it}" if it.startswith("experiment=") else it) for it in overrides]


def split_argv(argv: list[str]) -> tuple[list[str], list[str]]:
    """Split arguments into flags with their values, and overrides."""
    flags, overrides = list[str](), list[str]()
    remaining = iter(argv)
    for argument in remaining:
        if argument.startswith("-"):
            flags += [argument, next(remaining, "")] if argument in VALUE_FLAGS else [argument]
        else:
            overrides.append(argument)
    return [argument for argument in flags if argument], overrides


def quote_override(argument: str) -> str:
    """Quote the value of an override if Hydra's grammar cannot read it, such as a path that contains =."""
    key, equals, value = argument.partition("=")
    is_function = value.startswith(FUNCTIONS) and (value.endswith(")") or value.count("(") > value.count(")"))
    if not equals or is_function:  # a mistake in a function is reported later
        return argument
    escaped = value.replace("'", "\\'")
    for form in (argument, f"{key}='{escaped}'"):
        with contextlib.suppress(HydraException, ValueError):  # the latter for a number of thousands of digits
            OverridesParser.create().parse_overrides([form])
            return form
    return argument  # as it was typed, for the error message
