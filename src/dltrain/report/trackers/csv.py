"""metrics.csv: a row for each record, a column for each metric of any record."""

import io
from csv import DictReader, DictWriter
from pathlib import Path

from dltrain.report.trackers.lines import Line, Tracker
from dltrain.runtime import atomic_files


class CSV(Tracker):
    """A table of all records in metrics.csv, for spreadsheets."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.csv"
        self.path.unlink(missing_ok=True)  # a resumed run writes it again from metrics.jsonl
        self.columns: list[str] = []

    def write(self, line: Line) -> None:
        """Append a row; a new metric replaces the file by one that has a column for it."""
        if new := [key for key in line if key not in self.columns]:
            rows: list[Line] = []
            if self.columns:
                with self.path.open(encoding="utf-8", newline="") as file:
                    rows = list(DictReader(file))
            self.columns += new
            header = {name: name for name in self.columns}
            atomic_files.atomic_write(self.path, self._text([header, *rows, line]))
            return
        with self.path.open("ab", buffering=0) as file:
            atomic_files.write_all(file.fileno(), self._text([line]))

    def _text(self, rows: list[Line]) -> bytes:
        text = io.StringIO()
        DictWriter(text, self.columns, lineterminator="\n").writerows(rows)
        return text.getvalue().encode()
