"""sweep.json: the words a sweep was started with, so that it can go on without typing them again."""

import json
import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from dltrain import __version__
from dltrain.config.overrides import parse_flags, split_argv
from dltrain.config.registry import GROUPS, config_folder, options
from dltrain.runtime import atomic_files, folders, torchrun
from dltrain.runtime.errors import ConfigError, InputError

FORMAT = 1
ADDRESS = "logger.mlflow.tracking_uri"  # to which figures go: never for a file to say
WRITTEN = ("output", "resume")
# Of the sweep's own keys: what it is made of. How it runs is chosen at each start, never by a folder.
OWN = tuple(f"sweep.{key}" for key in ("search", "trials", "metric", "direction", "pruner", "seed"))


@dataclass(frozen=True)
class Request:
    """A sweep as it was typed; where its words are those of the folder it goes on in, `beside` are the keys typed."""

    command: str
    flags: list[str]
    words: list[str]
    folder: Path | None = None
    beside: frozenset[str] | None = None


def parse_request(command: str, argv: list[str]) -> Request:
    """What a command line asks for. Raises InputError or ConfigError for a folder that cannot be gone on with."""
    torchrun.require_single_process("-m")
    flags, words = split_argv([argument for argument in argv if argument != "hydra.mode=MULTIRUN"])
    if {"-m", "--multirun"}.isdisjoint(flags):
        flags.append("-m")
    typed = {_key(word): word.partition("=")[2].strip("'\"") for word in words}
    if (text := typed.get("sweep.resume", "null")) == "null":
        return Request(command, flags, words)
    folder = _found(text)
    path, config_dir = folder / "sweep.json", parse_flags(command, flags).config_dir
    if [word for word in words if not _is_of_start(word)]:
        if path.exists():
            _read(path, command, config_dir)
        return Request(command, flags, words, folder)
    stored = _read(path, command, config_dir)
    before = [word for word in stored if _key(word) not in typed and (_key(word) in OWN or not _is_of_start(word))]
    before += [word for word in stored if _is_kept_output(word, typed)]
    if not {ADDRESS, "logger"} & set(typed) and ADDRESS in map(_key, stored):
        print(f"{ADDRESS} is not taken from {path}: type it again, or MLflow's own default is used")
    for word in stored:  # what is written to is never for a file to say
        if _key(word) in WRITTEN and _key(word) not in typed:
            raise ConfigError(f"{path}: has {word}, which must be typed. Type it again, if it is right: '{word}'")
    return Request(command, flags, before + words, folder, frozenset(typed))


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


def _is_of_start(word: str) -> bool:
    """Whether a word says how a sweep runs or what its jobs write, or is none: typed beside a file's words."""
    key = _key(word)
    return (
        word.startswith("-") or key.startswith(("sweep", "hydra")) or key in ("trust", *WRITTEN) or _is_of_output(key)
    )


def _is_kept_output(word: str, typed: Collection[str]) -> bool:
    """Whether a word of a file says what jobs write, and no word that is typed says otherwise."""
    key = _key(word)
    return _is_of_output(key) and key not in (*typed, ADDRESS) and not (key.startswith("logger") and "logger" in typed)


def _is_of_output(key: str) -> bool:
    return key == "report" or key.partition(".")[0] == "logger"


def _found(text: str) -> Path:
    if text == "last":
        sweeps = folders.newest_first(Path("outputs", "sweeps"))
        if not sweeps:
            raise InputError("sweep.resume=last: there is no sweep in outputs/sweeps. Give its folder")
        return sweeps[0]
    folder = folders.expand_user(text)
    if not folder.is_dir():
        raise InputError(f"sweep.resume={text}: no such folder")
    return folder


def _read(path: Path, command: str, config_dir: str | None) -> list[str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        words = [_moved(str(word), config_dir) for word in content["overrides"]]
        cwd = Path(content.get("cwd", "."))
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = "is not there" if isinstance(error, FileNotFoundError) else "cannot be read"
        raise InputError(f"{path}: {reason}. Type the words of the sweep again, with sweep.resume") from error
    if content.get("command") != command:
        raise ConfigError(f"sweep.resume={path.parent}: is no sweep of dltrain {command}")
    for word in words:
        if "@" in word.partition("=")[0]:
            raise InputError(f"{path}: {word} puts an option elsewhere. Type the words of the sweep again")
        option = word.partition("=")[2].strip("'\"")
        if _key(word) in (*GROUPS, "device", "sweep", "experiment") and (option[:1] in "/~" or ".." in option):
            raise InputError(f"{path}: {word} leads out of the folders with configs. Type the words of the sweep again")
    if cwd != Path() and cwd != Path.cwd():
        print(f"{path.parent} was started in {cwd}; paths in its words now begin in this folder")
    return words


def _moved(word: str, config_dir: str | None) -> str:
    """Return an override with the name of an experiment that moved to textbook/ after the sweep began."""
    key, equals, value = word.partition("=")
    if _key(word) != "experiment":
        return word
    names = options("experiment", [config_folder(), *([Path(config_dir)] if config_dir else [])])

    def moved(name: str) -> str:
        return f"textbook/{name}" if name not in names and f"textbook/{name}" in names else name

    return key + equals + re.sub(r"""[^,'"()\[\] ]+""", lambda match: moved(match[0]), value)


def command_to_resume(request: Request, folder: Path, words: Sequence[str], trusted: Collection[str] = ()) -> str:
    """What is typed to go on in a sweep's folder: with the words and flags that are never taken from there.

    `trusted` are the packages of a person's own code that its jobs run.
    """
    flags = [flag for flag in request.flags if flag not in ("-m", "--multirun")]
    again = [word for word in words if _key(word) in (*WRITTEN, ADDRESS, "trust")]
    if trusted and "trust" not in map(_key, again):
        again.append(f"trust=[{','.join(sorted(trusted))}]")
    return shlex.join(["dltrain", request.command, *flags, f"sweep.resume={folder}", *again])


def write(request: Request, folder: Path, words: Sequence[str]) -> None:
    """Write sweep.json: `words` as they were typed, without those that are about this start alone. Needs the lock."""
    for name in ("sweep.json", "results.csv", "report.html"):
        atomic_files.remove_leftovers(folder / name)
    kept = [word for word in words if _key(word) in OWN or not _key(word).startswith("sweep.")]
    content = {"format": FORMAT, "command": request.command, "overrides": kept}
    content |= {"cwd": str(Path.cwd()), "dltrain": __version__}
    atomic_files.atomic_write(folder / "sweep.json", (json.dumps(content, indent=2) + "\n").encode())
