"""What a person sees of a run: a live line on a terminal, plain lines elsewhere. Writes no files."""

import contextlib
import io
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from dltrain.errors import clean, printable

if TYPE_CHECKING:
    from dltrain.engine import Record

log = logging.getLogger(__name__)

REDRAW_SECONDS = 0.1
PLAIN_SECONDS = 10.0
MOST_LINES = 50
CONSOLE = "dltrain console"  # name of the handler, so that there is only one


class _Lines(logging.StreamHandler[TextIO]):
    """Plain lines; where nobody can read them any more the run goes on, and train.log has them all."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def start_logging() -> None:
    """Let dltrain's log lines go to the console, once: on a terminal by rich, elsewhere as plain lines."""
    logger = logging.getLogger("dltrain")
    logger.setLevel(logging.INFO)
    logger.propagate = False  # the root logger belongs to the program that imports dltrain
    for old in [handler for handler in logger.handlers if handler.name == CONSOLE]:
        logger.removeHandler(old)
    console = Console()
    handler: logging.Handler = _Lines(sys.stdout)
    if console.is_terminal:
        handler = RichHandler(console=console, show_time=False, show_path=False, show_level=False, markup=False)
    handler.set_name(CONSOLE)
    handler.addFilter(clean)
    logger.addHandler(handler)


class Display:
    """Progress of one run: epoch, step, loss, accuracy, examples per second and the time left."""

    def __init__(self, epochs: int, steps: int, first_step: int) -> None:
        self.epochs, self.steps = epochs, steps
        self.figures: dict[str, dict[str, float]] = {}  # split to its latest
        self.drawn = self.line_at = time.perf_counter()
        handlers = logging.getLogger("dltrain").handlers
        console = next((handler.console for handler in handlers if isinstance(handler, RichHandler)), None)
        self.progress: Progress | None = None
        if console is not None:
            self.progress = Progress(
                BarColumn(10, table_column=Column(min_width=10)),
                TimeRemainingColumn(table_column=Column(min_width=7)),
                TextColumn("{task.description}"),
                console=console,
                transient=True,
                auto_refresh=False,
            )
            self.bar = self.progress.add_task("", total=epochs * steps, completed=first_step)
            self.progress.start()

    def show(self, records: "list[Record]", step: int) -> None:
        """Show where the run is, and the figures of records where there are some."""
        self.figures |= {record.split: record.values for record in records}
        if records and self._is_worth_a_line(records[-1]):
            epoch = records[-1].epoch
            place = f"{epoch:>{len(str(self.epochs))}.0f}" if epoch.is_integer() else f"{epoch:.2f}"
            shown = ", ".join(f"{record.split} {_told(record.values)}" for record in records)
            log.info("epoch %s/%d step %d: %s", place, self.epochs, step, shown)
            self.line_at = time.perf_counter()
        if self.progress is not None and time.perf_counter() - self.drawn > REDRAW_SECONDS:
            self.drawn = time.perf_counter()
            place = f"epoch {min(step // self.steps + 1, self.epochs)}/{self.epochs} step {step}"
            shown = ", ".join(f"{split} {_told(values)}" for split, values in self.figures.items())
            self.progress.update(self.bar, completed=step, description=f"{place}: {shown}", refresh=True)

    def close(self) -> None:
        """Take the live line away."""
        if self.progress is not None:
            self.progress.stop()

    def _is_worth_a_line(self, record: "Record") -> bool:
        """Ends of epochs, fifty at the most in a run; without a terminal also a sign of life every few seconds."""
        if record.epoch.is_integer():
            return record.epoch == self.epochs or record.epoch % -(-self.epochs // MOST_LINES) == 0
        return self.progress is None and time.perf_counter() - self.line_at > PLAIN_SECONDS


def _told(values: Mapping[str, float]) -> str:
    """Figures of a record in one piece: loss 0.1674 accuracy 0.9475 5,811/s."""
    shown = [f"{key} {figure(value)}" for key, value in values.items() if key not in ("lr", "examples_per_second")]
    rate = values.get("examples_per_second")
    return " ".join(shown + ([f"{rate:,.0f}/s"] if rate else []))


def figure(value: float) -> str:
    """A figure as it is printed: counts whole, others with four decimals, small ones with three digits."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if abs(value) >= 1e-3 or not value else f"{value:.3g}"


def show_figures(title: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a table with a row for each split and a column for each figure."""
    columns = list(dict.fromkeys(key for values in rows.values() for key in values))
    table = Table(title=printable(title), title_justify="left", min_width=len(title))
    for column in ["", *columns]:
        table.add_column(printable(column), justify="left" if not column else "right")
    for name, values in rows.items():
        table.add_row(printable(name), *(figure(values[key]) if key in values else "" for key in columns))
    show_table(table)


def show_end(title: str, summary: Mapping[str, Any], folder: Path) -> None:
    """The final figures of a run, and where its files are."""
    best = summary["best"]
    label = "best" if best["split"] == "val" else best["split"]  # without validation the last weights are tested
    rows = {"val": summary["val"], label: best, "test": summary["test"]}
    rows = {name: row for name, row in rows.items() if row and "loss" in row}
    skipped = ("split", "step", "epoch", "lr", "examples_per_second")
    show_figures(title, {name: {k: v for k, v in row.items() if k not in skipped} for name, row in rows.items()})
    log.info("summary     %s", folder / "summary.json")
    log.info("checkpoints %s", folder / "checkpoints")


def show_table(table: Table) -> None:
    """Print a table, as wide as it needs where there is no terminal to fit into."""
    console = Console(markup=False)  # brackets in a path or a class's name are no colours
    if console.is_terminal:
        console.print(table)
        return
    text = io.StringIO()
    Console(file=text, width=200, markup=False).print(table)
    with contextlib.suppress(OSError):  # as with lines
        print(text.getvalue(), end="")
