"""All parts of a run, from a checked config: data, network, optimizer, where they are computed; nothing is written."""

import logging
from collections.abc import Callable, Collection
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from dltrain.config import registry, saved_config, settings
from dltrain.data import download
from dltrain.optim.step import State
from dltrain.runtime import distributed, torchrun
from dltrain.runtime.devices import device_as_before, enough_memory, seed_everything
from dltrain.runtime.errors import ConfigError
from dltrain.runtime.memory import placed
from dltrain.runtime.precision import settled
from dltrain.training import build, checks, snapshot, weights
from dltrain.training.progress import Progress
from dltrain.training.resume_point import Start, refuse_different_data
from dltrain.training.snapshot import Run

log = logging.getLogger(__name__)

Load = Callable[[dict[str, Any], int], build.Data]


def prepare(
    config: dict[str, Any],
    values: dict[str, Any],
    start: Start | None,
    typed: Collection[str],
    load: Load,
    processes: torchrun.Processes = torchrun.ALONE,
) -> Run:
    """All parts of a run, at its start or where a checkpoint left it."""
    own = settings.Train(**{key.name: values[key.name] for key in fields(settings.Train)})
    before = {} if start is None else start.content["runtime"]
    runtime = replace(device_as_before(values["device"], before, typed), processes=processes)
    # What can be known to fail is told before the data is read, which may take minutes.
    if own.patience is not None and not values["data"]["val"]:
        raise ConfigError("patience needs a validation set: set data.val, such as data.val=0.1")
    initial = None
    if start is not None:
        claimed = weights.checked(values["model"], start.content["data"], start.content["model"], start.path)
        runtime = settled(runtime, claimed, own.batch_size // processes.world, values["task"]["name"])
        del claimed
        now, then = snapshot.environment(runtime), start.content["environment"]
        snapshot.tell_other_environment(now, then, deterministic=values["device"]["deterministic"])
    elif own.init and processes.rank == 0:  # the others get them from the first
        initial = weights.starting(values["model"], Path(own.init))
    seed_everything(own.seed)  # a user's data set may draw from the generators
    forbidden = download.forbidden("" if start is None else saved_config.why_only_read(values, typed))
    with forbidden, enough_memory("Use less of it with data.limit, or smaller pictures"):
        data = load(values["data"], own.seed)
    task = registry.bind("task", values["task"])()
    seed_everything(own.seed)
    model = build.model(values["model"], data.input_shape, data.outputs)
    checks.check_fit(model, values["model"], task, data.train.targets, data.input_shape, data.outputs)
    checks.check_last_batch(
        model, data.input_shape, len(data.train.images), own.batch_size, own.accumulate, processes.world
    )
    refuse_different_data(data.digests if processes.world > 1 else {}, processes)
    if start is None and initial is None and processes.rank == 0:
        build.initialize(model, data)
        initial = weights.pretrained(model, values["model"])
    if initial is not None:
        for line in weights.copied(model, initial, Path(own.init or "pretrained")):
            log.warning("init: %s", line)
    runtime = settled(runtime, model, own.batch_size // processes.world, values["task"]["name"])
    model = placed(model, runtime, data.input_shape)
    state = State(model, build.optimizer(values["optim"], model))
    run = Run(config, values, own, runtime, data, task, state, Progress())
    if start is not None:
        snapshot.restore(run, start)
        done = run.state.step / -(-len(data.train.images) // (own.batch_size * own.accumulate))
        if done > own.epochs:
            raise ConfigError(f"epochs={own.epochs}: the run has done {done:.2f} already; set more")
    state.parallel = distributed.replicated(model, data.input_shape, runtime)
    return run
