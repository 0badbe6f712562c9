"""`dltrain list`: every option of every group with one line each, read from the sources and the YAML files."""

from pathlib import Path

from dltrain import schema

GROUPS = ("model", "data", "optim", "schedule", "task", "device", "experiment")


def lines(configs: Path) -> list[str]:
    """The list, aligned, a heading for each group."""
    found = []
    for group in GROUPS:
        options = {path.stem: path for path in sorted((configs / group).glob("*.yaml"))}
        found.append(f"{group}:")
        width = max((len(name) for name in options), default=0)
        found += [f"  {name:<{width}}  {_summary(group, name, path)}" for name, path in options.items()]
    return found


def _summary(group: str, name: str, path: Path) -> str:
    """First line of the docstring behind an option, else the comment its file begins with."""
    if group in schema.GROUPS and (option := schema.signature(group, name)):
        return option.summary
    first = path.read_text(encoding="utf-8").splitlines()
    comments = [line.lstrip("# ") for line in first if line.startswith("# ") and "@package" not in line]
    return comments[0] if comments else ""
