"""The trackers of a run, and what keeps them from harming it: one that fails is told once and dropped."""

import contextlib
import logging
import random
import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from dltrain.config import registry
from dltrain.report.trackers import lines
from dltrain.report.trackers.lines import Line
from dltrain.runtime.errors import ConfigError, printable

log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Gets every line of metrics.jsonl, in a resumed run first those that were there before."""

    def write(self, line: Line) -> None: ...

    def saved(self) -> None:
        """A checkpoint has all that was written: it will not be computed again."""

    def finish(self, summary: dict[str, Any], mistakes: list[tuple[Any, str]]) -> None:
        """The run has come to an end; `mistakes` are pictures, uint8 (C, H, W), each with its title."""

    def close(self) -> None: ...


class Trackers:
    """Those that the node `logger` names, each with its keys, of the run in `folder`."""

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
        before = random.getstate()  # a library may draw from it, as between two tries of a connection
        try:
            yield
        except Exception as error:
            log.warning("logger=%s has failed and is left out from here on: %s", name, _reason(error))
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
    """What went wrong in a line, without the name and password that an address may hold."""
    words = " ".join(f"{type(error).__name__}: {error}".split())
    return printable(re.sub(r"://\S*@", "://", words))[:300]


def require(config: dict[str, Any]) -> None:
    """Raise ConfigError for a tracker that is not installed, and for a password that would be stored with the run.

    `config` is the one that is stored, its references not filled in.
    """
    nodes = config.get("logger")
    mlflow = nodes.get("mlflow") if isinstance(nodes, dict) else None
    if not isinstance(mlflow, dict):
        return
    if find_spec("mlflow") is None:
        raise ConfigError("logger=mlflow: needs MLflow; in dltrain's checkout: pip install '.[mlflow]'")
    address = re.sub(r"\$\{.*?\}", "", str(mlflow.get("tracking_uri")))  # a reference holds none
    if re.search(r"://[^/]*:[^/]+@", address):
        raise ConfigError(
            "logger.mlflow.tracking_uri: holds a password, which would be stored with the run\n"
            "Leave it null and set the environment variable MLFLOW_TRACKING_URI, or write ${oc.env:NAME}"
        )
