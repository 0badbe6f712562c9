"""Draws docs/architecture.svg: the layers of tests/test_architecture.py, and the way of one run down through them.

python docs/architecture_picture.py
"""

import ast
import itertools
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "dltrain"
TARGET = Path(__file__).with_name("architecture.svg")
WAY = ("cli", "jobs", "run", "snapshot", "build", "engine", "step", "runtime")  # of one run
SIDES = {  # what is said beside the layer that has the module
    "cli": "command line",
    "listing": "short answers",
    "sweeps": "many runs",
    "jobs": "one job",
    "composition": "Hydra",
    "run": "one subcommand",
    "snapshot": "parts of a run",
    "build": "config to objects",
    "models": "parts",
    "engine": "the loop",
    "step": "one step",
    "runtime": "device, loss",
    "schema": "rules, files",
}
WIDTH, TOP, LINE, HEIGHT, GAP = 900, 30, 36, 24, 8
FIRST, REST = 170, 300  # where the way of a run and the other modules begin
# Both are readable on white and on black; letters on them are white.
OF_WAY, OTHER, SIDE = "#1f6feb", "#57606a", "#768390"


def layers() -> list[set[str]]:
    """LAYERS as it stands in the test, which is not run for it."""
    tree = ast.parse((ROOT / "tests" / "test_architecture.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(it) for it in node.targets] == ["LAYERS"]:
            found: list[set[str]] = ast.literal_eval(node.value)
            return found
    raise LookupError("LAYERS")


def imported(module: str) -> set[str]:
    """Modules of dltrain that a module imports, wherever in it."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "dltrain":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dltrain."):
            names.add(str(node.module).split(".")[1])
    return names


def chip(x: float, y: float, name: str, color: str) -> tuple[str, float]:
    """A module as a box, and how wide it is."""
    word = f"{name}/" if (PACKAGE / name).is_dir() else name
    width = 7.3 * len(word) + 16
    box = f'<rect x="{x:g}" y="{y:g}" width="{width:.0f}" height="{HEIGHT}" rx="5" fill="{color}"/>'
    label = f'<text x="{x + 8:g}" y="{y + 16:g}" class="module">{escape(word)}</text>'
    return box + label, width


def picture() -> str:
    """The whole drawing; raises LookupError where the way of a run is not one of imports."""
    for place, name in enumerate(WAY[1:], 1):
        if not any(name in imported(above) for above in WAY[:place]):
            raise LookupError(f"nothing above it on the way of a run imports {name}")
    parts, y, places = [], float(TOP), []
    for layer in layers():
        names = sorted(name for name in layer if not name.startswith("__"))
        if not names:
            continue
        begin, x = y, float(REST)
        for name in (name for name in names if name not in WAY):
            drawn, width = chip(x, y, name, OTHER)
            if x > REST and x + width > WIDTH:
                x, y = float(REST), y + HEIGHT + GAP / 2
                drawn, width = chip(x, y, name, OTHER)
            parts.append(drawn)
            x += width + GAP
        for name in (name for name in names if name in WAY):
            drawn, _ = chip(FIRST, begin, name, OF_WAY)
            parts.append(drawn)
            places.append(begin)
        told = next((side for name, side in SIDES.items() if name in layer), "")
        parts.append(f'<text x="{FIRST - 20}" y="{begin + 16:g}" class="side" text-anchor="end">{told}</text>')
        y += LINE
    down = [
        f'<path d="M{FIRST + 20} {above + HEIGHT:g}V{below - 1:g}" marker-end="url(#arrow)"/>'
        for above, below in itertools.pairwise(places)
    ]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y:g}" role="img">'
        "<title>Modules of dltrain in layers; a module imports only from layers below its own</title>"
        f"<style>text{{font-family:ui-monospace,Menlo,Consolas,monospace;font-size:12px}}.module{{fill:#fff}}"
        f".side{{fill:{SIDE};font-family:system-ui,sans-serif}}path{{stroke:{OF_WAY};stroke-width:2;fill:none}}</style>"
        f'<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
        f'<polygon points="0 0 8 4 0 8" fill="{OF_WAY}"/></marker></defs>'
        f'<text x="{FIRST}" y="16" class="side">the way of one run</text>'
        f'<text x="{REST}" y="16" class="side">what it and the other commands use; imports go down only</text>'
    )
    return "\n".join([head, *down, *parts, "</svg>\n"])


if __name__ == "__main__":
    TARGET.write_text(picture(), encoding="utf-8")
