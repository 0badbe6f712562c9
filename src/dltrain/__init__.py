"""dltrain: a command-line deep-learning trainer driven by configuration files.

From Python, `dltrain.compose` makes the config of a subcommand and `dltrain.train` trains as it says.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dltrain.config.composition import compose
    from dltrain.training.run import train

__version__ = "0.1.0"
__all__ = ["__version__", "compose", "train"]

_LAZY = {"compose": "dltrain.config.composition", "train": "dltrain.training.run"}


def __getattr__(name: str) -> Any:
    """Import `compose` and `train` when they are first used: `import dltrain` alone loads no torch."""
    if name not in _LAZY:
        raise AttributeError(f"module 'dltrain' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
