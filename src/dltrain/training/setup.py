"""Prepares all parts of a run from a checked config: data, network, optimizer, device; writes nothing."""

import logging
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from dltrain.config import registry, saved_config, settings
from dltrain.config.resolution import Config
from dltrain.data import download
from dltrain.data.splits import by_rules, rules
from dltrain.optim.step import Task, TrainState
from dltrain.runtime import distributed
from dltrain.runtime.devices import (
    memory_errors,
    resolve_precision,
    resolve_threads,
    restored_device,
    seed_everything,
)
from dltrain.runtime.errors import ConfigError, InputError
from dltrain.runtime.memory import to_device
from dltrain.runtime.torchrun import SINGLE_PROCESS, Processes
from dltrain.training import build, checks, snapshot, weights
from dltrain.training.progress import Progress
from dltrain.training.resume_point import ResumePoint, require_same_data_on_all_ranks
from dltrain.training.snapshot import Run

log = logging.getLogger(__name__)

LESS_DATA = "Use fewer examples with data.limit, or smaller images"
Load = Callable[[dict[str, Any], int], build.Data]


def prepare(config: Config, start: ResumePoint | None, load: Load, processes: Processes = SINGLE_PROCESS) -> Run:
    """Build all parts of a run, at its start or restored from a checkpoint."""
    values, typed = config.values, config.typed
    options = settings.Train(**{key.name: values[key.name] for key in fields(settings.Train)})
    per_rank = options.batch_size // processes.world_size
    before = {} if start is None else start.content["runtime"]
    runtime = replace(restored_device(values["device"], before, typed), processes=processes)
    runtime = checks.check_compile(checks.check_graph(runtime, values), values)
    kind = registry.base_option("task", values["task"]["name"])
    # Mistakes are raised before the data is read, which may take minutes.
    schedule = registry.partial_call("schedule", values["schedule"], scores=()).keywords
    has_val = values["data"]["val"] or values["data"].get("folds")
    if (options.patience is not None or "scores" in schedule) and not has_val:
        key = f"schedule={values['schedule']['name']}" if "scores" in schedule else "patience"
        raise ConfigError(f"{key} needs a validation set: set data.val, such as data.val=0.1")
    checks.check_task(values["task"])
    if options.hardest is not None and processes.world_size > 1:
        raise ConfigError("hardest: works with one process only. Set hardest=null proxy=null")
    initial = None
    if start is not None:
        claimed = weights.check_weights(values["model"], start.content["data"], start.content["model"], start.path)
        runtime = resolve_precision(runtime, claimed, per_rank, kind)
        del claimed
        if options.proxy is not None:
            saved = start.content.get("proxy") or {}
            node = values["model"] | options.proxy
            weights.check_weights(node, start.content["data"], saved.get("model", {}), start.path)
    elif options.init and processes.rank == 0:  # the other ranks get them from the first
        initial = weights.initial_weights(values["model"], Path(options.init), is_partial=options.init_partial)
    seed_everything(options.seed)  # a user's data set may draw from the generators
    forbidden = download.forbidden("" if start is None else saved_config.read_only_reason(values, typed))
    split_by = by_rules(rules.get() if start is None else start.content["data"].get("rules", 1))
    with forbidden, memory_errors(LESS_DATA), split_by:
        data = load(values["data"], options.seed)
    if start is None and kind == "classification" and len(classes := data.train.classes) == 1:
        raise InputError(f"data: all examples are of one class, {classes[0]}; a classifier needs two or more")
    if options.metric is not None and data.val is None:
        log.warning("metric=%s: chooses nothing without a validation set; best.pt has the last weights", options.metric)
    task = build.task(values, data.outputs, data.class_counts.get("train"))
    if values["metric"] == "auroc" and data.val is not None and len(data.val.targets.unique()) < 2:
        raise InputError("metric=auroc: the validation set has a single class; raise data.val or set another metric")
    seed_everything(options.seed)
    model = _network(values["model"], options, data, task, processes)
    proxy = None
    if options.proxy is not None:
        try:
            proxy = _network(values["model"] | options.proxy, options, data, task, processes)
            whole = options.batch_size, options.accumulate  # it picks from whole batches
            checks.check_last_batch(proxy, data.input_shape, len(data.train.images), *whole)
        except ConfigError as error:
            raise ConfigError(f"proxy: {str(error).replace('model.', 'proxy.')}") from error
        if start is None:
            build.initialize(proxy, data)
    runtime = resolve_threads(runtime, model, data.input_shape, per_rank)
    if start is not None:
        now, then = snapshot.environment(runtime), start.content["environment"]
        snapshot.warn_changed_environment(now, then, deterministic=values["device"]["deterministic"])
    require_same_data_on_all_ranks(data.digests if processes.world_size > 1 else {}, processes)
    crop = values["data"].get("crop")
    if start is None and crop and crop >= (side := min(data.input_shape[1:])):
        raise ConfigError(f"data.crop={crop}: must be less than the {side} pixels of the images' side")
    if start is None and initial is None and processes.rank == 0:
        build.initialize(model, data)
        initial = weights.pretrained_weights(model, values["model"])
    if initial is not None:
        is_partial = options.init_partial or not options.init
        for line in weights.copy_matching(model, initial, Path(options.init or "pretrained"), is_partial=is_partial):
            log.warning("init: %s", line)
    runtime = resolve_precision(runtime, model, per_rank, kind)
    with memory_errors("Use a smaller model, or device=cpu"):
        model = to_device(model, runtime, data.input_shape)
        state = TrainState(model, build.optimizer(values["optim"], model))
        if proxy is not None:
            proxy = to_device(proxy, runtime, data.input_shape)
            state.proxy = TrainState(proxy, build.optimizer(values["optim"], proxy))
    with memory_errors(LESS_DATA):
        train = build.training_batches(data, runtime, values["data"], options)
        val = data.val and build.evaluation_batches(data.val, runtime, data.statistics, options.batch_size)
    run = Run(config, options, runtime, data, train, val, task, state, Progress())
    if start is not None:
        snapshot.restore(run, start)
        done = run.state.step / len(train)
        if done > options.epochs:
            raise ConfigError(f"epochs={options.epochs}: the run has already done {done:.2f} epochs; set more")
    state.parallel = distributed.wrap_ddp(model, data.input_shape, runtime)
    return run


def _network(
    node: dict[str, Any], options: settings.Train, data: build.Data, task: Task, processes: Processes
) -> nn.Module:
    """Build a network; raise ConfigError if it does not fit the data or its batches."""
    network = build.model(node, data.input_shape, data.outputs)
    checks.check_fit(network, node, task, data.train.targets, data.input_shape, data.outputs)
    sizes = options.batch_size, options.accumulate, processes.world_size, options.hardest
    checks.check_last_batch(network, data.input_shape, len(data.train.images), *sizes)
    return network
