"""Logs a run to Weights & Biases, online or only into the folder of the run.

W&B takes each row of a run once, in the order of their numbers. A row is a line of metrics.jsonl, with its number, and is
sent when a checkpoint covers it: a run that is killed and resumed sends only the rows that W&B lacks.
"""

import contextlib
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from dltrain.report.trackers.lines import PLACE, Line, flat, metrics
from dltrain.runtime import atomic_files

QUIET = {"silent": True, "console": "off", "x_disable_meta": True, "x_disable_machine_info": True}
QUIET |= {"x_disable_stats": True, "x_save_requirements": False, "disable_git": True, "disable_code": True}
# Seconds, so that an unreachable server does not block the run for minutes.
TIMEOUTS = {"init_timeout": 30, "finish_timeout": 60, "finish_timeout_raises": True}


class WandB:
    """A run of Weights & Biases: config, curves, summary (needs the extra wandb)

    Args:
        project: name of the project, created if missing
        entity: team or user that the project belongs to; null for WANDB_ENTITY if set, else your own
        mode: `offline` writes to wandb/ in the run's folder, for `wandb sync`; null for WANDB_MODE if set, else online
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        *,
        project: str,
        entity: str | None,
        mode: Literal["online", "offline"] | None,
    ) -> None:
        id_file = folder / "wandb_run_id"
        if not id_file.exists():
            atomic_files.atomic_write(id_file, f"{secrets.token_hex(8)}\n".encode())
        run_id = id_file.read_text(encoding="utf-8").strip()
        if not re.fullmatch(r"[0-9a-f]{16}", run_id):  # it becomes part of a path, and the file may be untrusted
            raise ValueError(f"{id_file.name} holds no ID of a run")
        local = folder.absolute() / "wandb"
        shutil.rmtree(local, ignore_errors=True)  # a resumed run writes it again from metrics.jsonl
        local.mkdir()
        self.pending: list[dict[str, float]] = []
        self.ended = False
        with _put_back(WANDB_ERROR_REPORTING="false", WANDB_CACHE_DIR=str(local / "cache")):
            import wandb

            if (mode or os.environ.get("WANDB_MODE", "online")) == "online" and not wandb.login(prompt=False):
                raise RuntimeError("no API key; set WANDB_API_KEY, or run wandb login, or set logger.wandb.mode=offline")
            self.run = wandb.init(
                project=project,
                entity=entity,
                mode=mode,
                dir=str(folder.absolute()),
                id=run_id,
                resume="allow",
                reinit="create_new",  # a run of the caller goes on
                name="/".join(folder.absolute().parts[-2:]),
                config=flat(config),
                allow_val_change=True,
                settings=wandb.Settings(**QUIET, **TIMEOUTS),
            )
        self.run.define_metric("*", step_metric="step")
        self.sent = 0  # lines

    def write(self, line: Line) -> None:
        """Queue a record until a checkpoint covers it."""
        self.pending.append(metrics(line) | {"step": line["step"], "epoch": line["epoch"]})

    def saved(self) -> None:
        """Send the queued records, except those that W&B has from before a resume."""
        for self.sent, row in enumerate(self.pending, start=self.sent + 1):
            if self.sent > self.run.step:
                self.run.log(row, step=self.sent - 1, commit=True)
        self.pending = []

    def finish(self, summary: dict[str, Any], mistakes: list[Any]) -> None:
        """Send the rest, the best metrics, and how the run ended."""
        self.saved()
        best = {f"best/{key}": value for key, value in summary["best"].items() if key not in PLACE}
        self.run.summary.update(best | {key: summary[key] for key in ("status", "device")})
        self.ended = True
        self.run.finish(exit_code=int(summary["status"] == "interrupted"))

    def close(self) -> None:
        if not self.ended:
            self.run.finish(exit_code=1)


@contextlib.contextmanager
def _put_back(**environment: str) -> Iterator[None]:
    """Set environment variables that the user has not set; put back these and what wandb.init replaces in sys."""
    new = {name: value for name, value in environment.items() if name not in os.environ}
    before = sys.exit, sys.excepthook
    os.environ.update(new)
    try:
        yield
    finally:
        sys.exit, sys.excepthook = before
        for name in new:
            os.environ.pop(name, None)
