"""The trackers of a run; one that fails is reported once and switched off, and the run continues."""

import contextlib
import logging
import random
import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dltrain.config import registry
from dltrain.report.trackers import lines
from dltrain.report.trackers.lines import Line, Tracker
from dltrain.runtime.errors import ConfigError, printable

log = logging.getLogger(__name__)


class Trackers:
    """All trackers of the run in `folder`: one for each entry of `logger` in its config."""

    def __init__(self, nodes: dict[str, dict[str, Any]], folder: Path, config: dict[str, Any]) -> None:
        self.running: dict[str, Tracker] = {}
        for name, node in nodes.items():
            with self._shielded(name):
                tracker = registry.partial_call("logger", {**node, "name": name}, folder=folder, config=config)()
                self.running[name] = tracker
                for line in lines.read(folder / "metrics.jsonl"):
                    tracker.write(line)
                tracker.saved()

    @contextlib.contextmanager
    def _shielded(self, name: str) -> Iterator[None]:
        before = random.getstate()  # a library may use it, such as for the delay before a retry
        try:
            yield
        except Exception as error:
            log.warning("logger=%s failed and is switched off for the rest of the run: %s", name, _reason(error))
            if tracker := self.running.pop(name, None):
                with contextlib.suppress(Exception):
                    tracker.close()
        finally:
            random.setstate(before)

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in [*self.running.items()]:
            with self._shielded(name):
                act(tracker)

    def write(self, line: Line) -> None:
        self._each(lambda tracker: tracker.write(line))

    def saved(self) -> None:
        self._each(lambda tracker: tracker.saved())

    def finish(self, summary: dict[str, Any], mistakes: list[tuple[Any, str]]) -> None:
        self._each(lambda tracker: tracker.finish(summary, mistakes))

    def close(self) -> None:
        self._each(lambda tracker: tracker.close())


def _reason(error: Exception) -> str:
    """Return the error as one line, without the user name and password that a URL may contain."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return printable(re.sub(r"://\S*@", "://", text))[:300]


def require(config: dict[str, Any]) -> None:
    """Raise ConfigError for a tracker that is not installed, and for a password in a config as it will be stored."""
    nodes = config.get("logger")
    if not isinstance(nodes, dict):
        return
    for name, package in {"mlflow": "MLflow", "wandb": "wandb"}.items():
        if name in nodes and find_spec(name) is None:
            raise ConfigError(f"logger={name}: needs {package}; in dltrain's checkout: pip install -e '.[{name}]'")
    mlflow = nodes.get("mlflow")
    if not isinstance(mlflow, dict):
        return
    address = re.sub(r"\$\{.*?\}", "", str(mlflow.get("tracking_uri")))  # a reference stores no password
    if re.search(r"://[^/]*:[^/]+@", address):
        raise ConfigError(
            "logger.mlflow.tracking_uri: holds a password, which would be stored with the run\n"
            "Leave it null and set the environment variable MLFLOW_TRACKING_URI, or write ${oc.env:NAME}"
        )
