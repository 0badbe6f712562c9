"""`dltrain report`: compares runs and sweeps by the keys that differ and by their metrics."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from dltrain.commands.jobs import job_metrics
from dltrain.config import safe_yaml, saved_config
from dltrain.config.dotted import leaves
from dltrain.config.metric_names import shared_metric
from dltrain.config.registry import GROUPS
from dltrain.report import significance
from dltrain.report.console import format_number, new_table, show_table
from dltrain.report.html import comparison_page, page, run_page
from dltrain.report.run_reader import text, write_analysis
from dltrain.report.run_rows import Metric, RunRow, SeedGroup, differing_keys, group_by_seed, metric, value_text
from dltrain.runtime.errors import ConfigError, InputError, UserError, printable
from dltrain.runtime.folders import expand_user
from dltrain.sweeps import journal
from dltrain.sweeps.results import names_of, overrides_of, run_rows, show_repeated

USAGE = "usage: dltrain report FOLDER … [--json] [-o FILE]; each folder is a run or a sweep, or contains some"
DEEPEST = 4  # levels of folders below the given one, as in outputs/sweeps/DATE/TIME
USUAL = ("name", "sweep", "resume", "trust", "logger", "report")  # keys that say nothing about a result


def find_runs(folder: Path, depth: int = 0) -> Iterator[RunRow]:
    """Yield the run in a folder, or else all runs below it, with the failed jobs of sweeps."""
    if (folder / ".hydra" / "config.yaml").exists() or (folder / "summary.json").exists():
        yield _run(folder, "/".join(folder.parts[-2:]))
        return
    entries = journal.read(folder)
    for entry in sorted(entries, key=lambda entry: entry.number):
        path, label = folder / entry.folder, f"{folder.name} job {entry.number}"
        if (outcome := entry.outcome) is not None and outcome.failed:
            whole, overrides = _config(path), overrides_of(entry)
            config = whole or {f"{key}.name" if key in GROUPS else key: value for key, value in overrides.items()}
            yield RunRow(path, label, config, "failed", {}, outcome.seconds, outcome.reason, is_part=not whole)
        elif path.is_dir():
            yield _run(path, label)
    if not entries and depth < DEEPEST:
        for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
            yield from find_runs(inner, depth + 1)


def _run(folder: Path, label: str) -> RunRow:
    if (content := text(folder / "summary.json")) is None:
        return RunRow(folder, label, _config(folder), "not done", {}, math.nan)
    try:
        summary = json.loads(content)
        values = {k: v for k, v in job_metrics("train", summary).items() if isinstance(v, int | float)}
        seconds = float(summary.get("total_seconds", math.nan))
        return RunRow(folder, label, _config(folder), str(summary["status"]), values, seconds)
    except page.UNFIT as error:
        raise InputError(f"{folder / 'summary.json'}: cannot be read ({type(error).__name__})") from error


def _config(folder: Path) -> dict[str, Any]:
    return leaves(saved_config.with_added(nested)) if (nested := _nested(folder)) else {}


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
    """Print the comparison of the folders in `arguments` and write its page; with --json print only JSON."""
    folders, as_json, output = _read(arguments)
    runs: list[RunRow] = []
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder")
        found = list(find_runs(folder))
        if not found:
            raise InputError(f"{folder}: contains no run")
        runs += [run for run in found if run.folder not in {known.folder for known in runs}]
    keys = [key for key in differing_keys(runs) if key.partition(".")[0] not in USUAL]
    chosen = shared_metric(run.config for run in runs if run.metrics)
    by = metric([run.metrics for run in runs], chosen=chosen)
    runs.sort(key=lambda run: by.key(run.metrics))
    groups = group_by_seed(runs, keys) if significance.repeated_over(keys) else []
    if as_json:
        print(json.dumps(_as_json(runs, keys, groups, by), indent=2))
    else:
        show_table(_table(runs, keys, by))
        show_repeated(groups, keys, by)
    if output is None and as_json:
        return
    path = _write_page(folders, runs, keys, by, output)
    if not as_json:
        print(f"page:  {path}")


def _write_page(
    folders: Sequence[Path], runs: Sequence[RunRow], keys: Sequence[str], by: Metric, output: Path | None
) -> Path:
    """Write the page into the folder of a single run or sweep, else into the current folder; return its path."""
    (folder, *others) = folders
    if not others and [run.folder for run in runs] == [folder]:
        path = output or folder / run_page.NAME
        run_page.write(path, folder, _nested(folder), _analyze(folder))
    elif not others and (entries := journal.read(folder)):
        path = output or folder / run_page.NAME
        comparison_page.write_sweep(path, folder, run_rows(folder, entries), by)
    else:
        path = output or Path(run_page.NAME)
        comparison_page.write(path, f"{len(runs)} run{'s' * (len(runs) != 1)}", runs, keys, by)
    return path


def _analyze(folder: Path) -> str:
    """Write the analysis of a run if it has none; return a message if its checkpoint or data do not allow it."""
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
        return f"The analysis of its mistakes is not shown: {error}"
    return ""


def _read(arguments: Sequence[str]) -> tuple[list[Path], bool, Path | None]:
    """Return the folders, True for --json, and the file of -o."""
    folders: list[Path] = []
    as_json, output = False, None
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--json":
            as_json = True
        elif argument in ("-o", "--output"):
            output = expand_user(next(remaining, ""))
        elif argument.startswith("-"):
            raise ConfigError(f"{argument}: no such option. {USAGE}")
        else:
            folders.append(expand_user(argument))
    if not folders or output == Path():
        raise ConfigError(USAGE)
    return folders, as_json, output


def _table(runs: Sequence[RunRow], keys: Sequence[str], by: Metric) -> Table:
    names = names_of((run.metrics for run in runs), by)
    title = f"{len(runs)} run{'s' * (len(runs) != 1)}, best {by.name} first"
    table = new_table(title, ("run", "status", *keys), (*names, "seconds"))
    for run in runs:
        values = [printable(value_text(run.config.get(key))) for key in keys]
        shown = [format_number(run.metrics[name]) if name in run.metrics else "" for name in names]
        seconds = "" if math.isnan(run.seconds) else f"{run.seconds:.1f}"
        table.add_row(printable(run.label), printable(run.status), *values, *shown, seconds)
    return table


def _as_json(runs: Sequence[RunRow], keys: Sequence[str], groups: Sequence[SeedGroup], by: Metric) -> dict[str, Any]:
    def number(value: Any) -> Any:  # JSON has no NaN
        return None if isinstance(value, float) and not math.isfinite(value) else value

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
        "comparisons": [{k: number(v) for k, v in vars(it).items()} for it in significance.compare(groups, keys, by)],
    }
