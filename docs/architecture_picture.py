"""Draws docs/architecture.svg: the entries of src/dltrain/ in floors, and the imports between them.

python docs/architecture_picture.py

Entries and arrows are the table ARROWS of tests/test_architecture.py. An arrow that others imply is left out.
"""

import ast
import itertools
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGET = Path(__file__).with_name("architecture.svg")
MEANINGS = {
    "cli": "subcommands, exit codes",
    "sweeps": "many runs: plan, schedule",
    "commands": "what each subcommand does",
    "training": "one run: setup, loop, resume",
    "report": "console, run files, pages",
    "checkpoints": "the file format",
    "engine": "fit, evaluate, predict",
    "config": "command line and YAML",
    "data": "data sets, loader",
    "optim": "loss, step, optimizers",
    "models": "networks; import only torch",
    "runtime": "device, processes, files",
}
CORE = {"cli", "training", "engine", "data", "optim", "models"}  # the way of a batch: to be read first
COLUMNS = {1: (450,), 2: (150, 750), 3: (150, 450, 750)}  # centres of the boxes of a floor, by how many there are
WIDTH, TOP, BOX_WIDTH, BOX_HEIGHT, FLOOR = 900, 30, 200, 42, 76
# All are readable on white and on black; the letters in a box are white.
BLUE, GREY, LINE = "#1f6feb", "#57606a", "#768390"


def arrows() -> dict[str, set[str]]:
    """Return ARROWS as it is written in the test. Raises LookupError if it is not there."""
    tree = ast.parse((ROOT / "tests" / "test_architecture.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["ARROWS"]:
            table: dict[str, set[str]] = ast.literal_eval(node.value)
            return table
    raise LookupError("ARROWS")


def reachable(name: str, table: dict[str, set[str]]) -> set[str]:
    """Return all entries that an entry imports, directly or through others."""
    return table[name].union(*(reachable(used, table) for used in table[name]))


def floors(table: dict[str, set[str]]) -> list[list[str]]:
    """Return the entries by floor, the highest first: one above the highest entry that it imports."""

    def level(name: str) -> int:
        return max((level(used) + 1 for used in table[name]), default=0)

    order = sorted(table, key=lambda name: (-level(name), name))
    return [list(names) for _, names in itertools.groupby(order, level)]


def picture() -> str:
    """Return the whole drawing."""
    table = arrows()
    places = {
        name: (x, TOP + FLOOR * row)
        for row, names in enumerate(floors(table))
        for x, name in zip(COLUMNS[len(names)], names, strict=True)
    }
    lines, boxes = [], []
    for name, (x, y) in places.items():
        implied = set().union(*(reachable(used, table) for used in table[name]))
        for used in sorted(table[name] - implied):
            below, y_below = places[used]
            aside = 60 * ((below > x) - (below < x))  # an arrow to the side leaves and arrives nearer to it
            ends = f"M{x + aside} {y + BOX_HEIGHT}L{below - aside} {y_below - 2}"
            lines.append(f'<path d="{ends}" marker-end="url(#arrow)"/>')
        title = f"{name}.py" if (ROOT / "src" / "dltrain" / f"{name}.py").exists() else f"{name}/"
        boxes.append(
            f'<rect x="{x - BOX_WIDTH // 2}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6" '
            f'fill="{BLUE if name in CORE else GREY}"/>'
            f'<text x="{x}" y="{y + 17}" class="name">{title}</text>'
            f'<text x="{x}" y="{y + 33}">{escape(MEANINGS[name])}</text>'
        )
    height = TOP + FLOOR * len(floors(table)) - FLOOR + BOX_HEIGHT + 10
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">'
        "<title>The twelve entries of src/dltrain; an arrow means: imports</title>"
        "<style>text{font:12px system-ui,sans-serif;fill:#fff;text-anchor:middle}"
        ".name{font:bold 13px ui-monospace,Menlo,Consolas,monospace}"
        f".side{{fill:{LINE};text-anchor:start}}path{{stroke:{LINE};stroke-width:1.5;fill:none}}</style>"
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<polygon points="0 0 8 4 0 8" fill="{LINE}"/></marker></defs>'
        '<text x="10" y="16" class="side">An arrow means: imports. Blue: the way of a batch, to be read first.</text>'
    )
    return "\n".join([head, *lines, *boxes, "</svg>\n"])


if __name__ == "__main__":
    TARGET.write_text(picture(), encoding="utf-8")
