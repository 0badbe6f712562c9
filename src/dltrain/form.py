"""What the content of a checkpoint must look like: until it does, it is a stranger's and nothing is done with it."""

import math
from typing import Annotated, Any, Literal

from annotated_types import Interval, Len
from torch import Tensor

from dltrain.hints import describe, obeys

Count = Annotated[int, Interval(ge=0)]
Side = Annotated[int, Interval(ge=1, le=1 << 16)]
Threads = Annotated[int, Interval(ge=1, le=1024)]
LARGEST_INPUT = 1 << 26  # numbers in one example

OF_EACH: dict[str, Any] = {
    "model": dict,
    "config": dict,
    "data.classes": list[str],
    "data.input_shape": Annotated[list[Side], Len(3, 3)],
    "data.outputs": Annotated[int, Interval(ge=1, le=1 << 24)],
    "data.statistics": Annotated[list[list[float]], Len(2, 2)],
    "runtime.precision": Literal["fp32", "bf16"],
    "runtime.threads": Threads,
    "environment": dict,
}
# What last.pt has besides, to go on from.
OF_LAST: dict[str, Any] = {
    "optimizer.state": dict,
    "optimizer.param_groups": list,
    "step": Count,
    "sums": Tensor | None,
    "faults": Tensor | None,
    "generators.cpu": Tensor,
    "progress.best": dict,
    "progress.best_weights": dict,
    "progress.latest": dict,
    "progress.stale_epochs": Count,
    "progress.train_seconds": float,
    "progress.examples_per_second": float,
    "progress.epoch_examples": Count,
    "progress.epoch_seconds": float,
    "position": Count,
    "digests": dict,
}


def problem(content: dict[str, Any]) -> str:
    """What is wrong with the content of a checkpoint; empty where nothing is."""
    for key, hint in (OF_EACH | OF_LAST if "optimizer" in content else OF_EACH).items():
        *parents, last = key.split(".")
        node: Any = content
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last not in node:
            return f"{key} is missing"
        if not obeys(node[last], hint):
            return f"{key} must be {describe(hint)}"
    weights = content["model"]
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in weights.items()):
        return "model must be weights by name"
    shape, (mean, std) = content["data"]["input_shape"], content["data"]["statistics"]
    if math.prod(shape) > LARGEST_INPUT:
        return f"data.input_shape={shape} is too large"
    if len(mean) != shape[0] or len(std) != shape[0] or not all(value > 0 for value in std):
        return "data.statistics must have a mean and a deviation > 0 for each channel"
    classes = content["data"]["classes"]
    if classes and len(classes) != content["data"]["outputs"]:
        return f"data.classes must be {content['data']['outputs']} names"
    return ""
