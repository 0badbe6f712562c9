"""The house stays as it is drawn: who imports whom, how long a module is, and a tree in the README that is true."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "dltrain"
MODULES = sorted(path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))

# From roof to ground: a module imports only from layers below its own (and within data/, sweeps/ from its own folder).
LAYERS = [
    {"__main__"},
    {"cli"},
    {"listing", "completion", "diagnosis", "inspection", "manual", "explanation", "preview"},
    {"sweeps"},
    {"jobs"},
    {"composition"},
    {"editor_schema"},
    {"origins", "catalogue"},
    {"guard", "words"},
    {"prediction", "export", "summary"},
    {"evaluation", "run"},
    {"ending"},
    {"output", "preparation"},
    {"snapshot", "weights"},
    {"analysis", "build", "confusion", "start", "stored", "trackers", "tta"},
    {
        "console",
        "report",
        "records",
        "checkpoint",
        "progress",
        "agreement",
        "nonfinite",
        "onnx_graph",
        "data",
        "models",
        "optim",
        "schedules",
    },
    {"engine"},
    {"averages"},
    {"step"},
    {"distributed", "placement"},
    {"runtime", "tasks", "compiler", "muon"},
    {"folders", "durable", "archive", "form", "schema", "settings", "startup"},
    {"signatures", "stopping"},
    {"hints", "fault", "pickled", "usage", "terminal", "sparkline", "launch"},
    {"errors", "dotted", "__init__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports(module: Path) -> set[str]:
    """Full names of the modules that a module imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / module).with_suffix(".py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def own(names: set[str]) -> set[str]:
    """The first part below dltrain of those that are dltrain's."""
    parts = {name.split(".")[1] for name in names if name.startswith("dltrain.")}
    return {part for part in parts if part in LEVEL}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_go_down_only(module: Path) -> None:
    layer = module.parts[0]
    for used in own(imports(module)) - {layer}:
        assert LEVEL[used] > LEVEL[layer], f"{module} imports {used}, which is not below it"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_hydra_is_imported_where_configs_are_composed_alone(module: Path) -> None:
    used = {name.split(".")[0] for name in imports(module)}
    if module.parts[0] not in ("composition", "guard", "words", "diagnosis", "preview", "sweeps"):
        assert not used & {"hydra", "omegaconf"}


@pytest.mark.parametrize("module", [module for module in MODULES if module.parts[0] == "models"], ids=str)
def test_a_model_imports_torch_and_annotated_types_alone(module: Path) -> None:
    standard = {"math", "itertools", "typing", "functools", "difflib", "collections", "contextlib", "re"}
    wrapped = {"torchvision"} if module.name == "torchvision" else set()
    assert {name.split(".")[0] for name in imports(module)} <= {"torch", "annotated_types"} | wrapped | standard


@pytest.mark.parametrize(
    "module",
    [
        "cli",
        "composition",
        "diagnosis",
        "schema",
        "fault",
        "words",
        "signatures",
        "hints",
        "settings",
        "listing",
        "inspection",
        "completion",
        "manual",
        "explanation",
        "preview",
        "editor_schema",
        "origins",
        "catalogue",
        "usage",
        "terminal",
        "folders",
        "launch",
        "durable",
        "archive",
        "pickled",
        "startup",
        "stopping",
        "trackers/tracked",
        "trackers/lines",
    ],
)
def test_what_answers_without_torch_does_not_import_it_at_the_top(module: str) -> None:
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    top = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    top |= {node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert not {name.split(".")[0] for name in top} & {"torch", "torchvision", "sklearn", "numpy"}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_no_module_is_long(module: Path) -> None:
    assert len((PACKAGE / module).with_suffix(".py").read_text().splitlines()) <= 250


def test_every_module_is_placed_in_a_layer() -> None:
    assert {module.parts[0] for module in MODULES} == set(LEVEL)


def test_the_readme_tree_names_what_is_there_and_nothing_else() -> None:
    text = (ROOT / "README.md").read_text()
    tree = re.search(r"```text\n(pyproject\.toml.*?)```", text, re.DOTALL)
    assert tree is not None
    named = set()
    stack: list[str] = []
    for line in tree[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        stack = stack[:depth]
        for word in line.split("  #")[0].split():
            named.add("".join([*stack, word]))
        if line.split("  #")[0].strip().endswith("/"):
            stack.append(line.split("  #")[0].strip())
    missing = {name for name in named if not (ROOT / name).exists()}
    assert not missing
    files = {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
    assert files <= named, f"not in the tree: {sorted(files - named)}"
