"""Progress of a sweep: a live view on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dltrain.commands.jobs import JobResult
from dltrain.report.console import format_number
from dltrain.report.run_rows import metric
from dltrain.runtime import terminal
from dltrain.runtime.errors import printable
from dltrain.sweeps.journal import Entry

REDRAW_SECONDS = 0.2
MOST_SHOWN = 16  # running jobs


@dataclass
class View:
    """Shows the jobs that run, are done and have failed, the best job so far and the time left."""

    total: int
    entries: Mapping[int, Entry]
    constant: Collection[str]  # overrides of all jobs, which are not shown
    metric: str | None = None
    direction: str | None = None
    running: dict[int, tuple[float, str]] = field(default_factory=dict)  # by number: start and latest message
    kept: int = 0  # jobs that ended before this start

    def __post_init__(self) -> None:
        self.console = Console(markup=False, highlight=False)
        self.began = self.drawn = time.monotonic()
        live = terminal.is_interactive(sys.stdout)
        self.live = Live(console=self.console, auto_refresh=False, transient=True) if live else None
        if self.live is not None:
            self.live.start()

    def on_start(self, number: int) -> None:
        """Show a job that starts."""
        self.running[number] = time.monotonic(), "starts"

    def on_metrics(self, number: int, epoch: float, split: str, values: Mapping[str, float]) -> None:
        """Show new metrics of a running job."""
        shown = "loss", "accuracy", (self.metric or "").partition("_")[2]
        texts = [f"{key} {format_number(values[key])}" for key in values if key in shown]
        if number in self.running:
            self.running[number] = self.running[number][0], f"epoch {epoch:.2f}: {split} {' '.join(texts)}"

    def on_end(self, number: int, outcome: JobResult) -> None:
        """Print a line for a job that has ended."""
        self.running.pop(number, None)
        entry = self.entries[number]
        by = metric([outcome.metrics], self.metric, self.direction)
        best = f"{by.name} {format_number(outcome.metrics[by.name])}" if by.name in outcome.metrics else ""
        ended, took = sum(each.outcome is not None for each in self.entries.values()), f"{outcome.seconds:.1f} s"
        parts = (f"{ended}/{self.total}", f"job {number}", outcome.description, best, took, self._overrides(entry))
        self.log("  ".join(part for part in parts if part))

    def log(self, line: str) -> None:
        """Print a line, above the live view if there is one."""
        if self.live is not None:
            self.live.console.print(Text(printable(line)))
        else:
            print(printable(line), flush=True)

    def refresh(self) -> None:
        """Redraw the live view if enough time has passed."""
        if self.live is not None and time.monotonic() - self.drawn > REDRAW_SECONDS:
            self.drawn = time.monotonic()
            self.live.update(self.render(), refresh=True)

    def close(self) -> None:
        """Remove the live view."""
        if self.live is not None:
            self.live.stop()

    def render(self) -> Group:
        """Return the live view as it is drawn."""
        ended = [entry for entry in self.entries.values() if entry.outcome is not None]
        failed = sum(entry.failed for entry in ended)
        heading = Table.grid(padding=(0, 2))
        counts = f"{len(ended) - failed} done, {failed} failed, {len(self.running)} running of {self.total}"
        heading.add_row(ProgressBar(self.total, len(ended), width=24), Text(counts), Text(self._left(len(ended))))
        table = Table.grid(padding=(0, 2))
        now = time.monotonic()
        for number, (began, latest) in sorted(self.running.items())[:MOST_SHOWN]:
            overrides, took = self._overrides(self.entries[number]), f"{now - began:.0f} s"
            table.add_row(f"job {number}", Text(overrides), took, Text(latest))
        best = Text("")
        by = metric([entry.metrics for entry in ended], self.metric, self.direction)
        if (first := min(ended, key=lambda it: by.key(it.metrics), default=None)) and by.name in first.metrics:
            value = format_number(first.metrics[by.name])
            best = Text(f"best  job {first.number}  {by.name} {value}  {self._overrides(first)}")
        return Group(heading, table, best)

    def _left(self, ended: int) -> str:
        """Estimate the time left from the jobs that ended since this start."""
        if not (done := ended - self.kept):
            return ""
        hours, rest = divmod(round((time.monotonic() - self.began) / done * (self.total - ended)), 3600)
        return f"{hours}:{rest // 60:02}:{rest % 60:02} left"

    def _overrides(self, entry: Entry) -> str:
        shown = " ".join(override for override in entry.overrides if override not in self.constant)
        return printable(shown or "no overrides")
