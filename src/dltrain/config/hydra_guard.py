"""Limits on what Hydra loads while it composes: nothing that runs code or grows without end.

dltrain uses Hydra to compose configs and never lets it run a job. A command line or a file that asks Hydra for more, in
Hydra's own node `hydra`, is refused: it would have no effect.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.override_parser.types import Glob
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigSource
from omegaconf import DictConfig, OmegaConf

from dltrain.config.dotted import leaves
from dltrain.config.safe_yaml import UnsafeConfig, checked_yaml

# Keys of Hydra's own node as configs/common.yaml leaves them. No other key is allowed, except those in FREE.
FIXED: dict[str, Any] = {
    **dict.fromkeys(("run.dir", "sweep.dir", "sweep.subdir"), "."),
    **{key: {} for key in ("job.env_set", "env", "callbacks")},
    "launcher._target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "output_subdir": None,
    "job.chdir": False,
    "job.env_copy": [],
}
for log in ("hydra_logging", "job_logging"):
    FIXED |= {f"{log}.version": 1, f"{log}.root": None, f"{log}.disable_existing_loggers": False}
FREE = ["sweeper.params", "overrides", "runtime", "searchpath", "verbose", "help", "hydra_help"]
FREE += [f"job.{key}" for key in ("name", "override_dirname", "id", "num", "config_name", "config")]
MOST_FILES = 500  # named in defaults lists, repeats included


@contextlib.contextmanager
def hydra_sandbox() -> Iterator[None]:
    """Check, inside the `with` block, all that Hydra loads and each config that it composes. Raises UnsafeConfig."""
    loaded = 0

    def load_configuration(
        original: Callable[..., DictConfig], loader: Any, config_name: str | None, overrides: list[str], **named: Any
    ) -> DictConfig:
        nonlocal loaded
        loaded = 0
        for override in overrides:
            if override.lstrip("+~").startswith(("hydra/launcher", "hydra/sweeper")):
                raise UnsafeConfig(f"{override}: dltrain runs jobs itself; choose sweep.executor=local, ray or slurm")
        try:
            config = original(loader, config_name, overrides, **named)
        except HydraException:
            raise
        except (LookupError, TypeError, AttributeError, AssertionError, RecursionError, OSError) as error:
            raise UnsafeConfig(f"Hydra cannot use this: {type(error).__name__}: {str(error)[:200]}") from error
        if config_name is not None:  # else Hydra's own config, for --hydra-help
            refuse_changes(OmegaConf.to_container(config.hydra, resolve=False), overrides)
        return config

    def load_config(original: Callable[..., Any], source: Any, config_path: str) -> Any:
        try:
            checked_yaml(Path(source.path, source._normalize_file_name(config_path)))
            return original(source, config_path)
        except (ValueError, yaml.YAMLError) as error:  # a header that Hydra cannot read, a duplicate key
            text = f"{source.path}/{config_path}: cannot be read: {' '.join(str(error).split())}"
            raise UnsafeConfig(text) from None

    def count_loaded(original: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        nonlocal loaded
        loaded += 1
        if loaded > MOST_FILES:
            raise UnsafeConfig(f"its defaults lists name more than {MOST_FILES} files")
        return original(*arguments, **named)

    def initialize_sources(original: Callable[..., None], repository: ConfigRepository, search: Any) -> None:
        for entry in search.get_path():
            if entry.provider not in ("hydra", "schema") and "://" in entry.path.removeprefix("file://"):
                raise UnsafeConfig(f"{entry.path}: only a folder can be searched for configs")
        original(repository, search)

    with contextlib.ExitStack() as stack:
        _wrap(stack, ConfigLoaderImpl, "load_configuration", load_configuration)
        _wrap(stack, file_source(), "load_config", load_config)
        _wrap(stack, CachingConfigRepository, "load_config", count_loaded)
        # An editor's byte order mark does not hide the first line; custom needs a name, so glob(*) leaves it out.
        _wrap(stack, ConfigSource, "_get_header_dict", lambda own, text: own(text.lstrip("\ufeff")))
        _wrap(stack, Glob, "filter", lambda own, it, names: own(it, [name for name in names if name != "custom"]))
        _wrap(stack, ConfigRepository, "initialize_sources", initialize_sources)
        yield


def file_source() -> type[ConfigSource]:
    """Return the class that reads YAML files; Hydra loads its plugins itself, so importing it gives another."""
    Plugins.instance()
    return SourcesRegistry.instance().resolve("file")


def _wrap(stack: contextlib.ExitStack, owner: type, name: str, wrapper: Callable[..., Any]) -> None:
    """Replace a method of Hydra, until `stack` closes, by `wrapper`, whose first argument is the original."""
    original = vars(owner)[name]
    setattr(owner, name, lambda *arguments, **named: wrapper(original, *arguments, **named))
    stack.callback(setattr, owner, name, original)


def refuse_changes(node: Any, overrides: Sequence[str]) -> None:
    """Raise UnsafeConfig if Hydra's own node asks for more than composing; `overrides` are the typed ones."""
    listed = node["overrides"]  # Hydra adds the typed ones to those that a file has
    if sorted(map(str, (*listed["hydra"], *listed["task"]))) != sorted(overrides):
        raise UnsafeConfig("hydra.overrides: cannot be set; it is what was typed")
    values = leaves(node)
    if getattr(values.pop("mode"), "name", "RUN") != "RUN":
        raise UnsafeConfig("hydra.mode: ask for a sweep with -m")
    free = {key for key in values if any(f"{key}.".startswith(f"{each}.") for each in FREE)}
    for key in [*values, *FIXED]:
        if key not in free and (key not in values or key not in FIXED or values[key] != FIXED[key]):
            where = "; it writes to outputs/ in the folder that you start it in" if key.endswith(".dir") else ""
            raise UnsafeConfig(f"hydra.{key}: cannot be set; dltrain uses Hydra only to compose configs{where}")
    params = node["sweeper"]["params"]
    items = {} if params is None else params if isinstance(params, dict) else {"": []}
    is_nested = any(isinstance(value, dict | list) for value in items.values())
    if is_nested or any(str(key).lstrip("+~").startswith(("_", "hydra", "sweep", "trust")) for key in items):
        raise UnsafeConfig("hydra.sweeper.params: must be overrides of a sweep by key, such as optim.lr: 0.1,0.01")
