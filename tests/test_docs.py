"""The site builds without a warning and without a network, what it says is so, and every command on it works."""

import importlib.util
import json
import os
import pkgutil
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from dltrain.config import registry
from dltrain.runtime import errors, signals
from support import commands
from support.command import Command
from support.tiers import mostly_slow

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
AGENTS = ROOT / "AGENTS.md"
PAGES = [AGENTS, *sorted(path for path in DOCS.rglob("*.md") if commands.lines(path.read_text()))]
BUILD = """
import socket, sys
from sphinx.cmd.build import main
def refuse(*arguments):
    raise OSError("a build must not need the network")
socket.socket.connect = refuse
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run, a sweep, some images, and every file that a page shows."""
    folder = tmp_path_factory.mktemp("docs")
    commands.prepare(folder)
    for page in PAGES:
        commands.write_files(folder, page.read_text())
    return folder


@pytest.fixture
def _modules_forgotten() -> Iterator[None]:
    before, path = set(sys.modules), sys.path[:]
    yield
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if name.startswith("my_"):
            del sys.modules[name]


@pytest.mark.parametrize(
    "page", mostly_slow(PAGES, fast=[AGENTS, *PAGES[1::3]]), ids=lambda page: str(page.relative_to(ROOT))
)
@pytest.mark.usefixtures("_modules_forgotten")
def test_the_commands_of_a_page_compose(dltrain: Command, tmp_path: Path, page: Path) -> None:
    commands.write_files(tmp_path, page.read_text())
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for words in filter(None, map(commands.composed, commands.lines(page.read_text()))):
        result = dltrain(*words)
        assert result.code == 0, f"{words}\n{result.err}"


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
@pytest.mark.usefixtures("_modules_forgotten")
def test_the_commands_of_a_page_work_in_their_order(
    dltrain: Command, finished: Path, tmp_path: Path, page: Path
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    for line in commands.lines(page.read_text()):
        if line.startswith("python "):
            runpy.run_path(line.removeprefix("python "), run_name="__main__")
            continue
        words = commands.quick(line)
        if words[0] == "train" and not {"resume=run", "-m", "--cfg"} & set(words) and "sweep." not in line:
            words += ["epochs=1"] if "data=" in line else ["epochs=1", "data.limit=50"]
        result = dltrain(*words)
        assert result.code == 0, f"{line}\n{result.err}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_of_commands_hold_nothing_that_is_not_run(page: Path) -> None:
    text = page.read_text()
    for line in commands.lines(text):
        assert line.startswith("dltrain ") or line.removeprefix("python ") in commands.files(text), line


def test_the_page_for_coding_assistants_is_one_page_and_has_every_command_and_exit_code() -> None:
    text = AGENTS.read_text()
    assert len(text.encode()) <= 8_192
    assert all(f"dltrain {command}" in text for command in ("train", "eval", "predict", "report", "inspect", "doctor"))
    table = text.partition("## Exit codes")[2].partition("\n## ")[0]
    codes = {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE) for code in row.split(",")}
    kinds = [errors.UserError, *errors.UserError.__subclasses__()]
    raised = {kind.exit_code for kind in kinds if isinstance(getattr(kind, "exit_code", None), int)}
    assert codes == {0} | raised | set(signals.SIGNALS.values())


def test_every_file_and_every_metric_of_a_run_is_explained(finished: Path) -> None:
    explained = set(re.findall(r"`([^`\n]+)`", (DOCS / "reference" / "files.md").read_text()))
    run, sweep = finished / "run", finished / "sweep"
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    names |= {path.name for path in sweep.iterdir() if path.is_file()}
    keys = set(json.loads((run / "summary.json").read_text()))
    for line in (run / "metrics.jsonl").read_text().splitlines():
        keys |= set(json.loads(line))
    folders = {f"{name.partition('/')[0]}/" for name in names if f"{name.partition('/')[0]}/" in explained}
    unexplained = {name for name in names | keys if name not in explained and not name.startswith(tuple(folders))}
    assert not unexplained


def picture_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("architecture_picture", DOCS / "architecture_picture.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_architecture_diagram_shows_the_actual_entries_and_imports() -> None:
    drawn = (DOCS / "architecture.svg").read_text()
    assert drawn == picture_module().picture(), "run python docs/architecture_picture.py"


def walks() -> dict[str, list[str]]:
    """The numbered lines of each walk of docs/architecture.md."""
    text = (DOCS / "architecture.md").read_text().partition("## Four walks")[2].partition("\n## ")[0]
    sections = re.findall(r"^### ([^\n]*)\n(.*?)(?=^### |\Z)", text, re.MULTILINE | re.DOTALL)
    return {title: re.findall(r"^\d+\. (.*)$", body, re.MULTILINE) for title, body in sections}


def test_four_walks_explain_the_code_in_ten_lines_each() -> None:
    assert list(walks()) == ["One batch", "`optim.lr`", "`ckpt=`", "A job of a sweep"]
    assert all(5 <= len(lines) <= 10 for lines in walks().values())


def test_every_module_and_function_of_a_walk_exists() -> None:
    lines = [line for lines in walks().values() for line in lines]
    names = {name for line in lines for name in re.findall(r"`([a-z_]+(?:\.\w+)+)`", line)} - {"results.csv"}
    assert len(names) > 30
    for name in sorted(names):
        found = pkgutil.resolve_name(f"dltrain.{name}")  # raises AttributeError or ImportError
        assert found is not None


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built anew with warnings as errors and no way to a network."""
    for module in ("sphinx", "myst_parser", "furo"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    words = [
        "-W",
        "--keep-going",
        "-n",
        "-q",
        "-b",
        "html",
        "-d",
        str(folder / "trees"),
        str(DOCS),
        str(folder / "html"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", BUILD, *words],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return folder / "html"


def text_of(page: Path) -> str:
    """What a person reads on a page."""
    return unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))


@pytest.mark.slow
def test_the_site_has_every_page(site: Path) -> None:
    pages = {path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md") if "_build" not in path.parts}
    assert pages <= {path.relative_to(site) for path in site.rglob("*.html")}


@pytest.mark.slow
def test_a_page_loads_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        tags = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", page.read_text(encoding="utf-8"))
        assert not [tag for tag in tags if re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag)], page
    for style in site.rglob("*.css"):
        assert not re.search(r"""(?:@import|url\()\s*["']?(?:https?:)?//""", style.read_text(encoding="utf-8")), style


@pytest.mark.slow
def test_links_within_the_site_lead_somewhere(site: Path) -> None:
    anchors = {
        page: set(re.findall(r'\bid="([^"]+)"', page.read_text(encoding="utf-8"))) for page in site.rglob("*.html")
    }
    for page in anchors:
        for link in re.findall(r'<a\b[^>]*\bhref="([^"]+)"', page.read_text(encoding="utf-8")):
            place, _, anchor = unescape(link).partition("#")
            if re.match(r"[a-z]+:", place):
                continue
            target = (page.parent / place).resolve() if place else page
            assert target.exists(), f"{page.relative_to(site)}: {link}"
            assert not anchor or target not in anchors or anchor in anchors[target], f"{page.relative_to(site)}: {link}"


@pytest.mark.slow
def test_the_reference_has_every_option_and_every_default(site: Path) -> None:
    text = text_of(site / "reference" / "groups.html")
    for group in (path for path in (ROOT / "configs").iterdir() if path.is_dir()):
        if group.name in ("experiment", "hydra"):
            continue
        for option in group.glob("*.yaml"):
            assert group.name == "sweep" or f"{group.name}={option.stem}" in text
            values = yaml.safe_load(option.read_text())
            if group.name == "logger":  # a node for each of several options
                values = [f"{option.stem}.{key}" for key in values.get(option.stem, {})]
            for key in values:
                assert f"{group.name}.{key}" in text or key == "name", f"{group.name}.{key}"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "eval", "predict", "export"])
def test_the_reference_has_every_key_of_a_subcommand(site: Path, command: str) -> None:
    cells = set(
        re.findall(
            r'<code[^>]*><span class="pre">([\w.]+)</span></code>', (site / "reference/commands.html").read_text()
        )
    )
    keys = set(yaml.safe_load((ROOT / "configs" / f"{command}.yaml").read_text())) - {"defaults", "data"}
    assert keys <= cells


@pytest.mark.slow
def test_the_reference_has_every_experiment_and_benchmark(site: Path) -> None:
    text = text_of(site / "reference" / "experiments.html")
    assert all(f"experiment={name}" in text for name in registry.options("experiment", [ROOT / "configs"]))
    text = text_of(site / "benchmarks.html")
    assert all(path.name in text for path in (ROOT / "benchmarks").glob("*.py"))


@pytest.mark.slow
def test_the_reference_has_every_exit_code(site: Path) -> None:
    codes = {str(kind.exit_code) for kind in vars(errors).values() if hasattr(kind, "exit_code")}
    codes |= {str(code) for code in signals.SIGNALS.values()} | {"0"}
    cells = re.findall(r"<td><p>([\d, ]+)</p></td>", (site / "reference" / "exit-codes.html").read_text())
    assert {code for cell in cells for code in cell.split(", ")} == codes
