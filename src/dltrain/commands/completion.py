"""Shell completion: Hydra's candidates, and also subcommands, experiments in sub-folders, values of keys, and runs."""

import contextlib
import io
import itertools
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from dltrain.commands import usage
from dltrain.config import hints, registry, signatures
from dltrain.runtime.folders import newest_first

NOT_HYDRAS = ("--explain", "--json", "--summary", "--show-batch")
MOST_FOLDERS = 20  # no more than can be taken in at a glance
WEIGHTS = (".pt", ".pth")
WITH_RUN = ("eval", "predict", "export")  # commands that take a run as a bare argument
# Shells split at spaces and colons and interpret other characters; Hydra takes a comma for a sweep.
PLAIN = r"[\w./~=+@%-]+"


def candidates(line: str, shell: str, hydra: Callable[[str, list[str]], int]) -> list[str]:
    """Return what may come next on a command line; `hydra` runs a subcommand and prints Hydra's own candidates."""
    _, *arguments = _split(line) or [""]
    current = arguments.pop() if arguments and not line.endswith(" ") else ""
    if not arguments:
        return sorted(command for command in usage.COMMANDS if command.startswith(current))
    command = arguments[0]
    if command not in usage.COMMANDS:
        return []
    if current.startswith("-"):
        flags = ["--help", *(re.split("(?<==)| ", flag)[0] for flag, _ in usage.COMMANDS[command].flags)]
        return sorted(flag for flag in flags if flag.startswith(current))
    if command not in registry.COMMANDS:
        return folders(command, "", current) if command in FOLDERS else []
    key, equals, path = current.lstrip("+").partition("=")
    if equals and key in FOLDERS and (key in _top_level_keys(command) or key.startswith("sweep.")):
        return folders(key, f"{key}=", path)
    if arguments[-1] == "--explain":
        explained = {*registry.COMMANDS[command][2], *(name for name, _ in _keys(command))}
        return sorted(name for name in explained if name.startswith(current))
    folders_typed = _config_folders(arguments)
    output = io.StringIO()
    # Hydra gets neither flags that it does not know nor arguments with spaces; no candidate depends on them.
    others = [each for flag, each in itertools.pairwise(arguments) if flag != "--explain" or each.startswith("-")]
    before = [argument for argument in others if argument not in NOT_HYDRAS and re.fullmatch(PLAIN, argument)]
    os.environ["COMP_LINE"] = " ".join(["dltrain", *before, current])
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(io.StringIO()):
        hydra(command, ["-sc", f"query={shell}", *(f"--config-dir={folder}" for folder in folders_typed)])
    groups = registry.COMMANDS[command][2]
    offered = [each for each in output.getvalue().split() if _belongs(each.lstrip("+~"), groups)]
    if "model" in groups:
        offered += _experiments(current, [registry.config_folder(), *map(Path, folders_typed)])
    runs = ["last", *itertools.islice(_runs("best.pt"), MOST_FOLDERS)] if command in WITH_RUN and current else []
    return sorted({*offered, *values(command, current), *(run for run in runs if run.startswith(current))})


def _experiments(partial: str, configs: Iterable[Path]) -> list[str]:
    """Return `experiment=`, or its options, if they complete an argument; Hydra lists none in a sub-folder."""
    key = "+experiment=" if partial.startswith("+") else "experiment="
    names = registry.options("experiment", configs) if "=" in partial else [""]
    return [key + name for name in names if (key + name).startswith(partial)]


def _split(line: str) -> list[str]:
    """Split a command line as a shell does; only at spaces while a quote is open."""
    try:
        return shlex.split(line)
    except ValueError:  # an open quote
        return line.split()


def in_order(script: str) -> str:
    """Return Hydra's completion script, changed to keep the order of candidates in bash; an old bash sorts them."""
    ordered = re.search(r"complete (-o nospace .*hydra_bash_completion .*)", script)
    return f"{script}complete -o nosort {ordered[1]} 2>/dev/null || true\n" if ordered else script


def folders(what: str, prefix: str, partial: str) -> list[str]:
    """Return runs, sweeps or files that a key or a subcommand takes, newest first; else the content of a folder."""
    matching = (path for path in FOLDERS[what]() if path.startswith(partial))
    shown = [prefix + path for path in itertools.islice(matching, MOST_FOLDERS) if re.fullmatch(PLAIN, path)]
    return shown or [prefix + path for path in _inside(partial) if re.fullmatch(PLAIN, path)]


def _runs(file: str) -> Iterator[str]:
    """Return the runs that have this checkpoint, newest first."""
    return (str(run) for run in newest_first(Path("outputs")) if (run / "checkpoints" / file).is_file())


def _sweeps() -> Iterator[str]:
    return (str(sweep) for sweep in newest_first(Path("outputs", "sweeps")) if (sweep / "sweep.json").is_file())


# The candidates after a key or a subcommand.
FOLDERS: dict[str, Callable[[], Iterable[str]]] = {
    "ckpt": lambda: _runs("best.pt"),
    "resume": lambda: _runs("last.pt"),
    "init": lambda: (f"{run}/checkpoints/best.pt" for run in _runs("best.pt")),
    "sweep.resume": lambda: itertools.chain(["last"] if any(_sweeps()) else [], _sweeps()),
    "inspect": lambda: _runs("best.pt"),
    "report": lambda: map(str, newest_first(Path("outputs"), Path("outputs", "sweeps"))),
}


def _inside(partial: str) -> list[str]:
    """Return the folders and checkpoints whose path begins with the typed text."""
    typed, _, name = partial.rpartition("/")
    with contextlib.suppress(OSError, RuntimeError):
        folder = Path(partial[: len(partial) - len(name)] or ".").expanduser()
        paths = sorted(path for path in folder.iterdir() if path.name.startswith(name))
        paths = [path for path in paths if name or path.name[0] != "."]
        ends = [(path.name, "/" if path.is_dir() else "") for path in paths if path.is_dir() or path.suffix in WEIGHTS]
        return [f"{typed}{'/' * ('/' in partial)}{found}{end}" for found, end in ends[:MOST_FOLDERS]]
    return []


def _belongs(candidate: str, nodes: dict[str, tuple[str, str] | None]) -> bool:
    """True unless Hydra's candidate is a group of another subcommand, or an experiment: Hydra offers all configs."""
    name = candidate.partition("=")[0].partition("/")[0].partition(".")[0]
    if candidate in ("common", "hydra", "hydra/") or name == "experiment":
        return False
    return not (name in (*registry.GROUPS, "device") and name not in nodes) and not (
        name in nodes and "=" in candidate and nodes[name] is not None and name in registry.GROUPS
    )


def _config_folders(arguments: Sequence[str]) -> list[str]:
    """Return the folders that follow --config-dir (or -cd)."""
    joined = [flag.partition("=")[2] for flag in arguments if flag.startswith("--config-dir=")]
    return joined + [value for flag, value in itertools.pairwise(arguments) if flag in ("--config-dir", "-cd")]


def values(command: str, argument: str) -> list[str]:
    """Return completions such as `model.cell=gru` for `model.cell=`, if the key has a fixed list of values."""
    key, equals, partial = argument.lstrip("+").partition("=")
    if not equals:
        return []
    rules = [rule for name, rule in _keys(command) if name == key]
    return [f"{key}={choice}" for rule in rules for choice in hints.choices(rule.hint) if choice.startswith(partial)]


def _options(node: str, place: tuple[str, str] | None) -> list[signatures.Signature]:
    """Return the signatures that a node can have: the options of its group, or the one at `place`."""
    if place is not None:
        return [signatures.builtin(*place)]
    return [option for name in registry.names(node) if (option := registry.signature(node, name)) is not None]


def _top_level_keys(command: str) -> dict[str, signatures.Param]:
    """Return the keys of a subcommand that are in no group."""
    return signatures.builtin(*registry.COMMANDS[command][:2]).keys


def _keys(command: str) -> Iterator[tuple[str, signatures.Param]]:
    """Yield the keys of a subcommand and of all options of its groups."""
    yield from _top_level_keys(command).items()
    for node, place in registry.COMMANDS[command][2].items():
        for option in _options(node, place):
            yield from ((f"{node}.{key}", rule) for key, rule in option.keys.items())
