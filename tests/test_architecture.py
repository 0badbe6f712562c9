"""The source tree keeps its layout: twelve entries, imports between them go one way, none of them in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "dltrain"
MODULES = {
    ".".join(["dltrain", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# Which entries of src/dltrain/ each entry may import, anywhere: inside functions and under TYPE_CHECKING too.
ARROWS = {
    "cli": {"commands", "config", "report", "runtime", "sweeps"},
    "sweeps": {"commands", "config", "data", "report", "runtime", "training"},
    "commands": {"checkpoints", "config", "data", "engine", "optim", "report", "runtime", "training"},
    "training": {"checkpoints", "config", "data", "engine", "optim", "report", "runtime"},
    "report": {"config", "data", "engine", "runtime"},
    "checkpoints": {"config", "runtime"},
    "engine": {"optim", "runtime"},
    "optim": {"runtime"},
    "data": {"runtime"},
    "config": {"runtime"},
    "models": set(),
    "runtime": set(),
}

# Imported by help, lists, completion and mistakes, which answer before torch could be imported.
WITHOUT_TORCH = (
    "cli",
    "config",
    "runtime.errors",
    "runtime.folders",
    "runtime.signals",
    "runtime.torchrun",
    "runtime.terminal",
    "runtime.atomic_files",
    "runtime.startup",
    "runtime.system_info",
    "checkpoints.archive",
    "checkpoints.pickle_reader",
    "commands.completion",
    "commands.explanation",
    "commands.help_pages",
    "commands.inspection",
    "commands.jobs",
    "commands.json_schema",
    "commands.listing",
    "commands.usage",
    "report.trackers",
    "sweeps.comparison",
    "sweeps.journal",
    "sweeps.plan",
    "sweeps.sweep",
    "sweeps.sweep_file",
    "sweeps.executors.select",
)


def imported(tree: ast.Module, *, top_only: bool = False) -> set[str]:
    """Full names of everything that a module imports, `package.module.name` cut to the module where it is ours."""
    names = set()
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                names.add(full if full in MODULES else node.module)
    return names


def trees() -> dict[str, ast.Module]:
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def entry(name: str) -> str:
    """The entry of src/dltrain/ that a module belongs to; empty for dltrain itself and for other packages."""
    parts = name.split(".")
    return parts[1] if parts[0] == "dltrain" and len(parts) > 1 else ""


def test_the_package_has_the_twelve_entries_of_the_table_and_nothing_else() -> None:
    found = {path.name.removesuffix(".py") for path in PACKAGE.iterdir()}
    assert found - {"__init__", "__main__", "__pycache__"} == set(ARROWS)


def test_entries_import_only_those_that_the_table_allows() -> None:
    wrong = [
        f"{name} imports {used}"
        for name, tree in trees().items()
        if entry(name) in ARROWS
        for used in imported(tree)
        if entry(used) in ARROWS and entry(used) not in {entry(name), *ARROWS[entry(name)]}
    ]
    assert not wrong, wrong


def test_the_table_has_no_circle_and_no_arrow_that_nothing_uses() -> None:
    tuple(TopologicalSorter(ARROWS).static_order())  # raises CycleError
    used: dict[str, set[str]] = {name: set() for name in ARROWS}
    for name, tree in trees().items():
        if entry(name) in ARROWS:
            used[entry(name)] |= {entry(other) for other in imported(tree)} & set(ARROWS) - {entry(name)}
    assert used == ARROWS


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name: {used for used in imported(tree) if used in MODULES} - {name} for name, tree in trees().items()}
    tuple(TopologicalSorter(graph).static_order())


def test_only_config_and_sweeps_import_hydra() -> None:
    users = {
        entry(name)
        for name, tree in trees().items()
        if {it.split(".")[0] for it in imported(tree)} & {"hydra", "omegaconf"}
    }
    assert users == {"config", "sweeps"}


def test_a_model_imports_only_torch_and_annotated_types() -> None:
    standard = {"math", "itertools", "typing", "functools", "difflib", "collections", "contextlib", "re"}
    for name, tree in trees().items():
        if entry(name) == "models":
            allowed = {"torch", "annotated_types", *standard} | (
                {"torchvision"} if name.endswith(".torchvision") else set()
            )
            assert {used.split(".")[0] for used in imported(tree)} <= allowed, name


def test_packages_that_answer_without_torch_do_not_import_it_at_the_top() -> None:
    places = tuple(f"dltrain.{name}" for name in WITHOUT_TORCH)
    parsed = trees()
    assert all(any(name == place or name.startswith(f"{place}.") for name in parsed) for place in places)
    for name, tree in parsed.items():
        if any(name == place or name.startswith(f"{place}.") for place in places):
            heavy = {used.split(".")[0] for used in imported(tree, top_only=True)} & {"torch", "torchvision", "numpy"}
            assert not heavy, f"{name} imports {heavy} at the top"


def test_no_module_is_longer_than_four_hundred_lines() -> None:
    long = [name for name, path in MODULES.items() if len(path.read_text(encoding="utf-8").splitlines()) > 400]
    assert not long, long
