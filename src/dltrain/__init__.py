"""dltrain: a command-line deep-learning trainer driven by configuration files.

From Python, `dltrain.train` trains, `dltrain.load` returns a trained network that predicts, `dltrain.evaluate` measures
it, `dltrain.sweep` runs many settings, and `dltrain.compose` makes the config of a subcommand.
"""

import importlib
from typing import Any

from dltrain.runtime.system_info import VERSION as __version__

__all__ = ["__version__", "compose", "evaluate", "load", "sweep", "train"]

_LAZY = dict.fromkeys(("evaluate", "load", "train"), "dltrain.commands.from_python")
_LAZY |= {"compose": "dltrain.config.composition", "sweep": "dltrain.sweeps.from_python"}


def __getattr__(name: str) -> Any:
    """Import a function when it is first used: `import dltrain` alone loads neither Hydra nor torch."""
    if name not in _LAZY:
        raise AttributeError(f"module 'dltrain' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
