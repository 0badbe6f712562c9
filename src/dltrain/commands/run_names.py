"""Runs by name on a command line: `last`, a path or a part of one, as bare arguments and as values of keys."""

import csv
import itertools
import json
import math
import os
import re
import sys
from pathlib import Path
from typing import Any

from dltrain.config.overrides import VALUE_FLAGS
from dltrain.runtime.errors import ConfigError, InputError, printable
from dltrain.runtime.folders import find_run

# The keys that bare arguments of a command stand for.
BARE = {"resume": ("resume",), "eval": ("ckpt",), "predict": ("ckpt", "input"), "export": ("ckpt",)}
KEYS = ("ckpt", "resume", "init", "sweep.resume")
OF_JOB = ("ckpt", "init", "inspect")  # keys and commands for which a sweep stands for its best job
VALUE_FOLLOWS = {*VALUE_FLAGS, "--explain", "-o", "--output", "--columns"}
SWEEP = "sweep.json"
OF_SWEEP = ("sweep.", "trust=", "logger", "report=", "hydra.")  # what may be set when a sweep is resumed


def expand(command: str, arguments: list[str]) -> tuple[str, list[str]]:
    """Return a command line with the paths of runs in place of their names, `resume NAME` as `train resume=PATH`.

    Raises InputError for a bare argument that names neither a file nor a run, ConfigError for what cannot be resumed.
    """
    if command == "train":
        return command, list(map(_expanded, arguments))
    pairs = zip(["", *arguments], arguments, strict=False)
    is_bare = [not (it[:1] == "-" or before in VALUE_FOLLOWS or _is_override(it)) for before, it in pairs]
    if command in ("inspect", "report"):
        return command, [_found(it, command) if name else it for it, name in zip(arguments, is_bare, strict=True)]
    bare = list(itertools.compress(arguments, is_bare))
    expanded = [it if it in bare else _expanded(it) for it in arguments]
    if command == "resume" and {"-m", "--multirun"} & set(arguments):
        raise ConfigError("-m: resume continues one run or one sweep. Leave it out")
    free = [key for key in BARE.get(command, ()) if key not in {it.partition("=")[0] for it in arguments}]
    left = ["last"] if command == "resume" and free and not bare else bare
    for key in free:
        names = left if command == "eval" or key == "input" else left[:1]
        if names:
            value = ",".join(_quoted(name if key == "input" else _run(name, key, command)) for name in names)
            for name in bare and names:
                expanded.remove(name)
            expanded.append(_of_sweep(key, f"[{value}]" if names[1:] else value))
            left = left[len(names) :]
    if bare and not free and (left[0] == "last" or os.path.exists(left[0])):  # noqa: PTH110  (of any length)
        raise ConfigError(f"{left[0]}: {' and '.join(f'{key}=' for key in BARE[command])} set already. Leave one out")
    if command == "resume":
        sweep = next((it.partition("=")[2].strip("'") for it in expanded if it.startswith("sweep.resume=")), None)
        command = _read(Path(sweep)).get("command", "train") if sweep else "train"
        for override in expanded if sweep else ():
            if override[:1] != "-" and not override.startswith(OF_SWEEP):
                raise ConfigError(f"{override}: {sweep} is a sweep, whose jobs keep their config. Name a run instead")
    return command, expanded


def find_checkpoint(name: str | Path) -> Path:
    """Return the run or file that a name means, for a sweep its best job. Raises InputError."""
    return best_job(path) if ((path := find_run(name)) / SWEEP).is_file() else path


def best_job(sweep: Path) -> Path:
    """Return the folder of a sweep's best job, by its results.csv. Raises InputError."""
    from dltrain.report.run_rows import metric  # its imports take time, and few command lines need it

    typed = {key: value for key, _, value in (str(it).partition("=") for it in _read(sweep).get("overrides", ()))}
    try:
        with (sweep / "results.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        values = [{key: float(it) for key, it in row.items() if it and key[:4] in ("val_", "test")} for row in rows]
        by = metric(values, typed.get("sweep.metric"), typed.get("sweep.direction"), typed.get("metric"))
        best = min(range(len(rows)), key=lambda index: by.key(values[index]))
        if by.key(values[best]) < math.inf:
            return sweep / Path(rows[best]["folder"]).name
    except (OSError, ValueError, LookupError, AttributeError) as error:
        raise InputError(f"{sweep}: has no results that can be read. Give the folder of a job") from error
    raise InputError(f"{sweep}: none of its jobs has a result yet. Give the folder of a job")


def _read(sweep: Path) -> dict[str, Any]:
    try:
        content = json.loads((sweep / SWEEP).read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError):  # reported by whatever reads the sweep next
        return {}


def _quoted(path: str) -> str:
    """Return a path as Hydra reads it as one text; a plain one stays as it is."""
    return path if re.fullmatch(r"[\w./~-]+", path) else "'{}'".format(path.replace("'", "\\'"))


def _is_override(argument: str) -> bool:
    """True for KEY=VALUE, and not for a path that contains an equals sign."""
    key, equals, _ = argument.partition("=")
    return bool(equals) and "/" not in key and not os.path.exists(argument)  # noqa: PTH110  (of any length)


def _expanded(override: str) -> str:
    """Return an override with paths in place of the names in its value, which may be a list."""
    key, _, value = override.partition("=")
    if key not in KEYS or not value or override == "sweep.resume=last":
        return override
    if os.path.exists(value.strip("'\"")):  # noqa: PTH110  (of any length)
        return _of_sweep(key, value if value[0] in "'\"" else _quoted(value))
    return _of_sweep(key, re.sub(r"""[^,\[\]'"]+""", lambda match: _found(match[0], key), value))


def _run(name: str, key: str, command: str) -> str:
    """Return the path of the file, run or sweep that a bare argument names. Raises InputError."""
    path = Path(_found(name, key))
    if path.is_file() or any((path / it).exists() for it in ("checkpoints", "best.pt", "last.pt", SWEEP)):
        return str(path)
    problem = "is not a run" if path.exists() else "no such file, and no run in outputs/ has this in its name"
    order = ". The run comes first: dltrain predict RUN IMAGE …" * (command == "predict")
    raise InputError(f"{name}: {problem}{order}")


def _of_sweep(key: str, value: str) -> str:
    """Return `key=value`, but `sweep.resume` as the key to resume a sweep."""
    is_sweep = key == "resume" and Path(value.strip("'"), SWEEP).is_file()
    return f"sweep.resume={value}" if is_sweep else f"{key}={value}"


def _found(name: str, key: str) -> str:
    """Return the path that a name means to a key or a command; show it if it is another."""
    path = find_checkpoint(name) if key in OF_JOB else find_run(name)
    if not path.exists() or name == str(path) or Path(name).expanduser() == path:
        return name
    print(printable(f"{name}: {path}"), file=sys.stderr)
    return str(path)
