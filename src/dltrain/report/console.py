"""Console output of a run: a live line on a terminal, plain lines elsewhere. Writes no files."""

import contextlib
import datetime
import io
import logging
import math
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.logging import RichHandler
from rich.table import Column, Table
from rich.text import Text

from dltrain.runtime import terminal
from dltrain.runtime.errors import printable, sanitize_record

if TYPE_CHECKING:
    from dltrain.engine import Record

log = logging.getLogger(__name__)

BLOCKS = "▁▂▃▄▅▆▇█"
FEWEST = 6  # blocks of a long curve; it has fewer than twice as many
REDRAW_SECONDS = 0.1
PLAIN_SECONDS = 10.0
MOST_LINES = 50
CONSOLE = "dltrain console"  # name of the handler, so that there is only one
RATES = ("lr", "examples_per_second")  # of training, not results
WIDE = 200  # columns of a table where there is no terminal
PARTS = "parts"  # attribute of a log record: the parts of its line with their priorities, for a narrow terminal


@dataclass
class Sparkline:
    """A curve as block characters, each the mean of equally many values; neighbours are merged to keep it short."""

    means: list[float] = field(default_factory=list)
    pending: list[float] = field(default_factory=list)
    each: int = 1  # values per mean

    def add(self, value: float) -> None:
        """Append a value; NaN and infinity are left out."""
        if not math.isfinite(value):
            return
        self.pending.append(value)
        if len(self.pending) == self.each:
            self.means.append(sum(self.pending) / self.each)
            self.pending = []
        if len(self.means) == 2 * FEWEST:
            self.means = [(first + second) / 2 for first, second in zip(self.means[::2], self.means[1::2], strict=True)]
            self.each *= 2

    def __str__(self) -> str:
        if len(self.means) < 2:
            return ""
        low, high = min(self.means), max(self.means)
        scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
        return "".join(BLOCKS[round((mean - low) * scale)] for mean in self.means)


class _TerminalLines(RichHandler):
    """Writes lines to a terminal; one that is too wide is reduced to the parts that fit, if it has parts."""

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        parts = getattr(record, PARTS, None)
        return terminal.fit_parts(parts, self.console.width) if parts and len(line) > self.console.width else line


def start_logging() -> None:
    """Send the log lines of dltrain to the console once: by rich on a terminal, else as plain lines."""
    logger = logging.getLogger("dltrain")
    logger.setLevel(logging.INFO)
    logger.propagate = False  # the root logger belongs to the program that imports dltrain
    for old in [handler for handler in logger.handlers if handler.name == CONSOLE]:
        logger.removeHandler(old)
    handler: logging.Handler = logging.StreamHandler(sys.stdout)
    if terminal.is_interactive(sys.stdout):
        handler = _TerminalLines(console=Console(), show_time=False, show_path=False, show_level=False, markup=False)
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # logging prints a traceback for each line
    handler.set_name(CONSOLE)
    handler.setLevel(logging.INFO)
    handler.addFilter(sanitize_record)
    logger.addHandler(handler)


class Display:
    """Progress of a run: epoch, step, metrics, curve of the loss, best validation metric and time left."""

    def __init__(self, epochs: int, steps: int, first_step: int, metric: str | None = None) -> None:
        self.epochs, self.steps, self.first_step, self.metric = epochs, steps, first_step, metric
        self.metrics: dict[str, dict[str, float]] = {}  # the latest of each split
        self.losses = Sparkline()
        self.began = self.drawn = self.line_at = time.perf_counter()
        handlers = logging.getLogger("dltrain").handlers
        console = next((handler.console for handler in handlers if isinstance(handler, _TerminalLines)), None)
        self.live: Live | None = None
        if console is not None:
            self.live = Live(Text("starts"), console=console, transient=True, auto_refresh=False)
            with contextlib.suppress(OSError):  # the terminal was closed; train.log has all lines
                self.live.start()

    def show(self, records: "list[Record]", step: int, best: Mapping[str, Any]) -> None:
        """Show the progress of the run and the metrics of new records; `best` is the best record so far."""
        for record in records:
            self.metrics[record.split] = record.values
            if record.split == "train":
                self.losses.add(record.values["loss"])
        if records and self._is_worth_a_line(records[-1]):
            epoch = records[-1].epoch
            place = f"{epoch:>{len(str(self.epochs))}.0f}" if epoch.is_integer() else f"{epoch:.2f}"
            texts = [f"{record.split} {_metrics_text(record.values)}" for record in records]
            if shown := self._best(best):
                texts.append(f"best {shown[0]} in epoch {shown[1]}")
            parts = [(0, f"epoch {place}/{self.epochs}"), (8, f"step {step}")]
            parts += self._parts({record.split: record.values for record in records}, best)
            log.info("epoch %s/%d step %d: %s", place, self.epochs, step, ", ".join(texts), extra={PARTS: parts})
            self.line_at = time.perf_counter()
        if self.live is not None and time.perf_counter() - self.drawn > REDRAW_SECONDS:
            self.drawn = time.perf_counter()
            # One column is left free: some terminals wrap when the last one is written.
            line = terminal.fit_parts(self._line(step, best), self.live.console.width - 1)
            with contextlib.suppress(OSError):
                self.live.update(Text(line, no_wrap=True, overflow="crop"), refresh=True)

    def close(self) -> None:
        """Remove the live line."""
        if self.live is not None:
            with contextlib.suppress(OSError):
                self.live.stop()

    def _line(self, step: int, best: Mapping[str, Any]) -> list[tuple[int, str]]:
        """Return the parts of the live line with their priorities."""
        assert self.live is not None
        total, done = self.epochs * self.steps, step - self.first_step
        seconds = (self.drawn - self.began) / max(1, done) * (total - step)
        drawable = self.live.console.encoding.startswith("utf")
        return [
            (7, f"{100 * step // total:3} %"),
            (5, f"{datetime.timedelta(seconds=round(seconds))} left" if done else "-:--:-- left"),
            (0, f"epoch {min(step // self.steps + 1, self.epochs)}/{self.epochs}"),
            (8, f"step {step}"),
            (3, f"{self.losses!s:{2 * FEWEST - 1}}" if drawable else ""),  # of constant width, so that nothing jumps
            *self._parts(self.metrics, best),
        ]

    def _is_worth_a_line(self, record: "Record") -> bool:
        """True at the end of an epoch, at most fifty times in a run; without a terminal also every ten seconds."""
        if record.epoch.is_integer():
            return record.epoch == self.epochs or record.epoch % -(-self.epochs // MOST_LINES) == 0
        return self.live is None and time.perf_counter() - self.line_at > PLAIN_SECONDS

    def _best(self, best: Mapping[str, Any]) -> tuple[str, str] | None:
        """Return the best value of the metric on the validation set and its epoch; None without a validation set."""
        if best.get("split") != "val":
            return None
        name = self.metric or ("accuracy" if "accuracy" in best else "loss")
        return f"val {name} {format_number(best[name])}", f"{best['epoch']:g}"

    def _parts(self, metrics: Mapping[str, Mapping[str, float]], best: Mapping[str, Any]) -> list[tuple[int, str]]:
        """Return the metrics as parts of a line; those with high numbers are left out first if space is short."""
        parts = []
        for split, values in metrics.items():
            for key, value in values.items():
                if key == "examples_per_second":
                    parts.append((9, f"{value:,.0f}/s"))
                elif key != "lr":
                    name = f"{split} {key}".removeprefix("train loss") or "loss"
                    priority = {"loss": 1, "val accuracy": 4, "val loss": 6, f"val {self.metric}": 3}.get(name, 10)
                    parts.append((priority, f"{name} {format_number(value)}"))
        shown = self._best(best)
        return [*parts, (2, f"best {shown[0].rpartition(' ')[2]} at {shown[1]}" if shown else "")]


def _metrics_text(values: Mapping[str, float]) -> str:
    """Return the metrics of a record as one text: loss 0.1674 accuracy 0.9475 5,811/s."""
    shown = [f"{key} {format_number(value)}" for key, value in values.items() if key not in RATES]
    rate = values.get("examples_per_second")
    return " ".join(shown + ([f"{rate:,.0f}/s"] if rate else []))


def format_number(value: float) -> str:
    """Return a number as it is printed: four decimals; counts and large numbers whole, small ones with three digits."""
    if isinstance(value, int) or 1e4 <= abs(value) < 1e15:
        return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}"
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 or not value else f"{value:.3g}"


def show_metrics(title: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a table with a row for each split and a column for each metric."""
    columns = list(dict.fromkeys(key for values in rows.values() for key in values))
    heads = (Column(printable(column), justify="right") for column in columns)
    table = Table("", *heads, title=printable(title), title_justify="left", min_width=len(title))
    for name, values in rows.items():
        table.add_row(printable(name), *(format_number(values[key]) if key in values else "" for key in columns))
    show_table(table)


def show_end(title: str, summary: Mapping[str, Any], folder: Path) -> None:
    """Print the final metrics of a run and where its files are."""
    best = summary["best"]
    label = "best" if best["split"] == "val" else best["split"]  # without a validation set the last weights are tested
    rows = {"val": summary["val"], label: best, "test": summary["test"]}
    rows = {name: row for name, row in rows.items() if row and "loss" in row}
    skipped = ("split", "step", "epoch", *RATES)
    show_metrics(title, {name: {k: v for k, v in row.items() if k not in skipped} for name, row in rows.items()})
    log.info("summary     %s", folder / "summary.json")
    log.info("checkpoints %s", folder / "checkpoints")


def columns() -> int:
    """Return the columns of the terminal, many where there is none."""
    return shutil.get_terminal_size().columns if terminal.is_terminal(sys.stdout) else WIDE


def has_boxes() -> bool:
    """True if the encoding of stdout has the characters for rules and boxes."""
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")


def show_table(table: Table) -> None:
    """Print a table, at its full width if there is no terminal to fit into."""
    with contextlib.suppress(OSError):  # as for lines
        if not has_boxes():
            table.box = box.ASCII2
        if terminal.is_interactive(sys.stdout):
            Console(markup=False).print(table)  # brackets in a path or the name of a class are not colours
            return
        text = io.StringIO()
        # Not as HTML in a notebook: that would not go to `text`.
        Console(file=text, width=columns(), markup=False, force_terminal=False, force_jupyter=False).print(table)
        print(text.getvalue(), end="")
