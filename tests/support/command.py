"""The result of a command line that ran in the test's process."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Result:
    """Exit code, standard output and standard error of a command line."""

    code: int
    out: str
    err: str

    @property
    def folder(self) -> Path:
        """The run folder that `dltrain train` printed."""
        line = next(line for line in self.out.splitlines() if line.startswith("folder  "))
        return Path(line.split()[1].rstrip(","))


Command = Callable[..., Result]
Trained = Callable[..., Path]
