"""Check the content of a checkpoint before anything else uses it: it may come from a stranger."""

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from annotated_types import Interval, Len
from torch import Tensor

from dltrain.config.dotted import at, has
from dltrain.config.hints import conforms, describe

Count = Annotated[int, Interval(ge=0)]
ClassSize = Annotated[int, Interval(ge=0, le=1 << 48)]
Pair = Annotated[list[float], Len(2, 2)]
LARGEST_INPUT = 1 << 26  # numbers in one example
Side = Annotated[int, Interval(ge=1, le=LARGEST_INPUT)]
MOST_OF_CONFIG = 10_000  # values; OmegaConf takes 40 us per value
LONGEST_TEXT = 1 << 12

OF_EACH: dict[str, Any] = {
    "model": dict,
    "config.data": dict,
    "config.model": dict,
    "config.task": dict,
    "data.classes": list[str],
    "data.input_shape": Annotated[list[Side], Len(3, 3)],
    "data.outputs": Annotated[int, Interval(ge=1, le=1 << 24)],
    "data.statistics": Annotated[list[list[float]], Len(2, 2)],
    "runtime.precision": Literal["fp32", "tf32", "bf16"],
    "runtime.threads": Annotated[int, Interval(ge=1, le=1024)],
    "environment": dict,
}
# Only in last.pt: the state to resume from.
OF_LAST: dict[str, Any] = {
    "config.optim": dict,
    "config.schedule": dict,
    "config.device": dict,
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
# What only some files have, such as none of the earliest of format 2, each with what it must be.
OPTIONAL: dict[str, tuple[Any, str]] = {
    "averages": (dict[str, Any] | None, "weights by name"),
    "proxy": (dict[str, Any] | None, "weights and optimizer of a network"),
    "proxy.model": (dict[str, Any], "weights by name"),
    "proxy.optimizer.state": (dict, "a dict"),
    "proxy.optimizer.param_groups": (list, "a list"),
    "progress.scores": (list[float | None], "numbers or null"),
    "progress.total_seconds": (float, "a number"),
    "data.range": (Pair | None, "two numbers"),
    "data.levels": (Pair | None, "two numbers, the lower first"),
    "data.class_counts": (list[ClassSize] | None, "whole numbers >= 0"),
    "data.rules": (Literal[1, 2], "1 or 2. If it is higher, install a newer dltrain"),
}


def _leaves(node: Any) -> Iterator[Any]:
    """Yield all keys and values of a tree except containers; a part that is referenced twice is visited twice."""
    if isinstance(node, dict | list | tuple):
        for part in (*node, *node.values()) if isinstance(node, dict) else node:
            yield from _leaves(part)
    else:
        yield node


def _is_plain(part: object) -> bool:
    """True for a dict of names and plain values that can be compared and shown in one line of a log."""
    return isinstance(part, dict) and all(
        _is_line(key) and (type(value) is int or _is_line(value)) for key, value in part.items()
    )


def _is_line(value: object) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST_TEXT and value.isprintable()


def validation_error(content: dict[str, Any]) -> str:
    """Return the first problem with the content of a checkpoint, or an empty text."""
    for key, hint in (OF_EACH | OF_LAST if "optimizer" in content else OF_EACH).items():
        if not has(content, key):
            return f"{key} is missing"
        if not conforms(at(content, key), hint):
            return f"{key} must be {describe(hint)}"
    for key, (hint, meaning) in OPTIONAL.items():
        if has(content, key) and not conforms(at(content, key), hint):
            return f"{key} must be {meaning}"
    counts, levels = content["data"].get("class_counts"), content["data"].get("levels")
    if levels and levels[0] >= levels[1]:
        return "data.levels must be two numbers, the lower first"
    for name in ("model", "averages", "proxy.model"):
        weights = (at(content, name) if has(content, name) else None) or {}
        if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in weights.items()):
            return f"{name} must be weights by name"
    if any(isinstance(value, Tensor) and value.requires_grad and type(value) is Tensor for value in _leaves(content)):
        return "its tensors must not require gradients"
    for count, value in enumerate(_leaves(content["config"])):
        if count >= MOST_OF_CONFIG or not isinstance(value, str | bool | int | float | None):
            return f"config must be at most {MOST_OF_CONFIG:,} plain values"
        if isinstance(value, str) and len(value) > LONGEST_TEXT:
            return f"config must have texts of at most {LONGEST_TEXT:,} characters"
    runtime = content["runtime"]
    if runtime.keys() - {"device"} != {"precision", "threads"} or runtime.get("device", "cuda") != "cuda":
        return "runtime must be precision and threads, and cuda as the device of a run on a GPU"
    digests = content.get("digests", {})  # the earliest best.pt have none either
    if not isinstance(digests, dict) or not all(map(_is_plain, (content["environment"], *digests.values()))):
        return "environment and digests must be plain values by name"
    shape, (mean, std) = content["data"]["input_shape"], content["data"]["statistics"]
    if math.prod(shape) > LARGEST_INPUT:
        return f"data.input_shape={shape} is too large"
    if len(mean) != shape[0] or len(std) != shape[0] or not all(value > 0 for value in std):
        return "data.statistics must have a mean and a standard deviation > 0 for each channel"
    classes = content["data"]["classes"]
    if any(len(name) > LONGEST_TEXT for name in classes):
        return f"data.classes must be names of at most {LONGEST_TEXT:,} characters"
    if counts is not None and len(counts) != len(classes):
        return f"data.class_counts must be {len(classes)} numbers"
    if classes and len(classes) != content["data"]["outputs"]:
        return f"data.classes must be {content['data']['outputs']} names"
    return ""
