"""Draw docs/sweep.svg: the terminal output of a real sweep, halfway and at its end.

python docs/sweep_picture.py      # needs MNIST in DLTRAIN_DATA
"""

import io
import os
import shlex
import tempfile
from functools import partial
from pathlib import Path

from rich.console import Console

from dltrain import cli
from dltrain.sweeps import results
from dltrain.sweeps.live_view import View

TARGET = Path(__file__).with_name("sweep.svg")
LINE = "train -m model=mlp,lenet data=mnist data.limit=6000 epochs=5 optim.lr=0.02,0.05 seed=range(3)"


def main() -> None:
    os.environ["DLTRAIN_DATA"] = str(Path(os.environ.get("DLTRAIN_DATA", "data")).resolve())
    console = Console(record=True, width=128, force_terminal=True, file=io.StringIO())
    console.print(f"$ dltrain {LINE}", style="bold", highlight=False)
    drawn: list[bool] = []

    def refresh(view: View) -> None:
        halfway = 2 * sum(entry.outcome is not None for entry in view.entries.values()) >= view.total
        validated = any("val" in latest for _, latest in view.running.values())
        if halfway and validated and not drawn:
            drawn.append(True)
            console.print(view.render())
            console.print("\n… and at the end:\n", style="dim")

    View.refresh = refresh  # type: ignore[method-assign]
    results.print = partial(console.print, highlight=False, markup=False)  # type: ignore[attr-defined]
    results.console.columns = lambda: console.width  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        assert cli.main(shlex.split(LINE)) == 0
        os.chdir("/")
    console.save_svg(str(TARGET), title="dltrain")


if __name__ == "__main__":
    main()
