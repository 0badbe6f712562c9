"""Keys of a nested config, written with dots: `optim.lr`. Imports nothing of dltrain."""

from collections.abc import Mapping
from typing import Any


def has(node: Any, path: str) -> bool:
    """Whether a nested config has a dotted key."""
    for key in path.split("."):
        if not isinstance(node, dict) or key not in node:
            return False
        node = node[key]
    return True


def at(node: Any, path: str) -> Any:
    """The value of a dotted key that is there."""
    for key in path.split("."):
        node = node[key]
    return node


def leaves(config: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """All values by dotted key, an empty node among them."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
