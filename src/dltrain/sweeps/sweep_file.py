"""sweep.json: the overrides a sweep was started with, so that it resumes without typing them again."""

import json
import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from dltrain import __version__
from dltrain.config.overrides import parse_flags, split_argv
from dltrain.config.registry import GROUPS, config_folder, options
from dltrain.config.saved_config import ADDRESSES
from dltrain.runtime import atomic_files, folders, torchrun
from dltrain.runtime.errors import ConfigError, InputError

FORMAT = 1
WRITTEN = ("output", "resume")
WHERE = ("sweep.executor", "sweep.options", "sweep.requeue")
# The keys that define a sweep. Those that say how it runs are chosen at each start, never by a folder.
OWN = tuple(f"sweep.{key}" for key in ("search", "trials", "metric", "direction", "pruner", "seed"))


@dataclass(frozen=True)
class Request:
    """A sweep as the user asks for it; `typed_keys` are the keys typed beside overrides from `folder`, else None."""

    command: str
    flags: list[str]
    overrides: list[str]
    folder: Path | None = None
    typed_keys: frozenset[str] | None = None


def parse_request(command: str, argv: list[str]) -> Request:
    """Parse a command line. Raises InputError or ConfigError for a folder that cannot be resumed."""
    torchrun.require_single_process("-m")
    flags, overrides = split_argv([argument for argument in argv if argument != "hydra.mode=MULTIRUN"])
    if {"-m", "--multirun"}.isdisjoint(flags):
        flags.append("-m")
    typed = {_key(override): override.partition("=")[2].strip("'\"") for override in overrides}
    if (text := typed.get("sweep.resume", "null")) == "null":
        return Request(command, flags, overrides)
    folder = _sweep_folder(text)
    path, config_dir = folder / "sweep.json", parse_flags(command, flags).config_dir
    if not all(map(_is_of_start, overrides)):
        if path.exists():
            _read(path, command, config_dir)
        return Request(command, flags, overrides, folder)
    stored = _read(path, command, config_dir)
    kept = [each for each in stored if _key(each) not in typed and (_key(each) in OWN or not _is_of_start(each))]
    kept += [override for override in stored if _is_kept_output(override, typed)]
    for address in () if "logger" in typed else sorted(ADDRESSES.keys() & set(map(_key, stored)) - typed.keys()):
        print(f"{address} is not taken from {path}: type it again, or the tracker's own default is used")
    for override in stored:  # a file never says what jobs write to
        if _key(override) in WRITTEN and _key(override) not in typed:
            advice = f"must be typed on the command line. If it is right, type it again: '{override}'"
            raise ConfigError(f"{path}: contains {override}, which {advice}")
    return Request(command, flags, kept + overrides, folder, frozenset(typed))


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _is_of_start(argument: str) -> bool:
    """True if an argument concerns only this start: a flag, how the sweep runs, or what its jobs write."""
    key = _key(argument)
    return argument[:1] == "-" or key.startswith(("sweep", "hydra")) or key in ("trust", *WRITTEN) or _is_of_output(key)


def _is_kept_output(override: str, typed: Collection[str]) -> bool:
    """True if an override of a file says what jobs write, and no typed one replaces it."""
    key = _key(override)
    is_replaced = key in typed or (key.startswith("logger") and "logger" in typed)
    return _is_of_output(key) and key not in ADDRESSES and not is_replaced


def _is_of_output(key: str) -> bool:
    return key == "report" or key.partition(".")[0] == "logger"


def _sweep_folder(text: str) -> Path:
    if text == "last":
        if not (sweeps := folders.newest_first(Path("outputs", "sweeps"))):
            raise InputError("sweep.resume=last: outputs/sweeps contains no sweep. Give the folder of one")
        return sweeps[0]
    folder = folders.expand_user(text)
    if not folder.is_dir():
        raise InputError(f"sweep.resume={text}: no such folder")
    return folder


def _read(path: Path, command: str, config_dir: str | None) -> list[str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        overrides = [_moved(str(override), config_dir) for override in content["overrides"]]
        cwd = Path(content.get("cwd", "."))
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else "cannot be read"
        raise InputError(f"{path}: {reason}. Repeat the overrides of the sweep, with sweep.resume") from error
    if content.get("command") != command:
        raise ConfigError(f"sweep.resume={path.parent}: is not a sweep of dltrain {command}")
    advice = "Repeat the overrides of the sweep"
    for override in overrides:
        if "@" in override.partition("=")[0]:
            raise InputError(f"{path}: {override} moves an option to another node. {advice}")
        option = override.partition("=")[2].strip("'\"")
        if _key(override) in (*GROUPS, "device", "sweep", "experiment") and (option[:1] in "/~" or ".." in option):
            raise InputError(f"{path}: {override} refers to a file outside the config folders. {advice}")
    if cwd != Path() and cwd != Path.cwd():
        print(f"{path.parent} was started in {cwd}; relative paths in its overrides now start at the current folder")
    return overrides


def _moved(override: str, config_dir: str | None) -> str:
    """Return an override with the name of an experiment that moved to textbook/ after the sweep began."""
    key, equals, value = override.partition("=")
    if _key(override) != "experiment":
        return override
    names = options("experiment", [config_folder(), *([Path(config_dir)] if config_dir else [])])

    def moved(name: str) -> str:
        return f"textbook/{name}" if name not in names and f"textbook/{name}" in names else name

    if "glob(" in value:  # of patterns, which may match old names

        def both(match: re.Match[str]) -> str:
            patterns = match[2].strip("[]")
            return f"{match[1]}[{patterns},{','.join(f'textbook/{each.strip()}' for each in patterns.split(','))}]"

        return key + equals + re.sub(r"(glob\(|exclude=)(\[[^\]]*\]|[^,)]*)", both, value)
    return key + equals + re.sub(r"""[^,'"()\[\] ]+""", lambda match: moved(match[0]), value)


def command_to_resume(request: Request, folder: Path, overrides: Sequence[str], trusted: Collection[str] = ()) -> str:
    """Return the command that resumes a sweep, with the flags and overrides that are never taken from its folder.

    `trusted` are the packages of user code that its jobs run.
    """
    flags = [flag for flag in request.flags if flag not in ("-m", "--multirun")]
    again = [override for override in overrides if _key(override) in (*WRITTEN, *ADDRESSES, *WHERE, "trust")]
    if trusted and "trust" not in map(_key, again):
        again.append(f"trust=[{','.join(sorted(trusted))}]")
    return shlex.join(["dltrain", request.command, *flags, f"sweep.resume={folder}", *again])


def write(request: Request, folder: Path, overrides: Sequence[str]) -> None:
    """Write sweep.json with the typed overrides except those for this start only. The caller holds the lock."""
    for name in ("sweep.json", "results.csv", "report.html"):
        atomic_files.remove_leftovers(folder / name)
    kept = [each for each in overrides if _key(each) in OWN or not _key(each).startswith("sweep.")]
    content = {"format": FORMAT, "command": request.command, "overrides": kept}
    content |= {"cwd": str(Path.cwd()), "dltrain": __version__}
    atomic_files.atomic_write(folder / "sweep.json", (json.dumps(content, indent=2) + "\n").encode())
