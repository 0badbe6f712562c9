"""Write report.html of a sweep, and of any runs side by side."""

from collections.abc import Sequence
from pathlib import Path

from dltrain.report.html import comparison_page, page
from dltrain.report.html.run_page import NAME
from dltrain.report.run_rows import RunRow, differing_keys
from dltrain.runtime.errors import UserError
from dltrain.sweeps.results import Metric


def write_after(folder: Path, jobs: Sequence[RunRow], by: Metric) -> None:
    """Write the page of a sweep that has just ended; print an error instead of raising it, as the sweep is done."""
    try:
        write_sweep(folder / NAME, folder, jobs, by)
        print(f"page:  {folder / NAME}")
    except Exception as error:  # a chart that cannot be drawn must not cost a sweep
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        print(f"{NAME} was not written: {' '.join(reason.split())[:300]}")


def write_sweep(path: Path, folder: Path, jobs: Sequence[RunRow], by: Metric) -> None:
    """Write the page of a sweep's jobs. Raises UserError."""
    write(path, f"Sweep {'/'.join(folder.parts[-2:])}", jobs, differing_keys(jobs), by)


def write(path: Path, title: str, runs: Sequence[RunRow], keys: Sequence[str], by: Metric) -> None:
    """Write the page of several runs, the best first. Raises UserError."""
    ranked = sorted(runs, key=lambda run: by.key(run.metrics))
    keys = [key for key in keys if not _is_implied(key, keys, runs)]
    page.write(path, comparison_page.text(title, ranked, keys, by.name, path.parent))


def _is_implied(key: str, keys: Sequence[str], runs: Sequence[RunRow]) -> bool:
    """True if a key differs only because one option of its group has it and another does not."""
    group, dot, _ = key.partition(".")
    values = {repr(run.config[key]) for run in runs if key in run.config}
    return bool(dot) and f"{group}.name" in keys and key != f"{group}.name" and len(values) == 1
