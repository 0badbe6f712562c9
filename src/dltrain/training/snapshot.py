"""The parts of a run, and their state in a checkpoint: all that is needed to resume bit-identically."""

import logging
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dltrain.config import saved_config, settings
from dltrain.config.resolution import Config
from dltrain.data.loader import TensorLoader
from dltrain.optim.muon import Muon
from dltrain.optim.proxy import require_finite_proxy
from dltrain.optim.step import NonFiniteLoss, Task, TrainState, accumulate_metrics, require_finite
from dltrain.runtime import distributed, system_info
from dltrain.runtime.devices import Runtime, generator_states, restore_generators
from dltrain.runtime.errors import ConfigError, InputError, first_line
from dltrain.training import build
from dltrain.training.progress import Progress
from dltrain.training.resume_point import ResumePoint

log = logging.getLogger(__name__)

# What optimizers keep for each weight, besides a momentum buffer.
MOMENTS: dict[type, set[str]] = {
    torch.optim.SGD: set(),
    torch.optim.Adam: {"step", "exp_avg", "exp_avg_sq"},
    torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"},
    torch.optim.RMSprop: {"step", "square_avg"},
    Muon: set(),
}


@dataclass
class Run:
    """The parts of a run."""

    config: Config
    settings: settings.Train
    runtime: Runtime
    data: build.Data
    train: TensorLoader
    val: TensorLoader | None
    task: Task
    state: TrainState
    progress: Progress
    began: float = field(default_factory=time.perf_counter)  # less the seconds before a resume

    @property
    def total_seconds(self) -> float:
        """Seconds of the whole run, over all its starts."""
        return round(time.perf_counter() - self.began, 3)


def last_checkpoint(run: Run, position: int) -> dict[str, Any]:
    """Return what last.pt holds. Every rank must call it: the first sums the metrics of all.

    `position` is the length of metrics.jsonl. Raises NonFiniteLoss, so that no such weights replace good ones.
    """
    accumulate_metrics(run.state, run.task)
    require_finite(run.state, run.settings.on_nonfinite)
    if (proxy := run.state.proxy) is not None:
        require_finite_proxy(proxy)
    distributed.reduce_to_first(run.state.sums, run.runtime.processes)
    return {
        "model": run.state.model.state_dict(),
        "optimizer": run.state.optimizer.state_dict(),
        "averages": run.state.ema_weights,
        **({} if proxy is None else {"proxy": _proxy_content(proxy)}),
        "step": run.state.step,
        "sums": run.state.sums,
        "faults": run.state.faults,
        "generators": generator_states(),
        "progress": vars(run.progress) | {"total_seconds": run.total_seconds},
        "position": position,
        "digests": {"data": run.data.digests, "config": saved_config.digests(run.config.values)},
        **_common(run),
    }


def _proxy_content(proxy: TrainState) -> dict[str, Any]:
    return {"model": proxy.model.state_dict(), "optimizer": proxy.optimizer.state_dict()}


def best_checkpoint(run: Run) -> dict[str, Any]:
    """Return what best.pt holds; without validation the last weights are the best."""
    weights = run.progress.best_weights or run.state.eval_weights()
    return {"model": weights, "best": run.progress.best, "digests": {"data": run.data.digests}, **_common(run)}


def _common(run: Run) -> dict[str, Any]:
    return {
        "config": run.config.stored,
        "data": {
            "classes": list(run.data.train.classes),
            "input_shape": list(run.data.input_shape),
            "outputs": run.data.outputs,
            "class_counts": run.data.class_counts.get("train"),
            "statistics": [list(part) for part in run.data.statistics],
            "range": run.data.range,
            **({} if run.data.rules < 2 else {"rules": run.data.rules, "levels": run.data.train.levels}),
        },
        "runtime": {"precision": run.runtime.precision, "threads": run.runtime.threads}
        | ({} if run.runtime.device.type == "cpu" else {"device": run.runtime.device.type}),
        "environment": environment(run.runtime),
    }


def restore(run: Run, start: ResumePoint) -> None:
    """Set model, optimizer, generators and progress to a checkpoint. Raises InputError if the data differs."""
    state, content = run.state, start.content
    before = content["digests"].get("data", {})
    if changed := [split for split in before if before[split] != run.data.digests.get(split)]:
        problem = f"the data has changed since ({', '.join(changed)}): this would be a different run"
        raise InputError(f"resume: {problem}\nBring the data back, or start a new run with init=")
    try:
        same_optimizer = content["config"]["optim"]["name"] == run.config.values["optim"]["name"]
        if not same_optimizer:
            log.warning("resume: another optimizer: it starts without moments")
        for part, saved in [(state, content)] + ([(state.proxy, content["proxy"])] if state.proxy else []):
            part.model.load_state_dict(saved["model"])
            if same_optimizer:
                restore_optimizer(part.optimizer, saved["optimizer"])
            part.step = content["step"]
        _check_metrics(run, content)
        for name in ("sums", "faults"):
            tensor = content[name]
            setattr(state, name, None if tensor is None else tensor.to(run.runtime.device))
        if run.settings.on_nonfinite == "stop":  # steps that were skipped earlier must not stop the run now
            state.faults = None
        if run.settings.ema is not None and (averages := content.get("averages")) is not None:
            state.ema_weights = {key: value.to(run.runtime.device) for key, value in averages.items()}
        run.progress = Progress(**content["progress"])
        restore_generators(content["generators"])
        for part in filter(None, (state, state.proxy)):
            require_finite(part, run.settings.on_nonfinite)
    except (NonFiniteLoss, RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise InputError(f"{start.path}: cannot be resumed ({first_line(error)})") from error


def _check_metrics(run: Run, content: dict[str, Any]) -> None:
    """Raise ValueError, or what a task raises, for metrics with which the run would fail later."""
    sums, faults, progress = content["sums"], content["faults"], content["progress"]
    if sums is not None:
        if sums.dtype != torch.float64 or sums.ndim != 1:
            raise ValueError("invalid sums of metrics")
        run.task.metrics([max(1.0, float(sums[0])), *sums[1:].tolist()])  # raises for a wrong number of sums
    if faults is not None and ((faults.dtype, faults.ndim) != (torch.float32, 0) or not 0 <= faults < torch.inf):
        raise ValueError("invalid count of non-finite losses")
    best = progress["best"]
    numbers = [progress[key] for key in ("train_seconds", "examples_per_second", "epoch_seconds")]
    numbers += [best["step"], best["epoch"]] if best else []
    numbers += [value for part in (best, *progress["latest"].values()) for key, value in part.items() if key != "split"]
    if not all(type(value) in (int, float) for value in numbers):
        raise ValueError("metrics that are not numbers")
    if best and best["split"] not in ["train", "val"]:
        raise ValueError("metrics of an unknown split")
    if progress["best_weights"]:
        run.task.score(best)
    state = run.state.model.state_dict()
    for weights in filter(None, (progress["best_weights"], content.get("averages"))):
        types = [{key: (each.shape, each.dtype) for key, each in tensors.items()} for tensors in (weights, state)]
        if types[0] != types[1]:
            raise ValueError("best weights that are not the model's")


def environment(runtime: Runtime) -> dict[str, Any]:
    """Return what a bit-identical result depends on besides config and data."""
    device = torch.cuda.get_device_name(runtime.device) if runtime.device.type == "cuda" else system_info.cpu_name()
    computing = {"device": device, "threads": runtime.threads, "precision": runtime.precision}
    if runtime.device.type == "cuda":
        computing["graph"] = str(runtime.graph is not None).lower()
    computing["compile"] = str(runtime.compile).lower()
    return system_info.versions() | computing | {"processes": runtime.processes.world_size}


def warn_changed_environment(now: dict[str, Any], before: dict[str, Any], *, deterministic: bool) -> None:
    """Log why a resumed run will differ from an uninterrupted one; raise ConfigError if it must not."""
    changed = [f"{key} was {before[key]}, is {now[key]}" for key in now if key in before and before[key] != now[key]]
    if not changed:
        return
    line = f"resume: not bit-identical because {'; '.join(changed)}"
    if deterministic:
        raise ConfigError(f"{line}\ndevice.deterministic=true requires identical bits. Set it to false to continue")
    log.warning("%s", line)


def _check_moments(parameter: Tensor, moments: dict[str, Any], needed: set[str]) -> None:
    """Raise ValueError unless moments match the weights: fused kernels would write out of bounds."""
    if moments and not needed <= moments.keys() <= needed | {"momentum_buffer"}:
        raise ValueError(f"moments {', '.join(map(str, moments))[:60]}, not {', '.join(sorted(needed))}")
    for key, each in moments.items():
        if each is None and key == "momentum_buffer" and key not in needed:
            continue
        like = torch.zeros((), dtype=torch.float32) if key == "step" else parameter
        kinds = [(it.shape, it.dtype, it.stride()) for it in (each, like) if isinstance(it, Tensor)]
        if len(kinds) < 2 or kinds[0] != kinds[1]:
            raise ValueError(f"moments of another type than the weights ({key})")


def restore_optimizer(built: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Restore the moments of a saved optimizer, but keep the options of the config, such as a new optim.lr."""
    if len(saved["param_groups"]) != len(built.param_groups):
        problem = "optim.weight_decay cannot change from or to 0 when biases do not decay (optim.decay_biases=false)"
        raise ConfigError(f"resume: {problem}. Start a new run with init=")
    options = [{key: value for key, value in group.items() if key != "params"} for group in built.param_groups]
    parameters = [parameter for group in built.param_groups for parameter in group["params"]]
    moments = [each for entry in saved["state"].values() for each in entry.values() if isinstance(each, Tensor)]
    if any(map(torch.is_complex, moments)) and not any(map(torch.is_complex, parameters)):
        raise ValueError("moments of complex numbers")  # torch would drop the imaginary parts with a warning
    built.load_state_dict(saved)
    if type(built) not in MOMENTS:  # torch casts their state to the type of the weights, even from a finer one
        numbers = [number for group in saved["param_groups"] for number in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            for key, each in saved["state"].get(number, {}).items():
                if isinstance(each, Tensor) and each.dtype != built.state[parameter][key].dtype:
                    built.state[parameter][key] = each.to(parameter.device)
    has_momentum = any(group.get("momentum") for group in options)
    for parameter, entry in built.state.items():
        if isinstance(built, torch.optim.RMSprop) and has_momentum:  # as SGD itself does for a momentum set later
            entry.setdefault("momentum_buffer", torch.zeros_like(parameter))
        for key, each in entry.items():  # in the memory layout of the weights
            # An optimizer of a user may keep state of all weights under a name, and sparse tensors.
            is_dense = isinstance(each, Tensor) and isinstance(parameter, Tensor) and each.layout == torch.strided
            if is_dense and each.shape == parameter.shape and each.stride() != parameter.stride():
                entry[key] = torch.empty_like(parameter, dtype=each.dtype, requires_grad=False).copy_(each)
        if type(built) in MOMENTS:
            _check_moments(parameter, entry, MOMENTS[type(built)] | ({"momentum_buffer"} if has_momentum else set()))
    for group, option in zip(built.param_groups, options, strict=True):
        group.update(option)
