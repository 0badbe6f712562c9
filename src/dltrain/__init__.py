"""dltrain: a command-line deep-learning trainer driven by configuration files.

From Python, `dltrain.compose` makes the config of a subcommand and `dltrain.train` trains as it says.
"""

import importlib
from typing import Any

from dltrain.runtime.system_info import VERSION as __version__

__all__ = ["__version__", "compose", "train"]

_LAZY = {"compose": "dltrain.config.composition", "train": "dltrain.training.run"}


def __getattr__(name: str) -> Any:
    """Import `compose` and `train` when they are first used: `import dltrain` alone loads neither Hydra nor torch."""
    if name not in _LAZY:
        raise AttributeError(f"module 'dltrain' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
