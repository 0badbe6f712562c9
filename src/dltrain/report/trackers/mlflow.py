"""A run in an MLflow store. Knows MLflow's client alone, none of its global state.

What is logged there cannot be taken back, so figures are sent when a checkpoint has them: a run that is killed and
resumed computes the later ones again.
"""

import logging
import math
import os
import re
import time
from pathlib import Path
from typing import Any

from dltrain.report.trackers.lines import PLACE, Line, figures, flat
from dltrain.runtime import atomic_files, system_info

log = logging.getLogger(__name__)

MOST_METRICS, MOST_OTHERS = 1000, 100  # in one call, of MLflow
LONGEST_KEY, LONGEST_VALUE, LONGEST_TAG = 250, 500, 5000  # older servers take no longer ones
# For whoever has not set them. The last two keep a server that is away from holding up the run for minutes.
ENVIRONMENT = {
    "MLFLOW_ALLOW_FILE_STORE": "true",  # the only store that needs neither a server nor a database
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # it may hold a password
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


class MLflow:
    """A run in an MLflow store: parameters, curves, tags, summary (needs the extra mlflow)

    Args:
        tracking_uri: server, database or folder; null for what MLFLOW_TRACKING_URI names, else the folder mlruns
        experiment: name of the experiment, which is made if it is not there
    """

    def __init__(self, folder: Path, config: dict[str, Any], *, tracking_uri: str | None, experiment: str) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param, RunTag

        self.metric, self.param, self.tag = Metric, Param, RunTag
        usual = os.environ.get("MLFLOW_TRACKING_URI") or str(
            Path("mlruns").absolute()
        )  # MLflow keeps it for later runs
        self.client = MlflowClient(tracking_uri or usual)
        self.pending: list[Any] = []
        self.ended = self.told = False
        place = folder / "mlflow_run_id"
        run = self._kept(place)
        if run is None:
            run = self._created("/".join(folder.absolute().parts[-2:]), experiment)
            atomic_files.atomic_write(place, f"{run.info.run_id}\n".encode())
        else:
            self.client.update_run(run.info.run_id, status="RUNNING")
        self.id = run.info.run_id
        history = (self.client.get_metric_history(self.id, key) for key in run.data.metrics)
        self.known = {(metric.key, metric.step): metric.value for metrics in history for metric in metrics}
        self._describe(flat(config), run.data.params)

    def _kept(self, place: Path) -> Any:
        """The run that a resumed one had; None where there was none, or the store does not know it."""
        from mlflow.exceptions import MlflowException

        try:
            identity = place.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None
        if not re.fullmatch(r"[0-9a-f]{32}", identity):  # a stranger's would become part of an address
            raise ValueError(f"{place.name} holds no identity of a run")
        try:
            return self.client.get_run(identity)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def _created(self, name: str, experiment: str) -> Any:
        found = self.client.get_experiment_by_name(experiment)
        identity = found.experiment_id if found else self.client.create_experiment(experiment)
        environment = system_info.environment()
        tags = {f"version.{key}": value for key, value in environment["versions"].items()}
        tags |= {"mlflow.source.name": "dltrain", "mlflow.source.git.commit": environment["git"] or "none"}
        return self.client.create_run(identity, run_name=name, tags=tags)

    def _describe(self, config: dict[str, Any], before: dict[str, str]) -> None:
        """The config as parameters; what a resumed run has changed as tags, as a parameter stays what it was."""
        values = {_key(key): str(value)[:LONGEST_VALUE] for key, value in config.items()}
        new = [self.param(key, value) for key, value in values.items() if key not in before]
        changed = {key: value for key, value in values.items() if before.get(key, value) != value}
        for first in range(0, len(new), MOST_OTHERS):
            self.client.log_batch(self.id, params=new[first : first + MOST_OTHERS])
        self._set_tags({f"resumed.{key}": value for key, value in changed.items()})

    def _set_tags(self, tags: dict[str, str]) -> None:
        found = [self.tag(_key(key), value[:LONGEST_TAG]) for key, value in tags.items()]
        for first in range(0, len(found), MOST_OTHERS):
            self.client.log_batch(self.id, tags=found[first : first + MOST_OTHERS])

    def write(self, line: Line) -> None:
        """Note the figures of a record, for when they are saved."""
        self._note(figures(line), line["step"])

    def _note(self, values: dict[str, float], step: int) -> None:
        now = round(1000 * time.time())
        before = {k: self.known[k, step] for k in values if (k, step) in self.known}
        self.pending += [self.metric(k, v, now, step) for k, v in values.items() if k not in before]
        others = [k for k, v in before.items() if not k.endswith("_per_second") and not _is_close(v, values[k])]
        if others and not self.told:
            log.warning("logger.mlflow: keeps other figures of step %d and later, of before the resume", step)
            self.told = True

    def saved(self) -> None:
        """Send what was noted."""
        while self.pending:
            self.client.log_batch(self.id, metrics=self.pending[:MOST_METRICS])
            del self.pending[:MOST_METRICS]

    def finish(self, summary: dict[str, Any], mistakes: list[Any]) -> None:
        """The best figures, the whole summary as an artifact, and how the run ended."""
        best = summary["best"]
        self._note({f"best/{k}": v for k, v in best.items() if k not in PLACE}, best["step"])
        self.saved()
        self._set_tags({key: str(summary[key]) for key in ("status", "device")})
        self.client.set_terminated(self.id, "KILLED" if summary["status"] == "interrupted" else "FINISHED")
        self.ended = True
        self.client.log_dict(self.id, summary, "summary.json")

    def close(self) -> None:
        if not self.ended:
            self.client.set_terminated(self.id, "FAILED")


def _is_close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-6) or (math.isnan(one) and math.isnan(other))


def _key(name: str) -> str:
    """A name of the letters that MLflow takes."""
    return re.sub(r"[^\w.\- /]", "_", name)[:LONGEST_KEY]
