"""Checks before the first step that model, task and data fit each other."""

import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dltrain.config import registry, saved_config
from dltrain.data.image_cache import cache_folder
from dltrain.data.splits import Examples
from dltrain.optim.proxy import count_hardest
from dltrain.optim.step import Task
from dltrain.runtime import devices
from dltrain.runtime.errors import ConfigError, InputError, first_line

log = logging.getLogger(__name__)


def check_classes(classes: Sequence[str], examples: Examples, split: str) -> None:
    """Raise InputError if a split has other classes than the training set, as its metrics would be wrong."""
    unknown = [name for name in examples.classes if name not in classes]
    if unknown or examples.classes != tuple(classes)[: len(examples.classes)]:
        trained = f"the model was trained on {', '.join(classes[:20])}, in that order"
        raise InputError(f"data: the {split} split has the classes {', '.join(examples.classes[:20])}; {trained}")


def check_task(node: dict[str, Any]) -> None:
    """Raise ConfigError if a user's task lacks a method; classes that derive from a built-in task have all."""
    found = registry.partial_call("task", node).func
    if lacking := [name for name in vars(Task) if not (name.startswith("_") or hasattr(found, name))]:
        raise ConfigError(
            f"task={node['name']}: lacks {', '.join(lacking)}; derive it from a task of dltrain.optim.tasks"
        )


def check_graph(runtime: devices.Runtime, values: dict[str, Any]) -> devices.Runtime:
    """Return the runtime without a graph, with the reason logged, if steps cannot be recorded.

    Raises ConfigError if the user insists on it.
    """
    custom = saved_config.custom_imports({key: values[key] for key in ("model", "optim", "task", "hooks")})
    if runtime.graph is None:
        return runtime
    if runtime.processes.world_size > 1:
        reason = "several processes train together"
    elif custom:
        reason = f"{custom[0][0]}, your own code, may do something else in each step"
    elif values["hardest"] is not None:
        reason = "the proxy is updated only every fourth step"
    elif values["optim"]["name"] == "rmsprop":
        reason = "rmsprop waits for the GPU in each step"
    else:
        return runtime
    if values["device"].get("graph") is True:
        raise ConfigError(f"device.graph=true: {reason}. Set device.graph=auto")
    log.info("device.graph: steps are not recorded: %s", reason)
    return replace(runtime, graph=None)


def check_compile(runtime: devices.Runtime, values: dict[str, Any]) -> devices.Runtime:
    """Return the runtime without device.compile, with the reason logged, if nothing can be compiled here."""
    if not runtime.compile:
        return runtime
    if runtime.device.type != "cpu":
        reason = "it is for CPUs; on a GPU try device.graph=true"
    elif runtime.processes.world_size > 1:
        reason = "several processes train together"
    elif values["hardest"] is not None:
        reason = "a proxy picks the hardest examples"
    elif hooks := values["hooks"]:
        reason = f"{hooks[0]} may change the network or the optimizer"
    elif not shutil.which(compiler := os.environ.get("CXX", "g++")):
        reason = f"there is no C++ compiler ({compiler})"
    else:  # torch's own place is in /tmp, where other users might put code
        if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
            folder = cache_folder()
            path = folder / "compiled" if folder else tempfile.mkdtemp(prefix="dltrain-")
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(path)
        return runtime
    log.warning("device.compile: steps are computed without it: %s", reason)
    return replace(runtime, compile=False)


def check_fit(
    network: nn.Module, node: dict[str, Any], task: Task, targets: Tensor, shape: Sequence[int], outputs: int
) -> None:
    """Raise ConfigError if model, task and data (`shape` of an input) do not fit; runs two examples forward."""
    network.eval()
    device = next(network.parameters(), targets).device
    try:
        with torch.no_grad():
            output = network(torch.zeros(2, *shape, device=device))
        output_shape = tuple(output.shape[1:])
    except Exception as error:
        raise ConfigError(f"model={node['name']} does not fit data of {tuple(shape)}: {first_line(error)}") from error
    finally:
        network.train()
    if problem := task.mismatch(targets, tuple(shape), output_shape, outputs):
        raise ConfigError(problem)


def check_last_batch(
    network: nn.Module,
    shape: Sequence[int],
    examples: int,
    batch_size: int,
    accumulate: int,
    processes: int = 1,
    hardest: float | None = None,
) -> None:
    """Raise ConfigError if a batch has a single example and batch norm fails on it, tried with one of `shape`."""
    whole = min(batch_size * accumulate, examples)
    batches = {count_hardest(batch, hardest) for batch in (whole, examples % whole or whole)}
    # With several processes, parts of whole batches can be that small too.
    parts = {
        max(1, batch * (rank + 1) // processes - batch * rank // processes)
        for batch in batches
        for rank in range(processes)
    }
    has_single = any((part % -(-part // accumulate) or -(-part // accumulate)) == 1 for part in parts)
    if has_single and has_batch_norm(network) and not _takes_one(network, shape):
        where = "the last batch" if processes == 1 else f"a batch divided among {processes} processes"
        where = where if hardest is None else f"a batch, of which hardest={hardest} takes a part"
        problem = f"{examples} examples leave a single one in {where}, which batch norm cannot use"
        raise ConfigError(f"batch_size={batch_size}: {problem}; choose another batch size")


def _takes_one(network: nn.Module, shape: Sequence[int]) -> bool:
    try:
        with devices.preserved_state(network), torch.no_grad():
            network.train()
            network(torch.zeros(1, *shape))
    except Exception as error:  # the first step will raise any other error
        return not (isinstance(error, ValueError) and "more than 1 value per channel" in str(error))
    return True


def has_batch_norm(network: nn.Module) -> bool:
    """True if the output for an example depends on the other examples of its batch."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())
