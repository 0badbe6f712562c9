"""results.csv of a sweep, a row for each job, rewritten after each; and the ranked table at its end."""

import csv
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from dltrain.errors import OutputError

SPLITS = ("train_", "val_", "test_")


@dataclass
class Results:
    """Rows of a sweep in the order of their jobs, kept in `folder`/results.csv."""

    folder: Path
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self,
        *,
        job: int,
        overrides: list[str],
        status: str,
        seconds: float,
        folder: Path | None,
        figures: dict[str, float],
    ) -> None:
        """Add a job and rewrite the file; `figures` are named by split, such as test_accuracy, none where it failed."""
        self.rows.append(
            {
                "job": job,
                "overrides": " ".join(word for word in overrides if not word.lstrip("+").startswith("sweep.")),
                "status": status,
                **figures,
                "seconds": round(seconds, 3),
                "folder": folder.name if folder else "",
            }
        )
        self._write()

    def _write(self) -> None:
        path = self.folder / "results.csv"
        figures = [name for row in self.rows for name in row if name.startswith(SPLITS)]
        ordered = dict.fromkeys(["job", "overrides", "status", *figures, "seconds", "folder"])
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(ordered))
                writer.writeheader()
                writer.writerows(self.rows)
            temporary.replace(path)
        except OSError as error:
            raise OutputError(f"{path}: could not be written ({error.strerror})") from error

    @property
    def failed(self) -> int:
        """How many jobs failed."""
        return sum(row["status"].startswith("failed") for row in self.rows)

    def ranked(self) -> list[dict[str, Any]]:
        """Rows from best to worst: by validation accuracy, else its loss, else the same of the test."""
        keys = [f"{split}{key}" for split in ("val_", "test_", "train_") for key in ("accuracy", "loss")]
        key = next((key for key in keys if any(key in row for row in self.rows)), "seconds")
        sign = -1 if key.endswith("accuracy") else 1
        return sorted(self.rows, key=lambda row: sign * row[key] if key in row else float("inf"))

    def table(self) -> Table:
        """The ranked table for a person."""
        figures = list(dict.fromkeys(name for row in self.rows for name in row if name.startswith(SPLITS)))
        table = Table(title=f"{len(self.rows)} jobs, {self.failed} failed", title_justify="left")
        for column in ("job", "overrides", "status"):
            table.add_column(column)
        for column in (*figures, "seconds"):
            table.add_column(column, justify="right")
        for row in self.ranked():
            numbers = [f"{row[name]:.4f}" if name in row else "" for name in figures]
            table.add_row(str(row["job"]), row["overrides"], row["status"], *numbers, f"{row['seconds']:.1f}")
        return table


def figures(command: str, summary: dict[str, Any]) -> dict[str, float]:
    """Figures of a job by split: of a training the test's, and the validation's of the weights that were tested."""
    splits = dict(summary)
    if command == "train":
        best = summary.get("best") or {}
        splits = {"test": summary.get("test") or {}, "val": best if best.get("split") == "val" else {}}
    return {
        f"{split}_{key}": value
        for split, values in splits.items()
        for key, value in values.items()
        if key not in ("split", "step", "epoch")
    }
