"""report.html of a sweep, at its end, and of any set of runs."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from dltrain.config.hints import is_number
from dltrain.report.html import comparison_page, page
from dltrain.report.html.comparison_page import RunRow, SeedGroup
from dltrain.report.html.run_page import NAME
from dltrain.runtime.errors import UserError
from dltrain.sweeps.journal import Entry
from dltrain.sweeps.results import Group, Metric, groups


def write_after(folder: Path, entries: Iterable[Entry], by: Metric) -> None:
    """Write the page of a sweep that has just ended; what goes wrong here is told, the sweep is done."""
    try:
        write_sweep(folder / NAME, folder, entries, by)
        print(f"page:  {folder / NAME}")
    except Exception as error:  # a figure that cannot be drawn must not cost a sweep
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        print(f"{NAME} was not written: {' '.join(reason.split())[:300]}")


def write_sweep(path: Path, folder: Path, entries: Iterable[Entry], by: Metric) -> None:
    """Write the page of a sweep's jobs that have ended. Raises UserError."""
    members = [_member(folder, entry) for entry in sorted(entries, key=lambda it: it.number) if entry.outcome]
    write(path, f"Sweep {'/'.join(folder.parts[-2:])}", members, differing(members), by)


def write(path: Path, title: str, members: Sequence[RunRow], keys: Sequence[str], by: Metric) -> None:
    """Write the page of a set of runs, the best first. Raises UserError."""
    ordered = sorted(members, key=lambda it: by.key(it.figures))
    keys = [key for key in keys if not _is_implied(key, keys, members)]
    page.write(path, comparison_page.text(title, ordered, keys, seeds(ordered, keys), by.name, path.parent))


def differing(members: Sequence[RunRow]) -> list[str]:
    """Keys whose values are not the same in all runs; one that a run lacks differs, if its whole config is known."""
    keys = dict.fromkeys(key for it in members for key in it.config)

    def values(key: str) -> set[str]:
        return {repr(it.config.get(key, "–")) for it in members if key in it.config or not it.is_part}

    return [key for key in keys if len(values(key)) > 1]


def _is_implied(key: str, keys: Sequence[str], members: Sequence[RunRow]) -> bool:
    """Whether a key differs only because one option of its group has it and another has not."""
    group, dot, _ = key.partition(".")
    has_it = {repr(it.config[key]) for it in members if key in it.config}
    return bool(dot) and f"{group}.name" in keys and key != f"{group}.name" and len(has_it) == 1


def is_done(member: RunRow) -> bool:
    """Whether its figures are those of a whole run."""
    return bool(member.figures) and member.status not in ("failed", "interrupted", "pruned", "not done")


def seeds(members: Sequence[RunRow], keys: Sequence[str]) -> list[SeedGroup]:
    """Runs that are done, grouped where they differ by their seed alone; each by itself where seeds do not differ."""
    done = [it for it in members if is_done(it)]
    if "seed" not in keys:
        return [SeedGroup(it.config, 1, it.figures, {}) for it in done]
    others = [key for key in keys if key != "seed"]
    configs = {_values(it, others): it.config for it in done}
    found = by_seed(done, lambda it: _values(it, others))
    return [SeedGroup(configs[group.words], group.count, group.mean, group.spread) for group in found]


def _values(member: RunRow, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(repr(member.config.get(key)) for key in keys)


def by_seed(members: Iterable[RunRow], words: Callable[[RunRow], tuple[str, ...]]) -> list[Group]:
    """Runs that are done by their words; what was run twice with the same seed counts once."""
    once = {(words(it), repr(it.config.get("seed"))): it.figures for it in members if is_done(it)}
    return groups((of, figures) for (of, _), figures in once.items())


def _member(folder: Path, entry: Entry) -> RunRow:
    """A job by its own words, which say what differs: a thousand configs need not be read."""
    outcome = entry.outcome
    assert outcome is not None
    status = "failed" if outcome.failed else outcome.status
    seconds = outcome.seconds if math.isfinite(outcome.seconds) else math.nan
    return RunRow(
        folder / entry.folder,
        f"job {entry.number}",
        words(entry),
        status,
        outcome.figures,
        seconds,
        outcome.reason,
    )


def words(entry: Entry) -> dict[str, Any]:
    """What was typed for a job, by key."""
    parts = (word.lstrip("+").partition("=") for word in entry.overrides)
    return {key: _value(text) for key, _, text in parts}


def _value(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text
    if isinstance(value, str) and is_number(value):  # YAML takes 1e-3 for a text
        return float(value)
    return value if isinstance(value, int | float | str | list) else text
