"""All that can be configured: options of groups and keys with their rules, out of signatures and YAML files."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dltrain import schema, signatures
from dltrain.signatures import Signature

GROUPS = ("model", "data", "optim", "schedule", "task", "device", "logger", "experiment")


def options(group: str, folders: Iterable[Path]) -> dict[str, Path]:
    """Options of a group and the file of each; of two with one name that in the first folder."""
    files = [path for folder in reversed(list(folders)) for path in (folder / group).glob("*.yaml")]
    return dict(sorted((path.stem, path) for path in files))


def summary(group: str, name: str, path: Path) -> str:
    """First line of the docstring behind an option, else the comment its file begins with."""
    if group in schema.GROUPS and (option := schema.signature(group, name)):
        return option.summary
    for_machines = ("@package", "yaml-language-server:")
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = (line for line in lines if line.startswith("# ") and not any(it in line for it in for_machines))
    return next(comments, "").lstrip("# ")


def of_option(group: str, name: str) -> Signature | None:
    """The signature of an option; None for `custom` and an experiment, whose keys are not known here."""
    if place := schema.SHARED.get(group):
        return signatures.builtin(*place)
    return schema.signature(group, name) if group in schema.GROUPS else None


def nodes(command: str, config: dict[str, Any]) -> dict[str, Signature]:
    """The node of each group of a config, and "" for the command's own keys, to the signature that they obey.

    Raises ConfigError for a user's own code that cannot be imported.
    """
    source, name, places = schema.COMMANDS[command]
    found: dict[str, Signature | None] = {"": signatures.builtin(source, name)}
    for node, place in places.items():
        own: Any = config.get(node)
        own = own if isinstance(own, dict) else {}
        chosen = own.get("name")
        if place is not None:
            found[node] = signatures.builtin(*place)
        elif schema.GROUPS[node].several:
            found |= {f"{node}.{option}": schema.signature(node, option) for option in own}
        elif isinstance(chosen, str) and chosen != schema.REQUIRED:
            found[node] = schema.signature(node, chosen)
    return {node: signature for node, signature in found.items() if signature is not None}


def keys(command: str, config: dict[str, Any]) -> dict[str, signatures.Key]:
    """Every key of a config, written with dots, and its rule."""
    found: dict[str, signatures.Key] = {}
    for node, signature in nodes(command, config).items():
        found |= typed_keys(node, signature)
    return found


def typed_keys(node: str, signature: Signature) -> dict[str, signatures.Key]:
    """The keys of a node as they are typed, "" being that of the command itself."""
    return {f"{node}.{key}" if node else key: rule for key, rule in signature.keys.items()}
