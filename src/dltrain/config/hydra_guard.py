"""What Hydra may load and be told while it composes: nothing that runs code, writes files, or grows without end.

Hydra would instantiate `hydra.callbacks`, import the package of a `pkg://` path, unpickle the file of a rerun, and make
the folders its own node names, also where an experiment's file says so. All that is refused before it acts.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigSource
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from dltrain.config.safe_yaml import UnsafeConfig, checked_yaml

NO_LOG = {"version": 1, "root": None, "disable_existing_loggers": False}
PLUGINS = "hydra_plugins.dltrain_plugins"
# Hydra's own node as configs/common.yaml leaves it; ANY is free, and without effect on files and code. SWEEP_PARAMS is
# null or values by name, none of them a node: Hydra makes what a node's _target_ says of the sweeper and all within it.
ANY, SWEEP_PARAMS = object(), object()
OWN = {
    "run": {"dir": "."},
    "sweep": {"dir": ANY, "subdir": "."},  # dltrain makes the folder of a sweep itself
    "launcher": {"_target_": f"{PLUGINS}.DltrainLauncher"},
    "sweeper": {"_target_": f"{PLUGINS}.DltrainSweeper", "_recursive_": False, "params": SWEEP_PARAMS},
    "hydra_logging": NO_LOG,
    "job_logging": NO_LOG,
    "env": {},
    "callbacks": {},
    "output_subdir": None,
    "job": {"chdir": False, "env_set": {}, "env_copy": []}
    | dict.fromkeys(("name", "override_dirname", "id", "num", "config_name", "config"), ANY),
    **dict.fromkeys(("mode", "searchpath", "overrides", "runtime", "verbose", "help", "hydra_help"), ANY),
}
MOST_FILES = 500  # that a defaults list names, each as often as it does


@contextlib.contextmanager
def hydra_sandbox(*, sweeps: bool = False, flagged: bool = True) -> Iterator[None]:
    """Check all that Hydra loads; without `sweeps` it may not sweep either, wherever it is told to.

    Without flags (`flagged`) it is one run that is asked for, and Hydra need not compose twice to learn it.
    """
    faults: list[str] = []
    loaded = 0

    def refuse(*told: str) -> NoReturn:
        faults.extend(told)
        raise UnsafeConfig("\n".join(faults[:3]))

    def load_configuration(original: Callable[..., DictConfig], *arguments: Any, **named: Any) -> DictConfig:
        nonlocal loaded
        loaded = 0
        if faults:  # Hydra composes once to learn the mode, and drops what that raises
            refuse()
        try:
            config = original(*arguments, **named)
        except HydraException:
            raise
        except (LookupError, TypeError, AttributeError, AssertionError, RecursionError, OSError) as error:
            raise UnsafeConfig(f"Hydra cannot use this: {type(error).__name__}: {str(error)[:200]}") from error
        if named.get("config_name") is None and not named.get("overrides"):
            return config  # Hydra's own, for --hydra-help: nothing was asked of it
        node = OmegaConf.to_container(config.hydra, resolve=False)
        if foreign := list(disallowed_settings(node, sweeps, named.get("overrides") or [])):
            refuse(*foreign)
        return config

    def mode(original: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        return original(*arguments, **named) if sweeps or flagged else RunMode.RUN  # another one is refused above

    def load_config(original: Callable[..., Any], source: Any, config_path: str) -> Any:
        try:
            checked_yaml(Path(source.path, source._normalize_file_name(config_path)))
            return original(source, config_path)
        except UnsafeConfig as error:
            refuse(str(error))
        except (ValueError, yaml.YAMLError) as error:  # a header that Hydra cannot read, a key that is there twice
            refuse(f"{source.path}/{config_path}: cannot be read: {' '.join(str(error).split())}")

    def count_loaded(original: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        nonlocal loaded
        loaded += 1
        if loaded > MOST_FILES:
            refuse(f"its defaults lists name more than {MOST_FILES} files")
        return original(*arguments, **named)

    def initialize_sources(original: Callable[..., None], repository: ConfigRepository, search: Any) -> None:
        for entry in search.get_path():
            is_own = entry.provider in ("hydra", "schema")
            if not is_own and "://" in entry.path and not entry.path.startswith("file://"):
                raise UnsafeConfig(f"{entry.path}: only a folder can be searched for configs")
        original(repository, search)

    with contextlib.ExitStack() as stack:
        stack.enter_context(_wrapped(ConfigLoaderImpl, "load_configuration", load_configuration))
        stack.enter_context(_wrapped(Hydra, "get_mode", mode))
        stack.enter_context(_wrapped(file_source(), "load_config", load_config))
        stack.enter_context(_wrapped(CachingConfigRepository, "load_config", count_loaded))
        stack.enter_context(_wrapped(ConfigRepository, "initialize_sources", initialize_sources))
        yield


def file_source() -> type[ConfigSource]:
    """The class that reads YAML files; Hydra loads its plugins' modules itself, so that an imported one is another."""
    Plugins.instance()
    return SourcesRegistry.instance().resolve("file")


@contextlib.contextmanager
def _wrapped(owner: type, name: str, wrapper: Callable[..., Any]) -> Iterator[None]:
    """A method of Hydra's replaced by `wrapper`, which gets the original first."""
    original = vars(owner)[name]
    setattr(owner, name, lambda *arguments, **named: wrapper(original, *arguments, **named))
    try:
        yield
    finally:
        setattr(owner, name, original)


def disallowed_settings(node: Any, sweeps: bool, typed: Sequence[str]) -> Iterator[str]:
    words = node["overrides"]  # to what a file has there Hydra adds what was typed
    if sorted(map(str, (*words["hydra"], *words["task"]))) != sorted(typed):
        yield "hydra.overrides: cannot be set; it is what was typed"
        return
    yield from _differences("hydra", node, OWN | {"launcher": _launcher(node)})
    mode = node.get("mode")
    if mode is not None and (getattr(mode, "name", mode) == "MULTIRUN") != sweeps:
        yield "hydra.mode: a sweep is asked for with -m, and with that alone"


def _launcher(node: Any) -> Any:
    """dltrain's own launcher, or an installed one that was typed, with what was typed for it and no word from files."""
    typed = [it for it in OverridesParser.create().parse_overrides(node["overrides"]["hydra"]) if not it.is_delete()]
    chosen = next((it.value() for it in typed if it.key_or_group == "hydra/launcher"), "dltrain")
    if chosen == "dltrain":
        return OWN["launcher"]
    launcher: Any = OmegaConf.to_container(ConfigStore.instance().load(f"hydra/launcher/{chosen}.yaml").node)
    for override in typed:
        if override.key_or_group.startswith("hydra.launcher."):
            *parents, last = override.key_or_group.split(".")[2:]
            functools.reduce(lambda parent, key: parent.setdefault(key, {}), parents, launcher)[last] = override.value()
    return launcher


def _differences(prefix: str, node: Any, own: Any) -> Iterator[str]:
    if own is ANY:
        return
    if own is SWEEP_PARAMS:
        items = node.items() if isinstance(node, dict) else [] if node is None else [("", [])]
        names = [str(key).lstrip("+~").replace("/", ".") for key, _ in items]
        if any(name.startswith(("_", "hydra", "sweep", "trust")) for name in names) or any(
            isinstance(value, dict | list) for _, value in items
        ):
            yield f"{prefix}: must be words of a sweep by key, such as optim.lr: 0.1,0.01"
    elif isinstance(node, dict) and isinstance(own, dict):
        for key in [*node, *(key for key in own if key not in node and own[key] is not ANY)]:
            if key not in own:
                yield f"{prefix}.{key}: is not for you to set; Hydra only composes here"
            else:
                yield from _differences(f"{prefix}.{key}", node.get(key), own[key])
    elif node != own or type(node) is not type(own):
        yield f"{prefix}: cannot be set; dltrain makes folders and logs itself"
