"""Contents of checkpoints, and their comparison bit for bit."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def content(seed: int = 0) -> dict[str, Any]:
    """Return the content of a checkpoint of a tiny model, with all kinds of plain data."""
    torch.manual_seed(seed)
    return {
        "model": nn.Linear(2, 2).state_dict(),
        "config": {
            **{group: {} for group in ("data", "model", "task", "schedule", "device")},
            "optim": {"lr": 0.1, "milestones": [0.5]},
            "name": None,
            "trust": [],
        },
        "data": {"classes": [], "input_shape": [1, 1, 2], "outputs": 2, "statistics": [[0.0], [1.0]]},
        "runtime": {"precision": "fp32", "threads": 1},
        "environment": {"torch": "2.15.0"},
        "sums": torch.tensor([1.0, 2.0], dtype=torch.float64),
        "progress": {"best": {"split": "val", "epoch": 1.0}, "stale_epochs": 3},
        "generators": {"cpu": torch.get_rng_state()},
        "step": seed,
    }


def equal(one: Any, other: Any) -> bool:
    """True if two trees of plain data and tensors have the same structure, types and bits."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return torch.equal(one, other) and one.dtype == other.dtype if isinstance(one, Tensor) else one == other


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
