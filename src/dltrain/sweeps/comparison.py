"""`dltrain report`: runs and sweeps side by side, by what differs in their configs and by their figures."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from dltrain.commands.jobs import job_metrics
from dltrain.config import safe_yaml
from dltrain.config.dotted import leaves
from dltrain.config.registry import GROUPS
from dltrain.report.console import format_number, show_table
from dltrain.report.html import page, run_page
from dltrain.report.run_reader import text, write_analysis
from dltrain.report.run_rows import RunRow, SeedGroup, differing_keys, group_by_seed, value_text
from dltrain.runtime.errors import ConfigError, InputError, UserError, printable
from dltrain.runtime.folders import expand_user
from dltrain.sweeps import journal, pages
from dltrain.sweeps.results import Metric, metric, names_of, overrides_of, run_rows, seed_table

USAGE = "usage: dltrain report FOLDER … [--json] [-o FILE]; each folder is a run, a sweep, or has some below it"
DEEPEST = 4  # folders below one that is given: outputs/sweeps/DATE/TIME
USUAL = ("name", "sweep", "resume", "trust", "logger", "report")  # keys that say nothing about a result


def found(folder: Path, depth: int = 0) -> Iterator[RunRow]:
    """The run that a folder is, or all runs below it, those of a sweep with the jobs that failed."""
    if (folder / ".hydra" / "config.yaml").exists() or (folder / "summary.json").exists():
        yield _run(folder, "/".join(folder.parts[-2:]))
        return
    entries = journal.read(folder)
    for entry in sorted(entries, key=lambda it: it.number):
        own, label = folder / entry.folder, f"{folder.name} job {entry.number}"
        if (outcome := entry.outcome) is not None and outcome.failed:
            whole = _config(own)
            config = whole or {f"{key}.name" if key in GROUPS else key: it for key, it in overrides_of(entry).items()}
            yield RunRow(own, label, config, "failed", {}, outcome.seconds, outcome.reason, is_part=not whole)
        elif own.is_dir():
            yield _run(own, label)
    if not entries and depth < DEEPEST:
        for each in sorted(path for path in folder.iterdir() if path.is_dir()):
            yield from found(each, depth + 1)


def _run(folder: Path, label: str) -> RunRow:
    if (content := text(folder / "summary.json")) is None:
        return RunRow(folder, label, _config(folder), "not done", {}, math.nan)
    try:
        summary = json.loads(content)
        values = {
            name: value for name, value in job_metrics("train", summary).items() if isinstance(value, int | float)
        }
        seconds = float(summary.get("total_seconds", math.nan))
        return RunRow(folder, label, _config(folder), str(summary["status"]), values, seconds)
    except page.UNFIT as error:
        raise InputError(f"{folder / 'summary.json'}: cannot be read ({type(error).__name__})") from error


def _config(folder: Path) -> dict[str, Any]:
    return leaves(_nested(folder))


def _nested(folder: Path) -> dict[str, Any]:
    path = folder / ".hydra" / "config.yaml"
    if not path.exists():
        return {}
    try:
        config = safe_yaml.read_yaml(path)
    except safe_yaml.UnsafeConfig as error:
        raise InputError(str(error)) from error
    return config if isinstance(config, dict) else {}


def report(arguments: Sequence[str]) -> None:
    """Print the comparison of the folders that are named, and write its page; with --json print it as JSON alone."""
    words, as_json, output = _read(arguments)
    runs: list[RunRow] = []
    for folder in words:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder")
        own = list(found(folder))
        if not own:
            raise InputError(f"{folder}: there is no run in it")
        runs += [run for run in own if run.folder not in {it.folder for it in runs}]
    keys = [key for key in differing_keys(runs) if key.partition(".")[0] not in USUAL]
    by = metric([run.metrics for run in runs])
    runs.sort(key=lambda run: by.key(run.metrics))
    groups = group_by_seed(runs, keys) if "seed" in keys else []
    if as_json:
        print(json.dumps(_as_json(runs, keys, groups), indent=2))
    else:
        show_table(_table(runs, keys, by))
        if any(group.count > 1 for group in groups):
            show_table(seed_table(groups, keys, by))
    if output is None and as_json:
        return
    path = _write_page(words, runs, keys, by, output)
    if not as_json:
        print(f"page:  {path}")


def _write_page(
    folders: Sequence[Path], runs: Sequence[RunRow], keys: Sequence[str], by: Metric, output: Path | None
) -> Path:
    """Write the page of what was named: into the folder of one run or sweep, else into the current one."""
    (folder, *others) = folders
    if not others and [run.folder for run in runs] == [folder]:
        path = output or folder / run_page.NAME
        run_page.write(path, folder, _nested(folder), _analyze(folder))
    elif not others and (entries := journal.read(folder)):
        path = output or folder / run_page.NAME
        pages.write_sweep(path, folder, run_rows(folder, entries), by)
    else:
        path = output or Path(run_page.NAME)
        pages.write(path, f"{len(runs)} runs", runs, keys, by)
    return path


def _analyze(folder: Path) -> str:
    """Have a run's analysis beside its other files, as far as its checkpoint and data are there; or say why not."""
    if (folder / "analysis.json").exists() or not (folder / "checkpoints").is_dir():
        return ""
    from dltrain.commands import evaluation
    from dltrain.config import composition
    from dltrain.config.resolution import resolved

    try:
        config = resolved(composition.compose("eval", ["ckpt=x"]), "eval")
        config = replace(config, values=config.values | {"ckpt": str(folder)})  # its name may look like an override
        write_analysis(folder, evaluation.analyze_checkpoint(config))
    except UserError as error:
        return f"What the network gets wrong is not shown: {error}"
    return ""


def _read(arguments: Sequence[str]) -> tuple[list[Path], bool, Path | None]:
    """Folders, whether --json is there, and the file behind -o."""
    folders: list[Path] = []
    as_json, output = False, None
    words = iter(arguments)
    for word in words:
        if word == "--json":
            as_json = True
        elif word in ("-o", "--output"):
            output = expand_user(next(words, ""))
        elif word.startswith("-"):
            raise ConfigError(f"{word}: no such option. {USAGE}")
        else:
            folders.append(expand_user(word))
    if not folders or output == Path():
        raise ConfigError(USAGE)
    return folders, as_json, output


def _table(runs: Sequence[RunRow], keys: Sequence[str], by: Metric) -> Table:
    names = names_of((run.metrics for run in runs), by)
    table = Table(title=f"{len(runs)} runs, best {by.name} first", title_justify="left")
    for column in ("run", "status", *map(printable, keys)):
        table.add_column(column, overflow="fold")
    for column in (*names, "seconds"):
        table.add_column(printable(column), justify="right")
    for run in runs:
        values = [printable(value_text(run.config.get(key))) for key in keys]
        shown = [format_number(run.metrics[name]) if name in run.metrics else "" for name in names]
        seconds = "" if math.isnan(run.seconds) else f"{run.seconds:.1f}"
        table.add_row(printable(run.label), printable(run.status), *values, *shown, seconds)
    return table


def _as_json(runs: Sequence[RunRow], keys: Sequence[str], groups: Sequence[SeedGroup]) -> dict[str, Any]:
    def number(value: float) -> float | None:  # JSON has no NaN
        return value if math.isfinite(value) else None

    return {
        "differing": list(keys),
        "runs": [
            {
                "folder": str(run.folder),
                "status": run.status,
                "config": {key: run.config.get(key) for key in keys},
                "figures": {name: number(value) for name, value in run.metrics.items()},
                "seconds": number(run.seconds),
            }
            for run in runs
        ],
        "seeds": [
            {
                "config": group.label(keys),
                "n": group.count,
                "mean": {name: number(value) for name, value in group.mean.items()},
                "interval": {name: number(value) for name, value in group.spread.items()},
            }
            for group in groups
        ],
    }
