"""One training run: plain dict in, run folder out. Builds the parts, loops over `fit`, records, saves."""

import contextlib
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dltrain import build, checkpoint, console, folders, records, schema, settings, stored
from dltrain.data.batches import Batches
from dltrain.engine import Record, State, Task, evaluate, fit
from dltrain.errors import ConfigError, InputError, Interrupted
from dltrain.progress import Progress, refuse_nonfinite
from dltrain.runtime import Runtime, device, generator_states, restore_generators, seed_everything
from dltrain.stopping import every, noted_signals, reason_to_stop

log = logging.getLogger(__name__)


@dataclass
class Run:
    """The parts of a run; `config` as it is stored, `values` with its references filled in."""

    config: dict[str, Any]
    values: dict[str, Any]
    settings: settings.Train
    runtime: Runtime
    data: build.Data
    task: Task
    state: State
    progress: Progress


def train(
    config: dict[str, Any],
    *,
    folder: Path | None = None,
    typed: Collection[str] = (),
    resolve: Callable[[dict[str, Any]], dict[str, Any]] = lambda config: config,
    origin: schema.Origin = lambda key: "",
) -> dict[str, Any]:
    """Train as a complete config says; returns what is in summary.json, and the run's `folder`.

    With `resume`, the run's own config counts and only the keys named in `typed` are taken from `config`. The config is
    stored as it is given; `resolve` fills in what it refers to, such as environment variables. `folder` must exist.
    Raises UserError, whose `exit_code` says of which kind.
    """
    began = time.perf_counter()
    start, trust = None, ()
    with records.run_log() as log_to, contextlib.ExitStack() as stack:
        if config.get("resume") is not None:
            folder, start = _checkpoint_to_resume(config["resume"])
            trust, config = config["trust"], stored.resumed(start["config"], config, typed)
        values = resolve(config)
        if start is not None:
            stored.refuse_untrusted(values, trust)
        schema.require(schema.check(values, "train", origin))
        run = _build(config, values, start, typed)
        folder = folder or folders.dated(name=run.settings.name)
        with records.writing(folder):
            log_to(folder / "train.log")
            (folder / "checkpoints").mkdir(exist_ok=True)
            records.write_config(folder / ".hydra" / "config.yaml", config)
            metrics = records.Metrics(folder / "metrics.jsonl", start["position"] if start else 0)
        stack.enter_context(contextlib.closing(metrics))
        signals = stack.enter_context(noted_signals())
        names = values["model"]["name"], values["data"]["name"]
        for line in (*build.describe(*names, run.state.model, run.data), f"device  {run.runtime.describe()}"):
            log.info(line)
        log.info("folder  %s%s", folder, f", resumed at step {run.state.step}" if start else "")
        status = _loop(run, folder, metrics, signals, began)
        summary = _finish(run, folder, metrics, status, began)
    if signals:
        raise Interrupted(f"stopped by signal {signals[0]} after saving; continue with resume={folder}", signals[0])
    return summary | {"folder": str(folder)}


def _checkpoint_to_resume(text: object) -> tuple[Path, dict[str, Any]]:
    """The run folder that `resume` names, and the content of its last checkpoint."""
    if not isinstance(text, str):
        raise ConfigError(f"resume={text}: must be the folder of a run")
    path = checkpoint.find(Path(text), "last.pt").resolve()
    start = checkpoint.load(path)
    if path.parent.name != "checkpoints" or "optimizer" not in start:
        raise InputError(f"{text}: only last.pt in the folder of a run can be resumed. Give that folder, or use init=")
    here = Path.cwd()
    folder = path.parent.parent
    return folder.relative_to(here) if folder.is_relative_to(here) else folder, start


def _build(config: dict[str, Any], values: dict[str, Any], start: dict[str, Any] | None, typed: Collection[str]) -> Run:
    """All parts of a run, at its start or where a checkpoint left it."""
    own = settings.Train(**{key.name: values[key.name] for key in fields(settings.Train)})
    # Another number of threads or another precision would round differently: a resumed run keeps its own.
    before = {} if start is None or "device" in typed else start["runtime"]
    before = {key: value for key, value in before.items() if f"device.{key}" not in typed}
    runtime = device(**(values["device"] | before))
    seed_everything(own.seed)  # a user's data set may draw from the generators
    data = build.data(values["data"], own.seed)
    task = schema.bind("task", values["task"])()
    seed_everything(own.seed)
    if own.patience is not None and data.val is None:
        raise ConfigError("patience needs a validation set: set data.val, such as data.val=0.1")
    model = build.model(values["model"], data.input_shape, data.outputs)
    build.check_fit(model, values["model"], task, data)
    build.check_last_batch(model, len(data.train.images), own.batch_size, own.accumulate)
    if own.init and start is None:
        for line in build.load_weights(model, Path(own.init)):
            log.warning("init: %s", line)
    state = State(model.to(runtime.device), build.optimizer(values["optim"], model))
    run = Run(config, values, own, runtime, data, task, state, Progress())
    if start is not None:
        _restore(run, start)
        done = run.state.step / -(-len(data.train.images) // (own.batch_size * own.accumulate))
        if done > own.epochs:
            raise ConfigError(f"epochs={own.epochs}: the run has done {done:.2f} already; set more")
    return run


def _restore(run: Run, start: dict[str, Any]) -> None:
    """Set model, optimizer, generators and progress to a checkpoint."""
    state = run.state
    try:
        state.model.load_state_dict(start["model"])
        if start["config"]["optim"]["name"] == run.values["optim"]["name"]:
            build.restore_optimizer(state.optimizer, start["optimizer"])
        else:
            log.warning("resume: the optimizer is another one and starts without moments")
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"resume: the checkpoint does not fit the model: {str(error).splitlines()[0]}") from error
    sums = start["sums"]
    state.step, state.sums = start["step"], None if sums is None else sums.to(run.runtime.device)
    run.progress = Progress(**start["progress"])
    restore_generators(start["generators"])


def _loop(run: Run, folder: Path, metrics: records.Metrics, signals: list[int], began: float) -> str:
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
    loop = {key: getattr(settings, key) for key in ("epochs", "log_every", "accumulate", "clip_norm")}
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

    status = reason(seconds=0)  # a run that has reached its limit stays there when it is resumed
    with contextlib.closing(console.Display(settings.epochs, len(train), state.step)) as display:
        for chunk in () if status else fit(state, train, val, run.task, schedule, run.runtime, **loop):
            for record in chunk:
                refuse_nonfinite(record)
                metrics.write(record)
                progress.note(record, run.task, state.model)
            display.show(chunk, state.step)
            if status := reason(time.perf_counter() - began):
                break
            if save_is_due(state.step):
                _save(run, folder, metrics.position)
    _save(run, folder, metrics.position)
    # Stopped before the first record: what is tested are the latest weights.
    progress.best = progress.best or {"split": "train", "step": state.step, "epoch": state.step / len(train)}
    complete = state.step == settings.epochs * len(train) and not signals
    return "done" if complete else status


def _save(run: Run, folder: Path, position: int) -> None:
    """Write last.pt and best.pt: everything needed to continue, to evaluate and to predict."""
    content = {
        "model": run.state.model.state_dict(),
        "optimizer": run.state.optimizer.state_dict(),
        "step": run.state.step,
        "sums": run.state.sums,
        "generators": generator_states(),
        "progress": dict(vars(run.progress)),
        "position": position,
        "config": run.config,
        "data": {
            "classes": list(run.data.train.classes),
            "input_shape": list(run.data.input_shape),
            "outputs": run.data.outputs,
            "statistics": [list(part) for part in run.data.statistics],
        },
        "runtime": {"precision": run.runtime.precision, "threads": run.runtime.threads},
        "versions": records.versions(),
    }
    best = {"model": run.progress.best_weights or content["model"], "best": run.progress.best}
    best |= {key: content[key] for key in ("config", "data", "runtime", "versions")}
    checkpoint.save(folder / "checkpoints" / "last.pt", content)
    checkpoint.save(folder / "checkpoints" / "best.pt", best)


def _finish(run: Run, folder: Path, metrics: records.Metrics, status: str, began: float) -> dict[str, Any]:
    """Test once, on the best weights; write and show the summary."""
    model, progress = run.state.model, run.progress
    if progress.best_weights:
        model.load_state_dict(progress.best_weights)
    if run.data.test is not None and status != "interrupted":
        batches = build.evaluation_batches(run.data.test, run.runtime, run.data.statistics, run.settings.batch_size)
        figures = evaluate(model, batches, run.task, run.runtime)
        progress.latest["test"] = figures
        metrics.write(Record("test", progress.best["step"], progress.best["epoch"], figures))
    summary = {
        "status": status,
        "test": progress.latest.get("test"),
        "val": progress.latest.get("val"),
        "best": progress.best,
        "steps": run.state.step,
        "train_seconds": round(progress.train_seconds, 3),
        "total_seconds": round(time.perf_counter() - began, 3),
        "examples_per_second": round(progress.examples_per_second, 1),
        "parameters": build.count_parameters(model),
        "device": run.runtime.describe(),
        **records.environment(),
    }
    records.write_json(folder / "summary.json", summary)
    console.show_end(f"{run.values['model']['name']} on {run.values['data']['name']}: {status}", summary, folder)
    return summary
