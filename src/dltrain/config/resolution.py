"""Turn a composed config into the one that a command takes: fill in references, check every key."""

import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dltrain.config import validation
from dltrain.config.registry import Origin
from dltrain.config.safe_yaml import UnsafeConfig, refuse_bomb
from dltrain.runtime.errors import ConfigError

MOST_REFERENCES = 16  # pairs, each referring to the next pair, copy a value 2**8 times
MOST_REFERRED = 30_000  # values that references copy; OmegaConf takes 40 us for each


@dataclass(frozen=True)
class Config:
    """The config of one command, resolved and checked.

    Args:
        stored: as it is written into files, with references such as ${oc.env:HOME} kept: they may be secrets
        values: the same with references filled in
        typed: dotted keys that the user typed
        origin: returns where the value of a dotted key comes from; empty if unknown
    """

    stored: dict[str, Any]
    values: dict[str, Any]
    typed: Collection[str] = ()
    origin: Origin = lambda key: ""


def resolved(
    config: dict[str, Any], command: str, typed: Collection[str] = (), origin: Origin = lambda key: ""
) -> Config:
    """Resolve and check the config of a command. Raises ConfigError with all its problems.

    With `resume` only the typed keys count, and the check follows once they are merged into the checkpoint's config.
    """
    values = config
    if command != "train" or config.get("resume") is None:
        values = resolve(config)
        validation.validate(values, command, origin)
    stored, values = ({key: value for key, value in each.items() if key != "sweep"} for each in (config, values))
    return Config(stored, values, [key for key in typed if key.partition(".")[0] != "sweep"], origin)


def resolve(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config with its references filled in. Raises ConfigError for one that cannot be resolved."""
    try:
        size = refuse_bomb(config)  # that of a checkpoint may share parts, which OmegaConf would copy
        if (count := repr(config).count("${")) > MOST_REFERENCES or size * 2 ** (count / 2) > MOST_REFERRED:
            limit = f"at most {MOST_REFERENCES} are followed"
            raise UnsafeConfig(f"has {count} references such as ${{oc.env:HOME}}; {limit}")
        copied: dict[str, Any] = json.loads(json.dumps(config, skipkeys=True, default=repr))
        if not count and copied == config:  # OmegaConf would return an equal copy, but take milliseconds
            return copied
        filled = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
    except (OmegaConfBaseException, UnsafeConfig, RecursionError) as error:
        message, key = str(error), getattr(error, "full_key", None)
        if key and (missing := re.search(r"Environment variable '(.*)' not found", message)):
            message = f"{key}: the environment variable {missing[1]} is not set"
        raise ConfigError(" ".join(message.split())) from error
    assert isinstance(filled, dict)
    return with_text_keys(filled)


def plain(value: Any) -> Any:
    """Return a config that Python made as plain data, without OmegaConf's nodes, NumPy's numbers and paths."""
    if isinstance(value, DictConfig | ListConfig):
        value = OmegaConf.to_container(value, resolve=True)  # it may refer to nodes outside itself
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else getattr(value, "tolist", lambda: value)()


def with_text_keys(config: dict[Any, Any]) -> dict[str, Any]:
    """Return a config with every top-level key as text: YAML may have numbers there."""
    return {str(key): value for key, value in config.items()}
