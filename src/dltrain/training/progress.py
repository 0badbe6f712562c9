"""Progress of a run besides its weights: best so far, patience, and the metrics of the summary."""

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, cuda

from dltrain.engine import Record
from dltrain.optim.step import Task, TrainState, require_result


@dataclass
class Progress:
    """Plain data and tensors, saved in every checkpoint; `best_weights` stay empty without a validation set."""

    best: dict[str, Any] = field(default_factory=dict)  # split, step, epoch and metrics
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    latest: dict[str, dict[str, float]] = field(default_factory=dict)  # metrics by split
    stale_epochs: int = 0
    scores: list[float | None] = field(default_factory=list)  # of each validation; None if it is not finite
    train_seconds: float = 0.0
    total_seconds: float = 0.0  # until the checkpoint; 0 in one of before 2026-12
    examples_per_second: float = 0.0  # of the fastest epoch so far
    epoch_examples: int = 0
    epoch_seconds: float = 0.0

    def rate(self) -> float | None:
        """Return examples per second of the fastest epoch, or of the unfinished first one; None before any record."""
        return self.examples_per_second or (self.epoch_examples / self.epoch_seconds if self.epoch_seconds else None)

    def note(self, record: Record, task: Task, state: TrainState) -> None:
        """Update the progress with a record; a better validation metric keeps a copy of its weights."""
        self.latest[record.split] = record.values
        position = {"split": record.split, "step": record.step, "epoch": record.epoch}
        is_finite = all(math.isfinite(value) for value in record.values.values())
        if record.split == "train":
            self.train_seconds += record.seconds
            self.epoch_examples += record.examples
            self.epoch_seconds += record.seconds
            if record.epoch == int(record.epoch):
                self.examples_per_second = max(self.examples_per_second, self.epoch_examples / self.epoch_seconds)
                self.epoch_examples, self.epoch_seconds = 0, 0.0
            # Without validation the last record is the best, unless all its steps were skipped: no weights changed.
            if is_finite and not self.best_weights:
                self.best = position | record.values
        elif record.split == "val":
            score: Any = task.score(record.values) if is_finite else ()
            fits = isinstance(score, tuple | list) and {*map(type, score)} <= {int, float} and math.isfinite(sum(score))
            require_result(task, "score", score, fits and bool(score) == is_finite)
            self.scores.append(score[0] if is_finite else None)
            if is_finite and (not self.best_weights or score > task.score(self.best)):
                self.best = position | record.values
                how: dict[str, Any] = {"copy": True, "non_blocking": True}  # a GPU copies all before the host waits
                self.best_weights = {key: each.detach().to("cpu", **how) for key, each in state.eval_weights().items()}
                if cuda.is_initialized():
                    cuda.synchronize()
                self.stale_epochs = 0
            else:
                self.stale_epochs += 1
