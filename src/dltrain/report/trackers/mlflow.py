"""Logs a run to an MLflow store. Uses MLflow's client only, none of its global state.

MLflow deletes no metric, so metrics are sent when a checkpoint covers them: a resume computes the later ones again.
"""

import logging
import math
import os
import re
import time
from pathlib import Path
from typing import Any

from dltrain.report.trackers.lines import PLACE, Line, flat, metrics
from dltrain.runtime import atomic_files, system_info

log = logging.getLogger(__name__)

MOST_METRICS, MOST_OTHERS = 1000, 100  # per call, limits of MLflow
LONGEST_KEY, LONGEST_VALUE, LONGEST_TAG = 250, 500, 5000  # limits of older servers
# Defaults. With the last two an unreachable server does not block the run for minutes.
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
        tracking_uri: server, database or folder; null for MLFLOW_TRACKING_URI if set, else the folder mlruns
        experiment: name of the experiment, created if missing
    """

    def __init__(self, folder: Path, config: dict[str, Any], *, tracking_uri: str | None, experiment: str) -> None:
        os.environ.update(ENVIRONMENT | os.environ)
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param, RunTag

        self.metric, self.param, self.tag = Metric, Param, RunTag
        # An absolute path, because MLflow keeps it for later runs.
        default = os.environ.get("MLFLOW_TRACKING_URI") or str(Path("mlruns").absolute())
        self.client = MlflowClient(tracking_uri or default)
        self.pending: list[Any] = []
        self.ended = self.has_warned = False
        id_file = folder / "mlflow_run_id"
        run = self._existing_run(id_file)
        if run is None:
            run = self._create_run("/".join(folder.absolute().parts[-2:]), experiment)
            atomic_files.atomic_write(id_file, f"{run.info.run_id}\n".encode())
        else:
            self.client.update_run(run.info.run_id, status="RUNNING")
        self.id = run.info.run_id
        history = (self.client.get_metric_history(self.id, key) for key in run.data.metrics)
        self.known = {(metric.key, metric.step): metric.value for metrics in history for metric in metrics}
        self._describe(flat(config), run.data.params)

    def _existing_run(self, id_file: Path) -> Any:
        """Return the MLflow run of a resumed run; None if it had none or the store does not know it."""
        from mlflow.exceptions import MlflowException

        if not id_file.exists():
            return None
        run_id = id_file.read_text(encoding="utf-8").strip()
        if not re.fullmatch(r"[0-9a-f]{32}", run_id):  # it becomes part of a URL, and the file may be untrusted
            raise ValueError(f"{id_file.name} holds no MLflow run ID")
        try:
            return self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def _create_run(self, name: str, experiment: str) -> Any:
        existing = self.client.get_experiment_by_name(experiment)
        experiment_id = existing.experiment_id if existing else self.client.create_experiment(experiment)
        environment = system_info.environment()
        tags = {f"version.{key}": value for key, value in environment["versions"].items()}
        tags |= {"mlflow.source.name": "dltrain", "mlflow.source.git.commit": environment["git"] or "none"}
        return self.client.create_run(experiment_id, run_name=name, tags=tags)

    def _describe(self, config: dict[str, Any], before: dict[str, str]) -> None:
        """Log the config as parameters, and what a resumed run has changed as tags: MLflow parameters are final."""
        values = {_key(key): str(value)[:LONGEST_VALUE] for key, value in config.items()}
        new = [self.param(key, value) for key, value in values.items() if key not in before]
        changed = {key: value for key, value in values.items() if before.get(key, value) != value}
        for first in range(0, len(new), MOST_OTHERS):
            self.client.log_batch(self.id, params=new[first : first + MOST_OTHERS])
        self._set_tags({f"resumed.{key}": value for key, value in changed.items()})

    def _set_tags(self, tags: dict[str, str]) -> None:
        entities = [self.tag(_key(key), value[:LONGEST_TAG]) for key, value in tags.items()]
        for first in range(0, len(entities), MOST_OTHERS):
            self.client.log_batch(self.id, tags=entities[first : first + MOST_OTHERS])

    def write(self, line: Line) -> None:
        """Queue the metrics of a record until a checkpoint covers them."""
        self._queue(metrics(line), line["step"])

    def _queue(self, values: dict[str, float], step: int) -> None:
        now = round(1000 * time.time())
        before = {k: self.known[k, step] for k in values if (k, step) in self.known}
        self.pending += [self.metric(k, v, now, step) for k, v in values.items() if k not in before]
        kept = {k: v for k, v in before.items() if not k.endswith("_per_second")}
        if not self.has_warned and any(not math.isclose(v, values[k], rel_tol=1e-6) for k, v in kept.items()):
            log.warning("logger.mlflow: MLflow keeps other metrics of step %d and later, from before the resume", step)
            self.has_warned = True

    def saved(self) -> None:
        """Send the queued metrics."""
        while self.pending:
            self.client.log_batch(self.id, metrics=self.pending[:MOST_METRICS])
            del self.pending[:MOST_METRICS]

    def finish(self, summary: dict[str, Any], mistakes: list[Any]) -> None:
        """Log the best metrics, the summary as an artifact, and how the run ended."""
        best = summary["best"]
        self._queue({f"best/{k}": v for k, v in best.items() if k not in PLACE}, best["step"])
        self.saved()
        self._set_tags({key: str(summary[key]) for key in ("status", "device")})
        self.client.set_terminated(self.id, "KILLED" if summary["status"] == "interrupted" else "FINISHED")
        self.ended = True
        self.client.log_dict(self.id, summary, "summary.json")

    def close(self) -> None:
        if not self.ended:
            self.client.set_terminated(self.id, "FAILED")


def _key(name: str) -> str:
    """Return a name with the characters that MLflow accepts."""
    return re.sub(r"[^\w.\- /]", "_", name)[:LONGEST_KEY]
