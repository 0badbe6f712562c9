"""All parts of a run, from a checked config: data, network, optimizer, where they are computed; nothing is written."""

import logging
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from dltrain.config import registry, saved_config, settings
from dltrain.config.resolution import Config
from dltrain.data import download
from dltrain.optim.step import TrainState
from dltrain.runtime import distributed, torchrun
from dltrain.runtime.devices import memory_errors, restored_device, seed_everything
from dltrain.runtime.errors import ConfigError
from dltrain.runtime.memory import to_device
from dltrain.runtime.precision import resolve_precision
from dltrain.training import build, checks, snapshot, weights
from dltrain.training.progress import Progress
from dltrain.training.resume_point import ResumePoint, require_same_data_on_all_ranks
from dltrain.training.snapshot import Run

log = logging.getLogger(__name__)

LESS_DATA = "Use less data with data.limit, or smaller images"
Load = Callable[[dict[str, Any], int], build.Data]


def prepare(
    config: Config,
    start: ResumePoint | None,
    load: Load,
    processes: torchrun.Processes = torchrun.SINGLE_PROCESS,
) -> Run:
    """All parts of a run, at its start or where a checkpoint left it."""
    values, typed = config.values, config.typed
    own = settings.Train(**{key.name: values[key.name] for key in fields(settings.Train)})
    before = {} if start is None else start.content["runtime"]
    runtime = replace(restored_device(values["device"], before, typed), processes=processes)
    # What can be known to fail is told before the data is read, which may take minutes.
    if own.patience is not None and not values["data"]["val"]:
        raise ConfigError("patience needs a validation set: set data.val, such as data.val=0.1")
    initial = None
    if start is not None:
        claimed = weights.check_weights(values["model"], start.content["data"], start.content["model"], start.path)
        runtime = resolve_precision(runtime, claimed, own.batch_size // processes.world_size, values["task"]["name"])
        del claimed
        now, then = snapshot.environment(runtime), start.content["environment"]
        snapshot.warn_changed_environment(now, then, deterministic=values["device"]["deterministic"])
    elif own.init and processes.rank == 0:  # the others get them from the first
        initial = weights.initial_weights(values["model"], Path(own.init))
    seed_everything(own.seed)  # a user's data set may draw from the generators
    forbidden = download.forbidden("" if start is None else saved_config.read_only_reason(values, typed))
    with forbidden, memory_errors(LESS_DATA):
        data = load(values["data"], own.seed)
    task = registry.partial_call("task", values["task"])()
    seed_everything(own.seed)
    model = build.model(values["model"], data.input_shape, data.outputs)
    checks.check_fit(model, values["model"], task, data.train.targets, data.input_shape, data.outputs)
    checks.check_last_batch(
        model, data.input_shape, len(data.train.images), own.batch_size, own.accumulate, processes.world_size
    )
    require_same_data_on_all_ranks(data.digests if processes.world_size > 1 else {}, processes)
    if start is None and initial is None and processes.rank == 0:
        build.initialize(model, data)
        initial = weights.pretrained_weights(model, values["model"])
    if initial is not None:
        for line in weights.copy_matching(model, initial, Path(own.init or "pretrained")):
            log.warning("init: %s", line)
    runtime = resolve_precision(runtime, model, own.batch_size // processes.world_size, values["task"]["name"])
    model = to_device(model, runtime, data.input_shape)
    state = TrainState(model, build.optimizer(values["optim"], model))
    with memory_errors(LESS_DATA):
        train = build.training_batches(data, runtime, values["data"], own)
        val = data.val and build.evaluation_batches(data.val, runtime, data.statistics, own.batch_size)
    schedule = registry.partial_call("schedule", values["schedule"])
    run = Run(config, own, runtime, data, train, val, task, schedule, state, Progress())
    if start is not None:
        snapshot.restore(run, start)
        done = run.state.step / len(train)
        if done > own.epochs:
            raise ConfigError(f"epochs={own.epochs}: the run has done {done:.2f} already; set more")
    state.parallel = distributed.wrap_ddp(model, data.input_shape, runtime)
    return run
