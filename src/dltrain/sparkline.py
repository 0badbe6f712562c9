"""A curve in one line of text, of as many figures as come."""

import math
from dataclasses import dataclass, field

BLOCKS = "▁▂▃▄▅▆▇█"
FEWEST = 6  # blocks of a long curve; at the most twice as many


@dataclass
class Sparkline:
    """Means of equally many figures each; where they become too many two are made one, so that it stays short."""

    means: list[float] = field(default_factory=list)
    pending: list[float] = field(default_factory=list)
    each: int = 1  # figures of a mean

    def add(self, figure: float) -> None:
        """Take in a further figure; one that is no number is left out."""
        if not math.isfinite(figure):
            return
        self.pending.append(figure)
        if len(self.pending) == self.each:
            self.means.append(sum(self.pending) / self.each)
            self.pending = []
        if len(self.means) == 2 * FEWEST:
            pairs = zip(self.means[::2], self.means[1::2], strict=True)
            self.means = [(first + second) / 2 for first, second in pairs]
            self.each *= 2

    def __str__(self) -> str:
        if len(self.means) < 2:
            return ""
        low, high = min(self.means), max(self.means)
        scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
        return "".join(BLOCKS[round((mean - low) * scale)] for mean in self.means)
