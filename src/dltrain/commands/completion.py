"""Shell completion: what Hydra offers, subcommands in front, the values of keys, and runs where one is asked for."""

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

NOT_HYDRAS = ("--explain", "--json", "--summary")
MOST_FOLDERS = 20  # as many as a person looks through
WEIGHTS = (".pt", ".pth")
# Shells split words at blanks and colons, and read more into the other signs; Hydra takes a comma for a sweep.
PLAIN = r"[\w./~=+@%-]+"


def candidates(line: str, shell: str, hydra: Callable[[str, list[str]], int]) -> list[str]:
    """Words that may follow a command line; `hydra` runs a subcommand with arguments and prints Hydra's own answer."""
    _, *words = _split(line) or [""]
    current = words.pop() if words and not line.endswith(" ") else ""
    if not words:
        return sorted(command for command in usage.COMMANDS if command.startswith(current))
    command = words[0]
    if command not in usage.COMMANDS:
        return []
    if current.startswith("-"):
        flags = ["--help", *(flag.split()[0] for flag, _ in usage.COMMANDS[command].flags)]
        return sorted(flag for flag in flags if flag.startswith(current))
    if command not in registry.COMMANDS:
        return folders(command, "", current) if command in FOLDERS else []
    key, equals, path = current.lstrip("+").partition("=")
    if equals and key in FOLDERS and (key in _own_keys(command) or key.startswith("sweep.")):
        return folders(key, f"{key}=", path)
    if words[-1] == "--explain":
        return [word for word in _keys(command) if word.startswith(current)]
    flags = [f"--config-dir={folder}" for folder in _config_folders(words)]
    output = io.StringIO()
    # Flags that Hydra has not, and what it cannot part at blanks, say nothing about what may follow.
    others = [word for flag, word in itertools.pairwise(words) if flag != "--explain" or word.startswith("-")]
    before = [word for word in others if word not in NOT_HYDRAS and re.fullmatch(PLAIN, word)]
    os.environ["COMP_LINE"] = " ".join(["dltrain", *before, current])
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(io.StringIO()):
        hydra(command, ["-sc", f"query={shell}", *flags])
    own = registry.COMMANDS[command][2]
    offered = [word for word in output.getvalue().split() if _belongs(word.lstrip("+~"), own)]
    return sorted({*offered, *values(command, current)})


def _split(line: str) -> list[str]:
    """The words of a command line as a shell parts them."""
    try:
        return shlex.split(line)
    except ValueError:  # within quotes
        return line.split()


def in_order(script: str) -> str:
    """Hydra's script for a shell, which in bash then leaves the words in their order; an old bash cannot, and sorts."""
    ordered = re.search(r"complete (-o nospace .*hydra_bash_completion .*)", script)
    return f"{script}complete -o nosort {ordered[1]} 2>/dev/null || true\n" if ordered else script


def folders(what: str, prefix: str, partial: str) -> list[str]:
    """Runs, sweeps or files that a key or a subcommand takes, the newest first; else what lies in a folder typed."""
    found = (path for path in FOLDERS[what]() if path.startswith(partial))
    shown = [prefix + path for path in itertools.islice(found, MOST_FOLDERS) if re.fullmatch(PLAIN, path)]
    return shown or [prefix + path for path in _inside(partial) if re.fullmatch(PLAIN, path)]


def _runs(*files: str) -> Iterator[str]:
    """Runs that have one of these files."""
    return (
        str(run)
        for run in newest_first(Path("outputs"))
        if any((run / "checkpoints" / file).is_file() for file in files)
    )


def _sweeps() -> Iterator[str]:
    return (str(sweep) for sweep in newest_first(Path("outputs", "sweeps")) if (sweep / "sweep.json").is_file())


def _all() -> Iterator[str]:
    """Runs and sweeps together."""
    return map(str, newest_first(Path("outputs"), Path("outputs", "sweeps")))


# What is offered behind a key or a subcommand.
FOLDERS: dict[str, Callable[[], Iterable[str]]] = {
    "ckpt": lambda: _runs("best.pt"),
    "resume": lambda: _runs("last.pt"),
    "init": lambda: (f"{run}/checkpoints/best.pt" for run in _runs("best.pt")),
    "sweep.resume": lambda: itertools.chain(["last"] if any(_sweeps()) else [], _sweeps()),
    "inspect": lambda: _runs("best.pt"),
    "report": _all,
}


def _inside(partial: str) -> list[str]:
    """Folders and checkpoints whose path begins as it is typed."""
    typed, _, name = partial.rpartition("/")
    with contextlib.suppress(OSError, RuntimeError):
        folder = Path(partial[: len(partial) - len(name)] or ".").expanduser()
        own = sorted(path for path in folder.iterdir() if path.name.startswith(name) and (name or path.name[0] != "."))
        ends = [(path.name, "/" if path.is_dir() else "") for path in own if path.is_dir() or path.suffix in WEIGHTS]
        return [f"{typed}{'/' * ('/' in partial)}{each}{end}" for each, end in ends[:MOST_FOLDERS]]
    return []


def _belongs(word: str, nodes: dict[str, tuple[str, str] | None]) -> bool:
    """Whether a word is not a group of another subcommand; Hydra offers every folder of configs/."""
    if word in ("common", "hydra", "hydra/"):
        return False
    name = word.partition("=")[0].partition("/")[0].partition(".")[0]
    if name == "experiment":
        return "model" in nodes
    return not (name in (*registry.GROUPS, "device") and name not in nodes) and not (
        name in nodes and "=" in word and nodes[name] is not None and name in registry.GROUPS
    )


def _config_folders(words: Sequence[str]) -> list[str]:
    """What --config-dir (or -cd) names on the line."""
    found = [word.partition("=")[2] for word in words if word.startswith("--config-dir=")]
    following = itertools.pairwise(words)
    return found + [value for flag, value in following if flag in ("--config-dir", "-cd")]


def values(command: str, word: str) -> list[str]:
    """`model.cell=` and the like to `model.cell=gru` …, where the values can be counted."""
    key, equals, partial = word.lstrip("+").partition("=")
    if not equals:
        return []
    source, name, nodes = registry.COMMANDS[command]
    node, dot, last = key.partition(".")
    places: list[signatures.Signature] = []
    if not dot:
        places, last = [signatures.builtin(source, name)], key
    elif node in nodes:
        places = _options(node, nodes[node])
    rules = [place.keys[last] for place in places if last in place.keys]
    return [f"{key}={choice}" for rule in rules for choice in hints.choices(rule.hint) if choice.startswith(partial)]


def _options(node: str, place: tuple[str, str] | None) -> list[signatures.Signature]:
    """What a node can hold: the options of its group, or the one that is at `place`."""
    if place is not None:
        return [signatures.builtin(*place)]
    return [option for name in registry.names(node) if (option := registry.signature(node, name)) is not None]


def _own_keys(command: str) -> dict[str, signatures.Param]:
    """Keys of a subcommand outside the groups."""
    return signatures.builtin(*registry.COMMANDS[command][:2]).keys


def _keys(command: str) -> list[str]:
    """What --explain can be asked for: keys of a subcommand and of all options, and groups."""
    found = {*_own_keys(command), *registry.COMMANDS[command][2]}
    for node, place in registry.COMMANDS[command][2].items():
        found |= {f"{node}.{key}" for option in _options(node, place) for key in option.keys}
    return sorted(found)
