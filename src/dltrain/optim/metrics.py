"""The metrics that `metric=` adds to a task and chooses the best weights by.

Most follow from sums on the device. The AUROC compares every output with every other, so `engine.evaluate` keeps all
outputs for it. Knows tensors; knows no loop, no files, no config.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dltrain.optim.step import Shape, Task
from dltrain.runtime.errors import ConfigError

SUMMED = ("f1_macro", "balanced_accuracy", "top5_accuracy")
ADDED = (*SUMMED, "auroc")


@dataclass(frozen=True)
class WithMetric:
    """A task whose best weights are chosen by the metric `name`, one of its own or of ADDED; of equals by the loss."""

    task: Task
    name: str
    smaller_is_better: bool
    classes: int

    def loss(self, outputs: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        return self.task.loss(outputs, inputs, targets)

    def sums(self, losses: Tensor, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the sums of the task; for SUMMED then the hits, examples and predictions of each class."""
        own = self.task.sums(losses, outputs, targets)
        if self.name not in SUMMED:
            return own
        labels = (targets.argmax(dim=2) if targets.ndim == 3 else targets).unsqueeze(2)  # of a mixed image the main one
        top = outputs.topk(5, dim=2).indices if self.name == "top5_accuracy" else outputs.argmax(dim=2, keepdim=True)
        numbers = torch.arange(self.classes, device=labels.device)
        true, predicted = labels == numbers, top[:, :, :1] == numbers
        hits = true & (top == labels).any(dim=2, keepdim=True)
        return torch.cat([own, torch.cat([hits, true, predicted], dim=2).sum(dim=1).double()], dim=1)

    def metrics(self, sums: list[float]) -> dict[str, float]:
        own = len(sums) - (3 * self.classes if self.name in SUMMED else 0)
        metrics = self.task.metrics(sums[:own])
        if self.name in SUMMED:
            hits, true, predicted = torch.tensor(sums[own:], dtype=torch.float64).view(3, self.classes)
            whole = (true + predicted) / 2 if self.name == "f1_macro" else true
            values = (hits / whole)[whole > 0] if self.name != "top5_accuracy" else hits.sum() / true.sum()
            metrics.setdefault(self.name, float(values.mean()))
        elif self.name not in (*metrics, *ADDED):
            raise ConfigError(f"metric={self.name}: the task computes no such metric, only {', '.join(metrics)}")
        return metrics

    @property
    def needs_outputs(self) -> bool:
        return self.name == "auroc"

    def output_metrics(self, outputs: Tensor, labels: Tensor) -> dict[str, float]:
        return {self.name: auroc(outputs, labels)}

    def score(self, metrics: dict[str, float]) -> tuple[float, ...]:
        value = metrics[self.name]
        return -value if self.smaller_is_better else value, -metrics["loss"]

    def mismatch(self, targets: Tensor, input_shape: Shape, output_shape: Shape, classes: int) -> str:
        if (problem := self.task.mismatch(targets, input_shape, output_shape, classes)) or self.name not in ADDED:
            return problem
        if targets.dtype != torch.int64 or output_shape != (classes,):
            return f"metric={self.name} needs data with classes, and a model with an output for each of them"
        if self.name == "top5_accuracy" and classes <= 5:
            return f"metric=top5_accuracy needs more than 5 classes: with the {classes} of this data it is always 1"
        return ""


def auroc(outputs: Tensor, labels: Tensor) -> float:
    """Return the area under the ROC curve of logits (N, K) for the true classes (N,).

    Of two classes that of the second; of more the mean over the classes, each against all others, without those that
    have no examples or all of them. NaN if no class is left, or an output is NaN.
    """
    scores, areas = outputs.double().softmax(dim=1), []
    K = scores.shape[1]
    for k in [1] if K == 2 else range(K):
        _, places, counts = scores[:, k].unique(return_inverse=True, return_counts=True)
        ranks = counts.cumsum(0) - (counts.double() - 1) / 2  # mean rank of equal scores, from 1
        positives = int((labels == k).sum())
        if pairs := positives * (len(labels) - positives):  # those whose positive has the higher rank count
            areas.append((float(ranks[places][labels == k].sum()) - positives * (positives + 1) / 2) / pairs)
    return math.nan if scores.isnan().any() or not areas else math.fsum(areas) / len(areas)
