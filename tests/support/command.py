"""What a command line left behind."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Result:
    """What a command line left behind."""

    code: int
    out: str
    err: str

    @property
    def folder(self) -> Path:
        """The run folder that a `train` printed."""
        line = next(line for line in self.out.splitlines() if line.startswith("folder  "))
        return Path(line.split()[1].rstrip(","))


Command = Callable[..., Result]
Trained = Callable[..., Path]
