"""Run a sweep (`dltrain train -m`): plan, folder, journal, jobs, results."""

import contextlib
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Any

from dltrain.config import registry, saved_config
from dltrain.config.composition import Composed, Sweeping
from dltrain.config.metric_names import shared_metric
from dltrain.config.resolution import resolve
from dltrain.config.safe_yaml import read_yaml
from dltrain.config.settings import Sweep
from dltrain.report.run_rows import group_by_data, metric
from dltrain.runtime import folders, system_info
from dltrain.runtime.errors import ConfigError, UserError
from dltrain.runtime.signals import SIGNALS, recorded_signals
from dltrain.sweeps import plan, sweep_file
from dltrain.sweeps.executors import select, slurm
from dltrain.sweeps.journal import Entry, Journal, read
from dltrain.sweeps.plan import Composer, PlannedJob
from dltrain.sweeps.sweep_file import Request

if TYPE_CHECKING:
    from dltrain.sweeps.search import Space


def run(request: Request, sweeping: Sweeping) -> int:
    """Plan, check and run a sweep; return the exit code. Raises UserError, before the first job, for a faulty sweep."""
    composer = Composer(sweeping)
    raw = sweeping.settings
    space = _space(composer, raw)
    jobs = plan.grid(composer) if space is None else map(space.job_overrides, space.corners())
    typed = None if request.typed_keys is None else _typed(composer, raw, request.typed_keys)
    with select.threads_restored():
        planned, duplicates = plan.checked(map(composer.compose, jobs), request.command, typed)
        settings = Sweep(**raw)
        _check_settings(request, settings, planned)
        if settings.metric is None and shared_metric(job.composed.config for job in planned):
            values = resolve(planned[0].composed.config)
            settings = replace(settings, metric=f"{'val' if values['data'].get('val') else 'test'}_{values['metric']}")
        if settings.dry:
            return _show(planned, duplicates, space)
        with (
            _folder(request) as folder,
            folders.locked(folder / ".lock", wait=False),
            contextlib.closing(Journal(folder / "journal.jsonl")) as journal,
        ):
            journal.require(drawn=space is not None)
            sweep_file.write(request, folder, sweeping.overrides)
            system_info.keep_code(folder)
            if duplicates and space is None:
                print(f"left out {duplicates} duplicate job{'s' * (duplicates != 1)}")
            return _run_jobs(request, settings, folder, journal, composer, planned, space, typed)


@contextlib.contextmanager
def _folder(request: Request) -> Iterator[Path]:
    """Yield the folder of the sweep; a new one is removed if an error comes before the first job."""
    if request.folder is not None:
        folders.refuse_links(request.folder)
        yield request.folder
        return
    folder = folders.dated_folder("sweeps")
    try:
        yield folder
    except UserError:
        if not any(entry.begun for entry in read(folder)):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _space(composer: Composer, raw: Any) -> "Space | None":
    if not isinstance(raw, dict) or raw.get("search") not in ("random", "tpe"):
        return None
    from dltrain.sweeps import search

    search.require()
    return search.Space(composer)


def _typed(composer: Composer, raw: Any, keys: Collection[str]) -> plan.TrustedOverrides:
    """Return the trust and keys typed now, for a sweep with overrides from a file.

    Raises ConfigError if a config file that those overrides choose says how the sweep runs.
    """
    typed = {override.key_or_group: override.value() for override in composer.parsed()}
    defaults = read_yaml(registry.config_folder() / "sweep" / "default.yaml")
    for key, value in raw.items() if isinstance(raw, dict) else ():
        if f"sweep.{key}" not in (*typed, *sweep_file.OWN) and value != defaults.get(key):
            raise ConfigError(f"sweep.{key}={value}: comes from a file that the sweep names. Type it yourself")
    trust: Any = typed.get("trust") or []
    return plan.TrustedOverrides([trust] if isinstance(trust, str) else list(map(str, trust)), keys)


def _check_settings(request: Request, settings: Sweep, planned: Sequence[PlannedJob]) -> None:
    """Raise ConfigError for settings that contradict each other or the jobs."""
    select.require(settings, [job.composed.config for job in planned])
    name, config = settings.metric, planned[0].composed.config
    if name is not None and not name.startswith(("val_", "test_")):
        raise ConfigError(f"sweep.metric={name}: must be a metric of val or test, such as val_accuracy or test_loss")
    if settings.search == "grid" and settings.pruner is None:
        return
    if settings.search == "grid":
        raise ConfigError(f"sweep.pruner={settings.pruner}: needs sweep.search=random or tpe")
    if request.command != "train":
        raise ConfigError(f"sweep.search={settings.search}: only for dltrain train")
    if (name is None or name.startswith("val_")) and not (config["data"].get("val") or config["data"].get("folds")):
        raise ConfigError(f"sweep.search={settings.search}: needs a validation set; set data.val, such as data.val=0.1")
    if settings.pruner is not None and (name or "val_").startswith("test_"):
        raise ConfigError(f"sweep.pruner={settings.pruner}: needs a metric of val")


def _show(planned: Sequence[PlannedJob], duplicates: int, space: "Space | None") -> int:
    """Print the jobs for sweep.dry; return the exit code."""
    if space is not None:
        for key, distribution in space.distributions.items():
            print(f"{key}  {distribution}")
        print(f"checked {len(planned)} corners of the search space, all valid")
        return 0
    for number, job in enumerate(planned):
        print(f"job {number}  {' '.join(job.composed.overrides)}")
    left_out = f"; left out {duplicates} duplicate{'s' * (duplicates != 1)}" if duplicates else ""
    print(f"{len(planned)} job{'s' * (len(planned) != 1)}{left_out}")
    return 0


def _run_jobs(
    request: Request,
    settings: Sweep,
    folder: Path,
    journal: Journal,
    composer: Composer,
    planned: Sequence[PlannedJob],
    space: "Space | None",
    typed: plan.TrustedOverrides | None,
) -> int:
    # From here on torch is needed; the faults of the sweep have been reported.
    from dltrain.sweeps import scheduler
    from dltrain.sweeps.live_view import View
    from dltrain.sweeps.search import Search

    command = request.command
    composed = _numbered(planned, journal) if space is None else {}
    queue = scheduler.unfinished(command, folder, journal, retry_failed=settings.retry_failed)
    kept = sum(entry.outcome is not None and entry.number not in queue for entry in journal.entries.values())
    search = None
    if space is not None:
        task = resolve(planned[0].composed.config)["task"]["name"]
        usual = "val_accuracy" if registry.base_option("task", task) == "classification" else "val_loss"
        objective = metric([], settings.metric or usual, settings.direction)
        search = Search(folder, settings, space, objective, journal, typed)
        composed = {number: search.planned(journal.entries[number].params).composed for number in queue}
        search.tell_all()
    ids = [journal.entries[number].cluster_id for number in queue]
    is_slurm = settings.executor == "slurm" and not select.is_local(settings)
    if not is_slurm and (busy := slurm.still_queued(list(filter(None, ids)))):
        raise ConfigError(f"{folder}: Slurm still has {len(busy)} of its jobs. Add sweep.executor=slurm or cancel them")
    uncovered = [number for number in queue if number not in composed]
    queue = [number for number in queue if number in composed]
    count = len(journal.entries)
    total = count if space is None else max(settings.trials, count)
    if request.folder is not None:
        failed = sum(entry.failed for entry in journal.entries.values()) * (not settings.retry_failed)
        again = f"; sweep.retry_failed=true runs the {failed} that failed again" if failed else ""
        print(f"resuming {folder}: {len(queue)} of {count} job{'s' * (count != 1)} left to run{again}")
    if uncovered:
        print(f"left out {len(uncovered)} unfinished job{'s' * (len(uncovered) != 1)}, not covered by the overrides")
    jobs = len(queue) + total - count
    configs = [job.config for job in composed.values()] or [job.composed.config for job in planned]
    cut_off = False
    with recorded_signals() as signals:
        if queue or search is not None:
            if select.is_local(settings):
                select.prepare(configs, command)
            executor = select.executor(configs, settings, folder, jobs=jobs, waits=settings.pruner is not None)
            view = View(total, journal.entries, composer.constant, settings.metric, settings.direction, kept=kept)
            with contextlib.closing(executor), contextlib.closing(view):
                running = scheduler.Scheduler(command, folder, journal, composed, executor, settings, view, search)
                running.queue.extend(queue)
                cut_off = running.run(signals)
    entries = list(journal.entries.values())
    _show_results(folder, entries, settings)
    if signals or cut_off:
        packages = {package for config in configs for _, package in saved_config.custom_imports(config)}
        trusted = set(filter(str.isidentifier, packages))
        again = sweep_file.command_to_resume(request, folder, composer.sweeping.overrides, trusted)
        print(f"stopped; continue with {again}")
        return SIGNALS[Signals(signals[0]) if signals else Signals.SIGTERM]
    return int(any(entry.outcome is None or entry.outcome.code for entry in entries))


def _show_results(folder: Path, entries: Sequence[Entry], settings: Sweep) -> None:
    """Print the table of the jobs that have ended, and write results.csv and the page."""
    from dltrain.report.html import comparison_page
    from dltrain.sweeps import results

    results.write_results(folder / "results.csv", entries)
    metrics = [entry.metrics for entry in entries]
    groups = group_by_data(results.run_rows(folder, entries), metric(metrics, settings.metric, settings.direction))
    results.show(groups, "job", "results.csv")
    print(f"table: {folder / 'results.csv'}")
    comparison_page.write_after(folder, groups)
    known = sorted({name for values in metrics for name in values})
    if settings.metric is not None and known and settings.metric not in known:
        print(f"sweep.metric={settings.metric}: no job has this metric; available: {', '.join(known)}")


def _numbered(planned: Sequence[PlannedJob], journal: Journal) -> dict[int, Composed]:
    """Return the jobs by number; known jobs keep theirs, new ones are added to the journal with the next numbers."""
    known = {entry.digest for entry in journal.entries.values()}
    added = [job for job in planned if job.digest not in known]
    first = max(journal.entries, default=-1) + 1
    journal.plan([plan.entry(number, job) for number, job in enumerate(added, first)])
    numbers = {entry.digest: entry.number for entry in journal.entries.values()}
    return {numbers[job.digest]: job.composed for job in planned}
