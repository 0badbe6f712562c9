"""One training run: plain dict in, run folder out. Builds the parts, loops over `fit`, records, saves."""

import contextlib
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import fields
from pathlib import Path
from signal import Signals
from typing import Any

from dltrain import (
    build,
    checkpoint,
    console,
    durable,
    folders,
    nonfinite,
    records,
    schema,
    settings,
    snapshot,
    stored,
)
from dltrain.data import download
from dltrain.data.batches import Batches
from dltrain.engine import Record, fit
from dltrain.errors import ConfigError, Interrupted, UserError
from dltrain.progress import Progress
from dltrain.report import recorded
from dltrain.runtime import (
    device,
    enough_memory,
    generator_states,
    keep_freed_memory,
    seed_everything,
    settled,
)
from dltrain.snapshot import Run
from dltrain.step import Diverged, State, require_finite
from dltrain.stopping import SIGNALS, every, noted_signals, reason_to_stop
from dltrain.trackers import tracked
from dltrain.trackers.tracked import Trackers

log = logging.getLogger(__name__)

Watch = Callable[[Record], str]
Load = Callable[[dict[str, Any], int], build.Data]


def train(
    config: dict[str, Any],
    *,
    folder: Path | None = None,
    typed: Collection[str] = (),
    resolve: Callable[[dict[str, Any]], dict[str, Any]] = lambda config: config,
    origin: schema.Origin = lambda key: "",
    watch: Watch = lambda record: "",
    load: Load = build.data,
) -> dict[str, Any]:
    """Train as a complete config says; returns what is in summary.json, and the run's `folder`.

    With `resume`, the run's own config counts and only the keys named in `typed` are taken from `config`. The config is
    stored as it is given; `resolve` fills in what it refers to, such as environment variables. `folder` must exist.
    `watch` gets every record, and ends the run by returning a status for it; `load` reads the data.
    Raises UserError, whose `exit_code` says of which kind.
    """
    began = time.perf_counter()
    config = {key: value for key, value in config.items() if key != "sweep"}
    with records.run_log() as log_to, contextlib.ExitStack() as stack:
        start = None
        if config.get("resume") is not None:
            start = stack.enter_context(snapshot.resumed(config["resume"]))
            folder, trust = start.folder, config["trust"]
            config = stored.resumed(start.content["config"], config, typed)
            values = resolve(config)
            stored.refuse_untrusted(values, trust)
            stored.refuse_address(values, typed)
            stored.tell_other_references(values, start.content["digests"].get("config", {}), typed)
        else:
            values = resolve(config)
        schema.require(schema.check(values, "train", origin))
        tracked.require(config)
        run = prepare(config, values, start, typed, load)
        signals = stack.enter_context(noted_signals())  # from here on there is something to save
        if start is None:
            folder = folder or folders.dated(name=run.settings.name)
            stack.enter_context(folders.locked(folder / ".lock", wait=False))
        assert folder is not None
        with durable.writing(folder):
            log_to(folder / "train.log")
            (folder / "checkpoints").mkdir(exist_ok=True)
            records.write_config(folder / ".hydra" / "config.yaml", config)
            if start is not None:  # what it showed is of other weights
                (folder / "analysis.json").unlink(missing_ok=True)
            if run.settings.report:
                recorded.write_origins(folder, values, origin, typed if start else None)
            metrics = records.Metrics(folder / "metrics.jsonl", start.content["position"] if start else 0)
        stack.enter_context(contextlib.closing(metrics))
        names = values["model"]["name"], values["data"]["name"]
        for line in (*build.describe(*names, run.state.model, run.data), f"device  {run.runtime.describe()}"):
            log.info(line)
        log.info("folder  %s%s", folder, f", resumed at step {run.state.step}" if start else "")
        trackers = stack.enter_context(contextlib.closing(Trackers(values.get("logger", {}), folder, config)))
        with enough_memory(f"Lower batch_size and raise accumulate; what was saved is kept in {folder}"):
            status = _loop(run, folder, metrics, trackers, signals, began, watch, fresh=start is None)
            from dltrain import ending  # here, not above: what draws the page is not needed for the first step

            summary = ending.finish(run, folder, metrics, trackers, status, began)
    if signals:
        message = f"stopped by {Signals(signals[0]).name} after saving; continue with resume={folder}"
        raise Interrupted(message, SIGNALS[Signals(signals[0])])
    return summary | {"folder": str(folder)}


def prepare(
    config: dict[str, Any], values: dict[str, Any], start: snapshot.Start | None, typed: Collection[str], load: Load
) -> Run:
    """All parts of a run, at its start or where a checkpoint left it."""
    own = settings.Train(**{key.name: values[key.name] for key in fields(settings.Train)})
    # Another number of threads or another precision would round differently: a resumed run keeps its own.
    before = {} if start is None or "device" in typed else start.content["runtime"]
    before = {key: value for key, value in before.items() if f"device.{key}" not in typed}
    runtime = device(**(values["device"] | before))
    # What can be known to fail is told before the data is read, which may take minutes.
    weights = None
    if start is not None:
        claimed = build.check_weights(values["model"], start.content["data"], start.content["model"], start.path)
        runtime = settled(runtime, claimed, own.batch_size)
        now, then = snapshot.environment(runtime), start.content["environment"]
        snapshot.tell_other_environment(now, then, deterministic=values["device"]["deterministic"])
    elif own.init:
        weights = build.starting_weights(values["model"], Path(own.init))
    seed_everything(own.seed)  # a user's data set may draw from the generators
    forbidden = download.forbidden("" if start is None else stored.why_only_read(values, typed))
    with forbidden, enough_memory("Use less of it with data.limit, or smaller pictures"):
        data = load(values["data"], own.seed)
    task = schema.bind("task", values["task"])()
    seed_everything(own.seed)
    if own.patience is not None and data.val is None:
        raise ConfigError("patience needs a validation set: set data.val, such as data.val=0.1")
    model = build.model(values["model"], data.input_shape, data.outputs)
    build.check_fit(model, values["model"], task, data.train.targets, data.input_shape, data.outputs)
    build.check_last_batch(model, len(data.train.images), own.batch_size, own.accumulate)
    if weights is not None:
        for line in build.load_weights(model, weights, Path(str(own.init))):
            log.warning("init: %s", line)
    keep_freed_memory()
    runtime = settled(runtime, model, own.batch_size)
    model = build.placed(model, runtime, data.input_shape)
    state = State(model, build.optimizer(values["optim"], model))
    run = Run(config, values, own, runtime, data, task, state, Progress())
    if start is not None:
        snapshot.restore(run, start)
        done = run.state.step / -(-len(data.train.images) // (own.batch_size * own.accumulate))
        if done > own.epochs:
            raise ConfigError(f"epochs={own.epochs}: the run has done {done:.2f} already; set more")
    return run


def _loop(
    run: Run,
    folder: Path,
    metrics: records.Metrics,
    trackers: Trackers,
    signals: list[int],
    began: float,
    watch: Watch,
    *,
    fresh: bool,
) -> str:
    """Train until the end or a reason to stop, saving in between; returns `done` or that reason."""
    settings, data, state, progress = run.settings, run.data, run.state, run.progress
    augmentation = {key: run.values["data"][key] for key in ("crop", "flip")}
    train = Batches(
        data.train,
        run.runtime.device,
        batch_size=settings.batch_size * settings.accumulate,
        statistics=data.statistics,
        seed=settings.seed,
        **augmentation,
    )
    val = data.val and build.evaluation_batches(data.val, run.runtime, data.statistics, settings.batch_size)
    schedule = schema.bind("schedule", run.values["schedule"])
    loop = {key: getattr(settings, key) for key in ("epochs", "log_every", "accumulate", "clip_norm", "on_nonfinite")}
    save_is_due = every(settings.checkpoint_every)

    def reason(seconds: float) -> str:
        return reason_to_stop(
            signals=signals,
            step=state.step,
            limit_steps=settings.limit_steps,
            seconds=seconds,
            max_seconds=settings.max_seconds,
            stale_epochs=progress.stale_epochs,
            patience=settings.patience,
        )

    written: dict[str, Any] = {}  # the best in best.pt; without validation it is another with every step

    def save() -> None:
        nonlocal written
        require_finite(state, settings.on_nonfinite)
        metrics.flush()
        if progress.best and (progress.best != written or not progress.best_weights):
            checkpoint.save(folder / "checkpoints" / "best.pt", snapshot.best(run))
            written = progress.best
        content = snapshot.content(run, metrics.position)
        checkpoint.save(folder / "checkpoints" / "last.pt", content, keep=settings.keep)
        trackers.saved()

    if fresh:
        save()  # whatever happens from now on, the run can be resumed
    status = reason(seconds=0)  # a run that has reached its limit stays there when it is resumed
    since = state.step, generator_states()  # where the interval of the next record begins
    try:
        with contextlib.closing(console.Display(settings.epochs, len(train), state.step)) as display:
            for chunk in () if status else fit(state, train, val, run.task, schedule, run.runtime, **loop):
                for record in chunk:
                    if settings.on_nonfinite == "stop":
                        nonfinite.refuse(record)
                    trackers.write(metrics.write(record))
                    progress.note(record, run.task, state.model)
                    since = state.step, generator_states()
                    status = watch(record) or status
                display.show(chunk, state.step, progress.best)
                if status := reason(time.perf_counter() - began) or status:
                    break
                if save_is_due(state.step):
                    save()
        # Stopped before the first record: what is tested are the latest weights.
        progress.best = progress.best or {"split": "train", "step": state.step, "epoch": state.step / len(train)}
        save()
    except (Diverged, nonfinite.NoNumber) as error:
        if progress.best_weights:  # it may be newer than the last checkpoint
            checkpoint.save(folder / "checkpoints" / "best.pt", snapshot.best(run))
        if isinstance(error, nonfinite.NoNumber):
            raise
        tensor = nonfinite.name_tensor(
            state, train, run.task, run.runtime, step=error.step, since=since, accumulate=settings.accumulate
        )
        raise UserError(f"{error}, first in {tensor}\n{nonfinite.ADVICE}: resume={folder} optim.lr=…") from error
    complete = state.step == settings.epochs * len(train) and not signals
    return "done" if complete else status
