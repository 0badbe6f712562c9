"""Keys of a nested config, written with dots: `optim.lr`. Imports nothing of dltrain."""

from collections.abc import Mapping
from typing import Any


def has(node: Any, path: str) -> bool:
    """True if a nested config has a dotted key."""
    for key in path.split("."):
        if not isinstance(node, dict) or key not in node:
            return False
        node = node[key]
    return True


def at(node: Any, path: str) -> Any:
    """Return the value of a dotted key. Raises LookupError or TypeError if it is missing."""
    for key in path.split("."):
        node = node[key]
    return node


def leaves(config: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Return all values by dotted key; an empty node is a value."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            values |= leaves(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = value
    return values
