"""What a person sees of a run: a live line on a terminal, plain lines elsewhere. Writes no files."""

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from dltrain.engine import Record

log = logging.getLogger(__name__)

REDRAW_SECONDS = 0.1
PLAIN_SECONDS = 10.0


def start_logging() -> None:
    """Let dltrain's log lines go to the console, once: on a terminal by rich, elsewhere as plain lines."""
    logger = logging.getLogger("dltrain")
    logger.setLevel(logging.INFO)
    logger.propagate = False  # the root logger belongs to the program that imports dltrain
    for old in [handler for handler in logger.handlers if getattr(handler, "is_console", False)]:
        logger.removeHandler(old)
    console = Console()
    handler: logging.Handler = logging.StreamHandler(sys.stdout)
    if console.is_terminal:
        handler = RichHandler(console=console, show_time=False, show_path=False, show_level=False, markup=False)
    handler.is_console = True  # type: ignore[attr-defined]
    logger.addHandler(handler)


class Display:
    """Progress of one run: epoch, step, loss, accuracy, examples per second and the time left."""

    def __init__(self, epochs: int, steps: int, first_step: int) -> None:
        self.epochs, self.steps = epochs, steps
        self.figures: dict[str, str] = {}
        self.drawn = time.perf_counter()
        handlers = logging.getLogger("dltrain").handlers
        console = next((handler.console for handler in handlers if isinstance(handler, RichHandler)), None)
        self.progress: Progress | None = None
        if console is not None:
            self.progress = Progress(
                TextColumn("{task.fields[place]}"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
                auto_refresh=False,
            )
            self.bar = self.progress.add_task("", total=epochs * steps, completed=first_step, place="", figures="")
            self.progress.start()

    def show(self, records: list[Record], step: int) -> None:
        """Show where the run is, and the figures of records where there are some."""
        for record in records:
            self.figures |= {f"{record.split} {key}": figure(key, value) for key, value in record.values.items()}
            if record.split == "val" or (self.progress is None and self._is_late()):
                log.info("%s", self._line(record))
                self.drawn = time.perf_counter()
        if self.progress is not None and time.perf_counter() - self.drawn > REDRAW_SECONDS:
            self.drawn = time.perf_counter()
            place = f"epoch {min(step // self.steps + 1, self.epochs)}/{self.epochs} step {step}"
            keys = ["train loss", "train accuracy", "val loss", "val accuracy", "train examples_per_second"]
            shown = " ".join(f"{key} {self.figures[key]}" for key in keys if key in self.figures)
            shown = shown.replace(" examples_per_second", "").replace("train loss", "loss") + "/s" * bool(shown)
            self.progress.update(self.bar, completed=step, place=place, figures=shown, refresh=True)

    def close(self) -> None:
        """Take the live line away."""
        if self.progress is not None:
            self.progress.stop()

    def _is_late(self) -> bool:
        return time.perf_counter() - self.drawn > PLAIN_SECONDS

    def _line(self, record: Record) -> str:
        width = len(str(self.epochs))
        place = f"epoch {record.epoch:>{width}.0f}" if record.epoch.is_integer() else f"epoch {record.epoch:.2f}"
        shown = [f"{key} {value}" for key, value in self.figures.items() if not key.endswith(" lr")]
        return f"{place}/{self.epochs} step {record.step}: " + ", ".join(shown)


def figure(key: str, value: float) -> str:
    """A figure as it is printed: at least four digits, rates as whole numbers."""
    return f"{value:,.0f}" if key == "examples_per_second" else f"{value:.4f}" if abs(value) >= 1e-3 else f"{value:.3g}"


def show_figures(title: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a table with a row for each split and a column for each figure."""
    columns = list(dict.fromkeys(key for values in rows.values() for key in values))
    table = Table(title=title, title_justify="left")
    for column in ["", *columns]:
        table.add_column(column, justify="left" if not column else "right")
    for name, values in rows.items():
        table.add_row(name, *(figure(key, values[key]) if key in values else "" for key in columns))
    show_table(table)


def show_table(table: Table) -> None:
    """Print a table as wide as it needs where there is no terminal to fit into."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)
