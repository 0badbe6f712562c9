"""One training run, from its config to its folder: builds the parts, loops over `fit`, records and saves."""

import contextlib
import logging
import shlex
import time
from collections.abc import Callable, Collection
from pathlib import Path
from signal import Signals
from typing import Any

from dltrain.config import registry, saved_config, signatures
from dltrain.config.resolution import Config, resolved
from dltrain.engine import Record, fit
from dltrain.optim.step import NonFiniteLoss
from dltrain.report import console, run_files
from dltrain.report.trackers import run_trackers
from dltrain.runtime import distributed, torchrun
from dltrain.runtime.devices import generator_states, memory_errors
from dltrain.runtime.distributed import SignalSync
from dltrain.runtime.errors import ConfigError, Interrupted, UserError
from dltrain.runtime.signals import SIGNALS, recorded_signals
from dltrain.training import build, nonfinite, snapshot
from dltrain.training.hooks import HookError, call_hooks
from dltrain.training.resume_point import open_resume_point
from dltrain.training.run_dir import RunDir, open_run_dir
from dltrain.training.setup import Load, prepare
from dltrain.training.snapshot import Run
from dltrain.training.stopping import every, reason_to_stop

log = logging.getLogger(__name__)

Watch = Callable[[Record], str]
FIT_OPTIONS = ("epochs", "log_every", "accumulate", "clip_norm", "on_nonfinite", "ema", "hardest")


def train(
    config: Config | dict[str, Any],
    *,
    typed: Collection[str] | None = None,
    folder: Path | None = None,
    watch: Watch = lambda record: "",
    load: Load = build.data,
    show: Callable[[dict[str, Any]], None] = lambda line: None,
) -> dict[str, Any]:
    """Train a model as a complete config says; return the content of summary.json and the `folder` of the run.

    Args:
        config: what `dltrain.compose` returns; its references, such as ${oc.env:HOME}, are stored as they are
        typed: keys to take from `config`, required with `resume`; the resumed run sets all others
        folder: existing folder to write to; None creates a dated one
        watch: receives every record; ends the run by returning a status
        load: reads the data
        show: receives every line of metrics.jsonl when it is written

    Raises UserError, whose `exit_code` tells the kind of error.
    """
    began = time.perf_counter()
    if isinstance(config, dict):
        if typed is None and config.get("resume") is not None:
            raise ConfigError("resume: only named keys are taken from the config; name them, as in typed=['epochs']")
        config = resolved(config, "train", typed or ())
    processes = torchrun.processes()
    with run_files.run_log() as log_to, contextlib.ExitStack() as stack:
        # A sweep knows the folders of its jobs, and passes them.
        if (again := distributed.begin_run(processes, recall=folder is None)) is not None:
            log.warning("started again by torchrun: continuing from %s", again)
            config = saved_config.restart_config(config, again)
        stack.enter_context(distributed.process_group(processes))
        start = None
        if config.stored.get("resume") is not None:
            start = stack.enter_context(open_resume_point(config.stored["resume"], processes))
            config = saved_config.resumed(config, start.content)
        run_trackers.require(config.stored)
        run = prepare(config, start, load, processes)
        run.began = began - run.progress.total_seconds
        sync = SignalSync(processes, stack.enter_context(recorded_signals(ignore_repeats=processes.world_size > 1)))
        with contextlib.ExitStack() as closing:
            output = None
            if processes.rank == 0:
                output = closing.enter_context(open_run_dir(run, start, folder, log_to))
                output.show = show
                output.log_start(run, resumed=start is not None)
            where = output.folder if output else "the run's folder"
            with memory_errors(f"Lower batch_size and raise accumulate; the checkpoints are kept in {where}"):
                if start is None or start.content["config"] != config.stored:
                    # From now on the run can be resumed with its new config; earlier checkpoints stay.
                    _save(run, output, keep=1)
                if output is not None:
                    distributed.remember_folder(str(output.folder), processes)
                status = _loop(run, output, sync, began, watch)
                from dltrain.training import finish  # imported here so that the page does not delay the first step

                summary = finish.finish(run, output, status)
        sync(at_once=True)  # the first rank has written the files until now
    summary["folder"] = str(where)
    if sync.signals:
        number = Signals(sync.signals[0])
        stopped = f"stopped by {number.name} after saving. Continue with {_resume_command(run, where)}"
        raise Interrupted(stopped, SIGNALS[number], summary)
    return summary


def _resume_command(run: Run, folder: Path | str) -> str:
    """Return the command that continues a run; with several processes only its overrides, as torchrun starts it."""
    named = ["dltrain", "resume", str(folder)] if run.runtime.processes.world_size == 1 else [f"resume={folder}"]
    packages = sorted({package for _, package in saved_config.custom_imports(run.config.values)})
    return shlex.join(named + [f"trust=[{','.join(packages)}]"] * bool(packages))


def _save(run: Run, output: RunDir | None, keep: int) -> None:
    """Write a checkpoint to resume from. Every rank must call it; the first has an `output` and writes."""
    content = snapshot.last_checkpoint(run, output.metrics.position if output else 0)
    if output is not None:
        output.save(run, content, keep)


def _loop(run: Run, output: RunDir | None, sync: SignalSync, began: float, watch: Watch) -> str:
    """Train until the end or a reason to stop, saving in between; return `done` or that reason."""
    settings, state, progress, processes = run.settings, run.state, run.progress, run.runtime.processes
    options = {key: getattr(settings, key) for key in FIT_OPTIONS}
    steps, save_is_due = len(run.train), every(settings.checkpoint_every)
    by_steps = isinstance(settings.checkpoint_every, int)
    schedule = registry.partial_call("schedule", run.config.values["schedule"], scores=progress.scores)
    hooks = {name: signatures.user_object(name) for name in settings.hooks}

    def reason(seconds: float) -> str:
        return reason_to_stop(settings, sync.signals, state.step, seconds, progress.stale_epochs)

    sync(at_once=True)
    status = reason(seconds=0)  # a run that has reached its limit stays there when it is resumed
    since = state.step, generator_states()  # where the interval of the next record begins
    distributed.seed_rank(processes, settings.seed, state.step)
    try:
        chunks = fit(state, run.train, run.val, run.task, schedule, run.runtime, **options)
        if settings.profile and output is not None:
            from dltrain.training.profiling import profiled  # imported only if asked for

            chunks = profiled(chunks, settings.profile, output.folder)
        display = console.Display(settings.epochs, steps, state.step, settings.metric)
        with contextlib.closing(display), contextlib.closing(chunks):
            for chunk in () if status else chunks:
                for record in chunk:
                    if settings.on_nonfinite == "stop":
                        nonfinite.require_finite_metrics(record)
                    if output is not None:
                        output.write(record)
                    progress.note(record, run.task, state)
                    status = watch(record) or status
                if chunk and hooks:
                    status = call_hooks(hooks, chunk, state, processes) or status
                if chunk:
                    since = state.step, generator_states()
                display.show(chunk, state.step, progress.best)
                due = save_is_due(state.step)
                seconds, due = sync(time.perf_counter() - began, due, at_once=by_steps and due)
                if status := reason(seconds) or status:
                    break
                if due:
                    _save(run, output, settings.keep)
                distributed.seed_rank(processes, settings.seed, state.step)
        sync(at_once=True)
        state.parallel = None  # it holds the process group
        if not progress.best_weights and progress.best.get("step") != state.step:
            # Stopped between two records: the latest weights are tested.
            progress.best = {"split": "train", "step": state.step, "epoch": state.step / steps}
        _save(run, output, settings.keep)
        state.flush = list  # it holds the graphs, and their memory
    except HookError as error:
        try:
            _save(run, output, settings.keep)
            saved = "The run is saved"
        except NonFiniteLoss:  # the hook may have written such weights
            saved = "A weight is not finite; earlier checkpoints are kept"
        raise HookError(f"{error}\n{saved}: {_resume_command(run, output.folder if output else 'FOLDER')}") from error
    except (NonFiniteLoss, nonfinite.NonFiniteMetric) as error:
        if progress.best_weights and output is not None:  # they may be newer than the last checkpoint
            output.save_best(run)
        if isinstance(error, nonfinite.NonFiniteMetric):
            raise
        raise _nonfinite_error(error, run, output, since) from error
    complete = state.step == settings.epochs * steps and not sync.signals
    return "done" if complete else status or "interrupted"  # by a signal in the last save


def _nonfinite_error(error: NonFiniteLoss, run: Run, output: RunDir | None, since: nonfinite.Position) -> UserError:
    """Return an error with the first tensor that is not finite; `since` is the start of the interval of the step."""
    tensor = nonfinite.name_tensor(
        run.state, run.train, run.task, run.runtime, step=error.step, since=since, accumulate=run.settings.accumulate
    )
    named = [name for name in distributed.all_gather_text(tensor, run.runtime.processes) if name != nonfinite.NOT_FOUND]
    again = f"{_resume_command(run, output.folder if output else 'FOLDER')} optim.lr=…"
    return UserError(f"{error}, first in {(named or [tensor])[0]}\n{nonfinite.ADVICE}: {again}")
