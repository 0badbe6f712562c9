"""`dltrain report`: compares runs and sweeps by the keys that differ and by their metrics."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dltrain.commands.jobs import job_metrics
from dltrain.config import safe_yaml, saved_config
from dltrain.config.dotted import leaves
from dltrain.config.registry import GROUPS
from dltrain.config.suggestions import suggest
from dltrain.report.html import comparison_page, page, run_page
from dltrain.report.run_reader import read_records, so_far, text, write_analysis
from dltrain.report.run_rows import RunGroup, RunRow, differing_keys, group_by_data
from dltrain.report.run_table import columns_of
from dltrain.report.significance import compare
from dltrain.runtime.errors import ConfigError, InputError, UserError
from dltrain.runtime.folders import expand_user
from dltrain.sweeps import journal
from dltrain.sweeps.results import overrides_of, run_rows, show

USAGE = "usage: dltrain report FOLDER … [--columns=NAME,…] [--json] [-o FILE]; each is or contains runs or sweeps"
DEEPEST = 4  # levels of folders below the given one, as in outputs/sweeps/DATE/TIME


def find_runs(folder: Path, depth: int = 0, damaged: list[str] | None = None) -> Iterator[RunRow]:
    """Yield the run in a folder, or else all runs below it, with failed jobs, and of a sweep of `eval` its jobs.

    Raises InputError or OSError for what cannot be read, or adds the message to `damaged` and goes on.
    """
    try:
        if (folder / ".hydra" / "config.yaml").exists() or (folder / "summary.json").exists():
            yield _run(folder, str(folder.absolute()))
            return
        entries = journal.read(folder)
        for entry in sorted(entries, key=lambda entry: entry.number):
            path, label = folder / entry.folder, f"{folder.absolute()} job {entry.number}"
            if (outcome := entry.outcome) is not None and (outcome.failed or (depth == 0 and not path.exists())):
                whole, overrides = _config(path), overrides_of(entry)
                config = whole or {f"{key}.name" if key in GROUPS else key: value for key, value in overrides.items()}
                yield replace(run_rows(folder, [entry])[0], label=label, config=config, is_part=not whole)
            elif path.is_dir():
                yield _run(path, label)
        if not entries and depth < DEEPEST:
            for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
                yield from find_runs(inner, depth + 1, damaged)
    except (InputError, OSError) as error:
        if damaged is None:
            raise
        damaged.append(str(error))


def _run(folder: Path, label: str) -> RunRow:
    content, config = text(folder / "summary.json"), _config(folder)
    try:
        records = read_records(folder / "metrics.jsonl") if content is None else []
        summary = so_far(records, config.get("metric")) if content is None else json.loads(content)
        values = {k: v for k, v in job_metrics("train", summary).items() if isinstance(v, int | float)}
        seconds = float(summary.get("total_seconds", math.nan))
        return RunRow(folder, label, config, str(summary["status"]), values, seconds)
    except page.UNFIT as error:
        raise InputError(f"{folder / 'summary.json'}: cannot be read ({type(error).__name__})") from error


def _config(folder: Path) -> dict[str, Any]:
    return leaves(saved_config.with_added(nested)) if (nested := _nested(folder)) else {}


def _nested(folder: Path) -> dict[str, Any]:
    path = folder / ".hydra" / "config.yaml"
    if not path.exists():
        return {}
    try:
        config = safe_yaml.read_to_show(path)
    except safe_yaml.UnsafeConfig as error:
        raise InputError(str(error)) from error
    return config if isinstance(config, dict) else {}


def report(arguments: Sequence[str]) -> None:
    """Print the comparison of the folders in `arguments` and write its page; with --json print only JSON."""
    folders, as_json, output, columns = _read(arguments)
    runs: list[RunRow] = []
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder")
        if not (found := list(find_runs(folder))):
            raise InputError(f"{folder}: contains no run")
        runs += [run for run in found if run.folder not in {known.folder for known in runs}]
    groups = group_by_data(with_short_labels(runs))
    if as_json:
        print(json.dumps(_as_json(groups), indent=2))
    else:
        for group in groups:  # keys in which all runs agree have a column only if they are asked for
            held = {key for run in group.runs for key in run.config}
            group.keys.extend([key for key in columns if key in held.difference(group.keys)])
        _require_known(columns, groups)
        show(groups, "run", run_page.NAME, columns)
    if output is None and as_json:
        return
    path = _write_page(folders, groups, output)
    if not as_json:
        print(f"page:  {path}")


def with_short_labels(runs: Sequence[RunRow]) -> list[RunRow]:
    """Return the runs with labels of as few parts of their folders' paths as tell all of them apart."""
    names = [""]
    for count in range(1, max(len(run.folder.parts) for run in runs) + 1):
        names = ["/".join(Path(run.label).parts[-count:]) for run in runs]
        if len(set(names)) == len(runs):
            break
    return [replace(run, label=name) for run, name in zip(runs, names, strict=True)]


def _require_known(asked: Sequence[str], groups: Sequence[RunGroup]) -> None:
    """Raise ConfigError for a column that no group has."""
    known = {column.name for group in groups for column in columns_of(group) if asked} | {"all"}
    for name in asked:
        if name not in known:
            raise ConfigError(f"--columns={name}: no such column, or no run has a value{suggest(name, sorted(known))}")


def _write_page(folders: Sequence[Path], groups: Sequence[RunGroup], output: Path | None) -> Path:
    """Write the page into the folder of a single run or sweep, else into the current folder; return its path."""
    (folder, *others) = folders
    runs = [run for group in groups for run in group.runs]
    if not others and [run.folder for run in runs] == [folder]:
        path = output or folder / run_page.NAME
        run_page.write(path, folder, _nested(folder), _analyze(folder))
    elif not others and (entries := journal.read(folder)):
        path = output or folder / run_page.NAME
        jobs = group_by_data(run_rows(folder, entries), groups[0].by)
        comparison_page.write(path, f"Sweep {'/'.join(folder.parts[-2:])}", jobs)
    else:
        path = output or Path(run_page.NAME)
        comparison_page.write(path, "Comparison", groups)
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


def _read(arguments: Sequence[str]) -> tuple[list[Path], bool, Path | None, list[str]]:
    """Return the folders, True for --json, the file of -o and the names of --columns."""
    folders: list[Path] = []
    as_json, output, columns = False, None, list[str]()
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--json":
            as_json = True
        elif argument in ("-o", "--output"):
            output = expand_user(next(remaining, ""))
        elif argument.partition("=")[0] == "--columns":
            columns = (argument.partition("=")[2] or next(remaining, "")).split(",")
        elif argument.startswith("-"):
            raise ConfigError(f"{argument}: no such option. {USAGE}")
        else:
            folders.append(expand_user(argument))
    if not folders or output == Path():
        raise ConfigError(USAGE)
    return folders, as_json, output, columns


def _as_json(groups: Sequence[RunGroup]) -> dict[str, Any]:
    def numbers(values: Mapping[str, Any]) -> dict[str, Any]:  # JSON has no NaN
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}

    keys = differing_keys([run for group in groups for run in group.runs])
    return {
        "differing": keys,
        "runs": [
            {
                "folder": str(run.folder),
                "data": group.data,
                "status": run.status,
                "config": {key: run.config.get(key) for key in keys},
                "figures": numbers(run.metrics),
                "seconds": numbers({"": run.seconds})[""],
            }
            for group in groups
            for run in group.runs
        ],
        "seeds": [
            {
                "data": group.data,
                "config": group.label(it),
                "n": it.count,
                "mean": numbers(it.mean),
                "interval": numbers(it.spread),
            }
            for group in groups
            if group.over
            for it in group.settings
        ],
        "comparisons": [{"data": group.data} | numbers(vars(it)) for group in groups for it in compare(group)],
    }
