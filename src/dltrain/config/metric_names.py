"""The metrics that can choose the best weights (`metric=`), by task; which of them are better if smaller."""

from collections.abc import Iterable, Mapping
from typing import Any

OF_TASKS = {
    "classification": ("loss", "accuracy", "f1_macro", "balanced_accuracy", "top5_accuracy", "auroc"),
    "regression": ("loss", "mae", "r2"),
    "reconstruction": ("loss",),
}
SMALLER = ("loss", "error", "mae", "mse")


def smaller_is_better(name: str) -> bool:
    """Return True for a loss or an error, which end so; the names of users' own metrics are judged by that too."""
    return name.endswith(SMALLER)


def shared_metric(configs: Iterable[Mapping[str, Any]]) -> str | None:
    """Return the `metric` of several configs; None if they have none or different ones."""
    first, *others = [config.get("metric") for config in configs] or [None]
    return first if isinstance(first, str) and all(other == first for other in others) else None
