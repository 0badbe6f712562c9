"""`dltrain runs`: lists runs, and deletes those that meet conditions."""

import contextlib
import operator
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dltrain.config.suggestions import suggest
from dltrain.report.run_rows import RunGroup, RunRow, data_name, metric, model_name
from dltrain.report.run_table import columns_of, text_column
from dltrain.runtime.errors import ConfigError
from dltrain.runtime.folders import locked
from dltrain.sweeps.comparison import find_runs, with_short_labels
from dltrain.sweeps.results import print_table

USAGE = "usage: dltrain runs [FOLDER] [NAME] [KEY=VALUE 'KEY>NUMBER' …] [--delete [--yes]]"
COMPARED = {
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    "=": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
ALWAYS_SHOWN = ("status", "model", "data", "tags", "note")


def list_runs(arguments: Sequence[str]) -> None:
    """Print the runs that meet the conditions in `arguments`, newest first; with --delete, delete them after asking."""
    flags = {argument for argument in arguments if argument[:1] == "-"}
    if unknown := flags - {"--delete", "--yes"}:
        raise ConfigError(f"{min(unknown)}: no such option. {USAGE}")
    conditions = [re.fullmatch(r"([\w.]+)(!=|>=|<=|=|>|<)(.*)", it) or it for it in arguments if it not in flags]
    names = [it for it in conditions if isinstance(it, str)]
    folder = Path(names.pop(0)) if names and Path(names[0]).is_dir() else Path("outputs")
    runs = with_short_labels(list(find_runs(folder)) if folder.is_dir() else [])
    runs = [replace(run, label=run.label.replace(" job ", "/")) for run in runs]  # a name that can be typed
    for condition in conditions:
        if not isinstance(condition, str):
            key, sign, text = condition.groups()
            if runs and not any(_values(run, key) for run in runs):
                raise ConfigError(f"{condition[0]}: no run has {key}{suggest(key, sorted(_known(runs)))}")
            runs = [run for run in runs if _meets(_values(run, key), sign, text)]
    runs = [run for run in runs if all(name in str(run.folder) for name in names)]
    runs.sort(key=lambda run: [int(it) for it in re.findall(r"\d+", "/".join(run.folder.parts[-3:]))], reverse=True)
    if not runs:
        print(f"{folder}: contains no run{' that meets these conditions' * bool(conditions)}")
        return
    if "--delete" in flags and not conditions:
        raise ConfigError("--delete: give a condition, such as status=interrupted, or a part of the runs' names")
    _show(runs)
    if "--delete" in flags:
        _delete(runs, ask="--yes" not in flags)


def _known(runs: Sequence[RunRow]) -> set[str]:
    names = {key for run in runs for key in run.config} | {key for run in runs for key in run.metrics}
    return names | {"model", "data", "status", "seconds"}


def _values(run: RunRow, key: str) -> list[Any]:
    """Return the values of a key: one, those of a list, or none if a run lacks it; a metric is that of test or val."""
    known: dict[str, Any] = {"model": model_name(run.config), "data": data_name(run.config), "status": run.status}
    known = run.config | known | {"seconds": run.seconds} | run.metrics
    value: Any = next((known[name] for name in (key, f"test_{key}", f"val_{key}") if known.get(name) is not None), [])
    return value if isinstance(value, list) else [value]


def _meets(values: Sequence[Any], sign: str, text: str) -> bool:
    """True if one of the values compares with a text, as numbers if both are; with != if none is equal."""
    if sign == "!=":
        return not _meets(values, "=", text)
    with contextlib.suppress(ValueError):
        return any(COMPARED[sign](float(value), float(text)) for value in values)
    return sign == "=" and any(str(value).lower() == text.lower() for value in values)


def _show(runs: Sequence[RunRow]) -> None:
    """Print a table of runs in their order."""
    tags = [", ".join(map(str, run.config.get("tags") or ())) or None for run in runs]
    rows = [replace(run, config=run.config | {"tags": tag}) for run, tag in zip(runs, tags, strict=True)]
    group = RunGroup("", rows, metric([run.metrics for run in rows]), ["tags", "note"])
    columns = columns_of(group)
    columns.insert(1, text_column("data", 2.5, [data_name(run.config) or None for run in rows]))
    title = f"{len(runs)} run{'s' * (len(runs) != 1)}, newest first"
    print_table(title, columns, ALWAYS_SHOWN, "give a condition", "dltrain report")


def _delete(runs: Sequence[RunRow], *, ask: bool) -> None:
    """Delete the folders of runs, and those of sweeps of which all jobs are listed. Raises UserError."""
    chosen, folders = {run.folder for run in runs}, dict[Path, None]()
    for folder in sorted(chosen):
        if (sweep := folder.parent) / "sweep.json" in sweep.glob("sweep.json"):
            if left := [it for it in sweep.iterdir() if (it / ".hydra").is_dir() and it not in chosen]:
                raise ConfigError(
                    f"{folder}: is a job of a sweep, which is only deleted with all of its jobs ({left[0]} …)"
                )
            folder = sweep
        folders[folder] = None
    if ask:
        if not sys.stdin.isatty():
            raise ConfigError("--delete: asks first, and there is no terminal. Add --yes")
        if input(f"Delete {len(folders)} folder{'s' * (len(folders) != 1)} for good? [y/N] ").lower() not in (
            "y",
            "yes",
        ):
            return
    for folder in folders:
        with locked(folder / ".lock", wait=False):  # a run that is under way keeps it
            shutil.rmtree(folder)
        print(f"deleted {folder}")
