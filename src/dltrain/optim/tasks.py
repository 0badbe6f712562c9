"""Tasks: the loss and the metrics that a network is trained for, as sums that stay on the device.

Each public class is an option of the group `task`; `step.Task` documents the methods. Knows tensors; knows no loop, no
files, no config.
"""

import functools
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn import functional as F

Shape = tuple[int, ...]
Weight = Annotated[float, Interval(ge=0)]


@dataclass(frozen=True)
class Classification:
    """Cross entropy and accuracy over classes.

    Targets are int64 labels (B,), or the fraction of each class (B, K). The loss of a batch is a sum divided by the
    number of examples, never by the sum of their weights: only so do parts of a batch, in micro-batches or on several
    ranks, have the loss of the whole.

    Args:
        label_smoothing: fraction of the target spread over all classes (Szegedy et al., 2016)
        class_weights: factor of each class's loss, in the order of classes; `balanced` divides the mean size of a class
            in the training set by its size; null for none
        focal: exponent of the focal loss, such as 2, for which clear examples count less (Lin et al., 2017); 0 for none
    """

    label_smoothing: Annotated[float, Interval(ge=0, lt=1)]
    class_weights: Literal["balanced"] | list[Weight] | None = None
    focal: Annotated[float, Interval(ge=0)] = 0.0
    class_counts: list[int] | None = None

    @functools.cached_property
    def weights(self) -> tuple[float, ...] | None:
        """The factor of each class's loss; with `balanced` 0 for a class that the training set lacks."""
        if self.class_weights != "balanced":
            return None if self.class_weights is None else tuple(self.class_weights)
        counts = self.class_counts or []
        return tuple(count and sum(counts) / (len(counts) - counts.count(0)) / count for count in counts)

    def loss(self, outputs: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        if self.weights is None and not self.focal:
            return F.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)
        weights = None if self.weights is None else _on_device(self.weights, outputs.device)
        if self.focal:
            total = self._focal_loss(outputs.float(), targets, 1 if weights is None else weights)
        else:
            smoothing = self.label_smoothing
            total = F.cross_entropy(outputs.float(), targets, weights, label_smoothing=smoothing, reduction="sum")
        return total / len(outputs)

    def _focal_loss(self, outputs: Tensor, targets: Tensor, weights: Tensor | int) -> Tensor:
        """Return the sum over examples; of a target of several classes, each counts by its fraction."""
        if targets.ndim == 1:
            targets = F.one_hot(targets, outputs.shape[1])
        targets = (1 - self.label_smoothing) * targets + self.label_smoothing / outputs.shape[1]
        logs = outputs.log_softmax(dim=1)
        # 1 - p without cancellation, and above 0, where an exponent below 1 has an infinite gradient.
        missing = (-logs.expm1()).clamp(min=1e-12)
        return -(weights * targets * missing**self.focal * logs).sum()

    def sums(self, losses: Tensor, outputs: Tensor, targets: Tensor) -> Tensor:
        classes = targets.argmax(dim=2) if targets.ndim == 3 else targets  # the main class of a mixed image
        count = targets.shape[1]
        return _rows(count, losses.double() * count, (outputs.argmax(dim=2) == classes).sum(dim=1, dtype=torch.float64))

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
        if self.weights is not None and len(self.weights) != classes:
            numbers = f"task.class_weights has {len(self.weights)} numbers, the data has {classes} classes"
            return f"{numbers}; give one for each class, in the order of the table of classes"
        if self.weights is not None and not any(self.weights):
            return "task.class_weights are all 0: no image has a loss; set one of them higher"
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
            advice = "set task=classification or data.numbers=true, a key of data=table"
            return f"task=regression needs numbers, this data has classes; {advice}"
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
            problem = f"task=reconstruction needs a model that returns images of {input_shape}"
            return f"{problem}, this one returns {output_shape}; set model=autoencoder"
        return ""


@functools.lru_cache
def _on_device(weights: tuple[float, ...], device: torch.device) -> Tensor:
    """Return the weights as a tensor that is copied to the device once, not at each step."""
    return torch.tensor(weights, dtype=torch.float32, device=device)


def _rows(count: int, *sums: Tensor) -> Tensor:
    """Return sums (N, S) in float64, the count first: counts are exact, and rounding errors do not add up."""
    return torch.stack([torch.full_like(sums[0], count), *sums], dim=1)
