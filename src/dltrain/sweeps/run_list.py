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
from dltrain.runtime.errors import ConfigError, OutputError
from dltrain.runtime.folders import locked, refuse_links
from dltrain.sweeps.comparison import find_runs, with_short_labels
from dltrain.sweeps.results import print_table

USAGE = "usage: dltrain runs [FOLDER] [NAME] [KEY=VALUE 'KEY>NUMBER' …] [--delete [--yes]]"
CONDITION = re.compile(r"\s*([\w.]+)\s*(!=|>=|<=|==?|>|<)\s*(.*)")
COMPARED = {"=": operator.eq, ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
ALWAYS_SHOWN = ("status", "model", "data", "tags", "note")


def list_runs(arguments: Sequence[str]) -> None:
    """Print the runs that meet the conditions in `arguments`, newest first; with --delete, delete them after asking."""
    flags = {argument for argument in arguments if argument[:1] == "-"}
    if unknown := flags - {"--delete", "--yes"}:
        raise ConfigError(f"{min(unknown)}: no such option. {USAGE}")
    given = [argument for argument in arguments if argument not in flags]
    folder = Path(given.pop(0)) if given and given[0] and Path(given[0]).is_dir() else Path("outputs")
    damaged: list[str] = []
    runs = list(find_runs(folder, damaged=damaged)) if folder.is_dir() else []
    labels = [run.label.replace(" job ", "/") for run in with_short_labels(runs)] if runs else []
    runs = [replace(_with_status(run), label=label) for run, label in zip(runs, labels, strict=True)]
    runs.sort(key=_age, reverse=True)
    everything = [_searchable(run) for run in runs]
    known = {"accuracy", "loss"}.union(*everything)
    chosen = [
        run
        for run, values in zip(runs, everything, strict=True)
        if all(_meets(values, _name(run, folder), it, known) for it in given)
    ]
    for problem in damaged:
        print(f"left out {problem}", file=sys.stderr)
    if not chosen:
        paths = [each for each in given[:1] if "/" in each and not CONDITION.fullmatch(each)]
        print(f"no run in {folder}{' matches' * bool(given)}{''.join(f'; there is no folder {it}' for it in paths)}")
    elif "--delete" not in flags:
        _show(chosen)
    elif not any(given):
        raise ConfigError("--delete: give a condition, such as status=interrupted, or a part of the runs' names")
    else:
        _show(chosen)
        _delete(chosen, folder, ask="--yes" not in flags)


def _age(run: RunRow) -> list[int]:
    """Return the numbers in DATE/TIME/NUMBER of a run's folder, of other folders those in its name."""
    dated = re.search(r"\d{4}-\d\d-\d\d/.*", str(run.folder))
    return [int(number) for number in re.findall(r"\d+", dated[0] if dated else run.folder.name)]


def _with_status(run: RunRow) -> RunRow:
    """Return the run, `running` if a process holds its lock."""
    if run.status == "not done" and (lock := run.folder / ".lock").exists():
        try:
            with locked(lock, wait=False):
                pass
        except OutputError:
            return replace(run, status="running")
    return run


def _name(run: RunRow, base: Path) -> str:
    """Return what names of runs are compared with: the path below the listed folder, of a job with its number."""
    return re.sub(r"(/\d+)_[^/]*$", r"\1", str(run.folder.relative_to(base)))


def _searchable(run: RunRow) -> dict[str, Any]:
    """Return what conditions compare, by name: config, metrics with and without their split, and columns."""
    by_name = {key.removesuffix(".name"): value for key, value in run.config.items() if key.endswith(".name")}
    metrics = {key.partition("_")[2]: run.metrics[key] for key in sorted(run.metrics)}  # test after train, before val
    metrics |= {key[5:]: value for key, value in run.metrics.items() if key.startswith("test_")}
    columns: dict[str, Any] = {"model": model_name(run.config), "data": data_name(run.config), "date": run.date}
    columns |= {"status": run.status, "seconds": run.seconds}
    return run.config | by_name | metrics | run.metrics | columns


def _meets(values: dict[str, Any], name: str, condition: str, known: set[str]) -> bool:
    """True if a run meets a condition, or has any other text as a part of its name. Raises ConfigError."""
    if not (parsed := CONDITION.fullmatch(condition)):
        return condition in name
    key, sign, text = parsed.groups()
    if key not in known:
        raise ConfigError(f"{condition}: no run has {key}{suggest(key, sorted(known))}")
    value = values.get(key)
    several = value if isinstance(value, list) else [] if value is None else [value]
    if sign not in ("=", "==", "!="):
        try:
            return any(COMPARED[sign](float(it), float(text)) for it in several)
        except ValueError as error:
            raise ConfigError(f"{condition}: compares numbers only; for texts there are = and !=") from error
    is_equal = any(_equal(it, text) for it in several) or (text in ("", "null") and not several)
    return is_equal != (sign == "!=")


def _equal(value: Any, text: str) -> bool:
    with contextlib.suppress(ValueError, TypeError):
        return float(value) == float(text)
    return str(value).lower() == text.lower()


def _show(runs: Sequence[RunRow]) -> None:
    """Print a table of runs in their order."""
    tags = [", ".join(map(str, run.config.get("tags") or ())) or None for run in runs]
    rows = [replace(run, config=run.config | {"tags": tag}) for run, tag in zip(runs, tags, strict=True)]
    columns = columns_of(RunGroup("", rows, metric([run.metrics for run in rows]), ["tags", "note"]))
    columns.insert(1, text_column("data", 2.5, [data_name(run.config) or None for run in rows]))
    title = f"{len(runs)} run{'s' * (len(runs) != 1)}, newest first"
    print_table(title, columns, ALWAYS_SHOWN, "give a condition", "dltrain report FOLDER")


def _delete(runs: Sequence[RunRow], base: Path, *, ask: bool) -> None:
    """Delete the folders of runs, and those of sweeps of which all jobs are listed. Raises UserError, deleting none."""
    chosen = {run.folder.absolute() for run in runs}
    folders = {run.parent if (run.parent / "sweep.json").exists() else run for run in chosen}
    for folder in sorted(folders):
        if not folder.resolve().is_relative_to(base.resolve()):
            raise ConfigError(f"{folder}: is outside {base}, behind a link. Delete it where it is")
        refuse_links(folder)
        for other in sorted({path.parent for path in folder.rglob(".hydra")} - chosen):
            raise ConfigError(f"{other}: does not match, and would be deleted with {folder}. Widen the conditions")
    if ask:
        if not sys.stdin.isatty():
            raise ConfigError("--delete: asks first, and there is no terminal. Add --yes")
        answer, question = "", f"Delete {len(folders)} folder{'s' * (len(folders) != 1)} permanently? [y/N] "
        with contextlib.suppress(EOFError):
            answer = input(question)
        if answer.lower() not in ("y", "yes"):
            return
    for folder in sorted(folders):
        with locked(folder / ".lock", wait=False, required=True):  # a run that is still in progress keeps it
            for path in folder.iterdir():
                if path.name != ".lock":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.rmtree(folder)  # NFS keeps files that are open, and the folder with them
        print(f"deleted {folder}")
