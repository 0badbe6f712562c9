"""Sphinx extension: replace `<!-- NAME -->` in a page by text generated from the code, configs/ and a real run.

So nothing is written twice: keys, types, ranges and meanings are those that dltrain itself checks and shows.
"""

import functools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from dltrain.commands.usage import COMMANDS
from dltrain.config import registry, signatures
from dltrain.config.hints import describe
from dltrain.config.registry import config_folder
from dltrain.config.signatures import Param
from dltrain.runtime import errors
from dltrain.runtime.signals import SIGNALS

ROOT = Path(__file__).parents[1]
PLACE = re.compile(r"^<!-- ([a-z ]+) -->$", re.MULTILINE)
EXAMPLES = (
    "train model=mlp epochs=2 data.limit=200 device=cpu device.threads=1",
    "train -m model=mlp optim.lr=0.05,0.1 epochs=1 data.limit=200 device=cpu device.threads=1",
)


def text(plain: str) -> str:
    """Escape plain text for Markdown, except `code`."""
    parts = plain.split("`")
    parts[::2] = [re.sub(r"([\\*_<>|\[\]#~$])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts).replace("|", "\\|") if len(parts) % 2 else code(plain)


def code(value: object) -> str:
    return f"`{str(value).replace('|', chr(92) + '|')}`"


def shown(value: Any) -> str:
    """Format a default as on the command line."""
    if value == "???":
        return "required"
    return code(yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n..."))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def block(content: str, language: str = "text") -> str:
    return f"```{language}\n{content.rstrip()}\n```\n"


def keys(prefix: str, rules: dict[str, Param], *options: tuple[str, dict[str, Any]]) -> str:
    """Return a table of keys, with one default column per option if the options of a group differ."""

    def default(values: dict[str, Any], key: str) -> str:
        return shown(values[key]) if key in values else "required"

    same = all(len({default(values, key) for _, values in options}) == 1 for key in rules)
    columns = [("default", options[0][1])] if same else [(f"default, {name}", values) for name, values in options]
    rows = [
        [code(prefix + key), text(describe(rule.hint)), *(default(values, key) for _, values in columns),
         text(rule.meaning)]
        for key, rule in rules.items()
    ]  # fmt: skip
    return table(["key", "type", *(name for name, _ in columns), "meaning"], rows)


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def comment(path: Path) -> list[str]:
    """Return the comment at the top of a config file."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines += [] if "@package" in line else [line.removeprefix("#").strip()]
    return lines


def docstring(path: Path) -> str:
    """Return the docstring of a module."""
    match = re.match(r'"""(.*?)"""', path.read_text(encoding="utf-8"), re.DOTALL)
    return match[1] if match else ""


def params(place: tuple[str, str]) -> dict[str, Param]:
    return signatures.builtin(*place).keys


def usage() -> str:
    rows = [[f"[dltrain {name}](#command-{name})", text(usage.summary)] for name, usage in COMMANDS.items()]
    return table(["command", "what it does"], rows)


def commands() -> str:
    """Return a section for each subcommand: what it does, its keys, its groups."""
    parts = []
    for command, usage in COMMANDS.items():
        longest = max(len(line) for line, _ in usage.examples)
        examples = [f"dltrain {line:{longest}}  # {what}" for line, what in usage.examples]
        flags = [[code(what), text(meaning)] for what, meaning in (*usage.takes, *usage.flags)]
        parts += [f"(command-{command})=", f"## dltrain {command}\n", text(usage.summary.capitalize() + ".") + "\n"]
        parts += [block("\n".join(examples)), table(["argument", "meaning"], flags)]
        if command in registry.COMMANDS:
            parts.append(_keys_of(command))
    return "\n".join(parts)


def _keys_of(command: str) -> str:
    source, name, nodes = registry.COMMANDS[command]
    config = read(config_folder() / f"{command}.yaml")
    parts = [keys("", params((source, name)), ("", config))]
    groups = []
    for node, place in nodes.items():
        if (config_folder() / node).is_dir() and place in (None, registry.SHARED.get(node)):
            groups.append(f"[{node}](#group-{node})")
        else:
            assert place is not None, node
            parts.append(keys(f"{node}.", params(place), ("", config.get(node, {}))))
    return "\n".join([*parts, f"Groups: {', '.join(groups)}.\n"])


def groups() -> str:
    """Return a section for each group, with one for each option and its keys."""
    nodes = registry.COMMANDS["train"][2]
    return "\n".join(_group(node, place) for node, place in nodes.items())


def _group(group: str, place: tuple[str, str] | None) -> str:
    options = {path.stem: path for path in sorted((config_folder() / group).glob("*.yaml"))}
    defaults = {key: value for node in read(config_folder() / "train.yaml")["defaults"] if isinstance(node, dict)
             for key, value in node.items()}  # fmt: skip
    parts = [f"(group-{group})=", f"## {group}\n"]
    if place is not None:
        if len(options) > 1:
            rows = [[code(f"{group}={name}"), text(" ".join(comment(path)))] for name, path in options.items()]
            parts += [table(["option", "what it is"], rows), f"The default is `{group}={defaults[group]}`.\n"]
        rules = {key: rule for key, rule in params(place).items() if key != "name"}
        return "\n".join([*parts, keys(f"{group}.", rules, *((name, read(path)) for name, path in options.items()))])
    parts.append(f"The default is `{group}={defaults[group]}`.\n")
    for name, path in options.items():
        signature = registry.signature(group, name)
        several = registry.GROUPS[group].several
        if signature is None and several:
            summary, rules = " ".join(comment(path)), {}
        elif signature is None:  # custom: it has the keys that all options share
            shared = [signatures.builtin(*each) for each in registry.GROUPS[group].shared]
            rules = {key: rule for each in shared for key, rule in each.keys.items()}
            rules = {key: rule for key, rule in rules.items() if key not in registry.GROUPS[group].injected}
            rules = {"name": Param(str, True, "import path of your code"), **rules}
            summary = " ".join(comment(path))
        else:
            summary, rules = signature.summary, signature.keys
        parts += [f"### {group}={name}\n", text(summary) + "\n"]
        prefix, values = (f"{group}.{name}.", read(path).get(name, {})) if several else (f"{group}.", read(path))
        parts.append(keys(prefix, rules, (name, values)) if rules else "It has no keys.\n")
    return "\n".join(parts)


def experiments() -> str:
    """Return a section for each recorded experiment: the comment in its file and what it sets."""
    parts = []
    for name, path in registry.options("experiment", [config_folder()]).items():
        summary, *others = [line for line in comment(path) if line]
        content = "\n".join(line for line in path.read_text(encoding="utf-8").splitlines() if line[:1] != "#")
        notes = [block(line, "bash") if line.startswith("dltrain ") else text(line) + "\n" for line in others]
        parts += [f"## {name}\n", text(summary) + "\n", *notes, block(content.strip(), "yaml")]
    return "\n".join(parts)


def exit_codes() -> str:
    """Return a table of the exit codes, from errors.py and signals.py."""
    rows = [["0", "", "done"]]
    for name, codes, meaning in re.findall(r"(\w+) \(([\d, ]+)\) *(.*)", errors.__doc__ or ""):
        numbers = ", ".join(sorted({str(code) for code in SIGNALS.values()})) if name == "Interrupted" else codes
        assert numbers == codes
        rows.append([codes, code(name), meaning or "anything else"])
    signals = ", ".join(f"{number.name} {exit_code}" for number, exit_code in SIGNALS.items())
    return table(["code", "exception in Python", "meaning"], rows) + f"\nBy signal: {signals}.\n"


@functools.cache
def example() -> tuple[dict[str, str], dict[str, str]]:
    """Run an example run and an example sweep; return the text of each file by name, empty for binary files."""
    with tempfile.TemporaryDirectory() as folder:
        script = "import sys; from dltrain.cli import main; sys.exit(any(main(line.split()) for line in sys.argv[1:]))"
        environment = {key: value for key, value in os.environ.items() if not key.startswith("DLTRAIN_")}
        done = subprocess.run(
            [sys.executable, "-c", script, *EXAMPLES],
            cwd=folder, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"the example of the reference failed:\n{done.stderr}")
        outputs = Path(folder) / "outputs"
        (sweep,) = outputs.glob("sweeps/*/*")
        (run,) = (path for path in outputs.glob("*/*") if path.parent.name != "sweeps")
        return _files(run), _files(sweep)


def _files(folder: Path) -> dict[str, str]:
    texts = {".json", ".jsonl", ".csv", ".yaml", ".log"}
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8") if path.suffix in texts else ""
        for path in paths
    }


def _tree(files: Iterable[str]) -> str:
    return block("\n".join(sorted(files)))


def benchmarks() -> str:
    """Return the docstrings of the benchmark scripts."""
    paths = sorted((ROOT / "benchmarks").glob("*.py"))
    return "\n".join(f"### benchmarks/{path.name}\n\n{block(docstring(path))}" for path in paths)


def modules() -> str:
    """A table for each entry of src/dltrain/, with the first sentence of each module."""
    package = ROOT / "src" / "dltrain"
    parts = []
    for entry in sorted(path for path in package.iterdir() if path.suffix in ("", ".py") and path.name[0] != "_"):
        paths = sorted(entry.rglob("*.py")) if entry.is_dir() else [entry]
        rows = [[code(path.relative_to(package)), text(docstring(path).partition("\n")[0])] for path in paths]
        parts += [f"### {entry.name}\n", table(["module", "what it is"], [row for row in rows if row[1]])]
    return "\n".join(parts)


PARTS: dict[str, Callable[[], str]] = {
    "usage": usage,
    "commands": commands,
    "groups": groups,
    "experiments": experiments,
    "exit codes": exit_codes,
    "example command": lambda: block(f"dltrain {EXAMPLES[0]}", "bash"),
    "example sweep command": lambda: block(f"dltrain {EXAMPLES[1]}", "bash"),
    "files of a run": lambda: _tree(example()[0]),
    "files of a sweep": lambda: _tree(name for name in example()[1] if "/" not in name or name.startswith("0_")),
    "records": lambda: block(example()[0]["metrics.jsonl"], "json"),
    "summary": lambda: block(example()[0]["summary.json"], "json"),
    "config": lambda: block(example()[0][".hydra/config.yaml"], "yaml"),
    "results": lambda: block(example()[1]["results.csv"]),
    "journal": lambda: block(example()[1]["journal.jsonl"], "json"),
    "benchmark scripts": benchmarks,
    "modules": modules,
}


def fill(app: Any, docname: str, source: list[str]) -> None:
    source[0] = PLACE.sub(lambda match: PARTS[match[1]](), source[0])


def outdated(app: Any, env: Any, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    """Always rebuild pages with generated parts: their sources are elsewhere."""
    return [name for name in env.found_docs if PLACE.search(Path(env.doc2path(name)).read_text(encoding="utf-8"))]


def setup(app: Any) -> dict[str, bool]:
    app.connect("source-read", fill)
    app.connect("env-get-outdated", outdated)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
