"""Tasks: the loss and the metrics that a network is trained for, as sums that stay on the device.

Each public class is an option of the group `task`; `step.Task` documents the methods. Knows tensors; knows no loop, no
files, no config.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn import functional as F

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Classification:
    """Cross entropy and accuracy over classes.

    Targets are int64 labels (B,), or the fraction of each class (B, K).

    Args:
        label_smoothing: fraction of the target spread over all classes (Szegedy et al., 2016)
    """

    label_smoothing: Annotated[float, Interval(ge=0, lt=1)]

    def loss(self, outputs: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)

    def sums(self, losses: Tensor, outputs: Tensor, targets: Tensor) -> Tensor:
        classes = targets.argmax(dim=2) if targets.ndim == 3 else targets  # the main class of a mixed image
        count = targets.shape[1]
        correct = (outputs.argmax(dim=2) == classes).sum(dim=1, dtype=torch.float64)
        return _rows(count, losses.double() * count, correct)

    def metrics(self, sums: list[float]) -> dict[str, float]:
        count, loss, correct = sums
        return {"loss": loss / count, "accuracy": correct / count}

    def score(self, metrics: dict[str, float]) -> tuple[float, ...]:
        return metrics["accuracy"], -metrics["loss"]

    def mismatch(self, targets: Tensor, input_shape: Shape, output_shape: Shape, classes: int) -> str:
        if targets.dtype != torch.int64:
            return "task=classification needs data with classes; set task=regression"
        if output_shape != (classes,):
            if output_shape == input_shape:
                return "this model returns images; set task=reconstruction"
            return f"the data has {classes} classes, the model's output is {output_shape}; check the model"
        return ""


@dataclass(frozen=True)
class Regression:
    """Mean squared error, mean absolute error and R2 on numbers."""

    def loss(self, outputs: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, targets)

    def sums(self, losses: Tensor, outputs: Tensor, targets: Tensor) -> Tensor:
        outputs, targets = outputs.double().flatten(1), targets.double().flatten(1)  # count numbers, not examples
        error = outputs - targets
        terms = error**2, error.abs(), targets, targets**2
        return _rows(targets.shape[1], *(term.sum(dim=1) for term in terms))

    def metrics(self, sums: list[float]) -> dict[str, float]:
        count, squared, absolute, total, total_squared = sums
        variation = total_squared - total * total / count
        return {
            "loss": squared / count,
            "mae": absolute / count,
            # If all targets are equal, up to rounding, there is no variation to explain.
            "r2": 1 - squared / variation if variation > 1e-9 * total_squared else 0.0,
        }

    def score(self, metrics: dict[str, float]) -> tuple[float, ...]:
        return (-metrics["loss"],)

    def mismatch(self, targets: Tensor, input_shape: Shape, output_shape: Shape, classes: int) -> str:
        if not targets.is_floating_point():
            return "task=regression needs numbers, this data has classes; set task=classification or data.numbers=true"
        if output_shape != targets.shape[1:]:
            return f"the data has targets of {tuple(targets.shape[1:])}, the model's output is {output_shape}"
        return ""


@dataclass(frozen=True)
class Reconstruction:
    """Mean squared error between the image and its reconstruction."""

    def loss(self, outputs: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, inputs)

    def sums(self, losses: Tensor, outputs: Tensor, targets: Tensor) -> Tensor:
        count = outputs.shape[1]
        return _rows(count, losses.double() * count)

    def metrics(self, sums: list[float]) -> dict[str, float]:
        count, loss = sums
        return {"loss": loss / count}

    def score(self, metrics: dict[str, float]) -> tuple[float, ...]:
        return (-metrics["loss"],)

    def mismatch(self, targets: Tensor, input_shape: Shape, output_shape: Shape, classes: int) -> str:
        if output_shape != input_shape:
            return (
                f"task=reconstruction needs a model that returns images of {input_shape}, "
                f"this one returns {output_shape}; set model=autoencoder"
            )
        return ""


def _rows(count: int, *sums: Tensor) -> Tensor:
    """Return sums (N, S) in float64, the count first: counts are exact, and rounding errors do not add up."""
    return torch.stack([torch.full_like(sums[0], count), *sums], dim=1)
