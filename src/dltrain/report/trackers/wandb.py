"""Logs a run to Weights & Biases, online or only into the folder of the run.

W&B takes each row of a run once, by its number. A row is a line of metrics.jsonl, sent when a checkpoint covers it.
"""

import os
import re
import secrets
import shutil
import sys
from pathlib import Path
from typing import Any, Literal

from dltrain.report.trackers.lines import PLACE, Line, flat, metrics
from dltrain.runtime import atomic_files

Mode = Literal["online", "offline"] | None
SETTINGS: dict[str, Any] = {"silent": True, "console": "off", "x_disable_meta": True, "x_disable_machine_info": True}
SETTINGS |= {"x_disable_stats": True, "x_save_requirements": False, "disable_git": True, "disable_code": True}
SETTINGS |= {"init_timeout": 30, "finish_timeout": 60, "finish_timeout_raises": True}  # seconds, for a dead server


class WandB:
    """A run of Weights & Biases: config, curves, summary (needs the extra wandb)

    Args:
        project: name of the project, created if missing
        entity: team or user that the project belongs to; null for WANDB_ENTITY if set, else your own
        mode: `offline` writes to wandb/ in the run's folder, for `wandb sync`; null for WANDB_MODE if set, else online
    """

    def __init__(self, folder: Path, config: dict[str, Any], *, project: str, entity: str | None, mode: Mode) -> None:
        self.rows: list[dict[str, float]] = []  # not yet sent
        self.sent, folder = 0, folder.absolute()
        if not (file := folder / "wandb_run_id").exists():
            atomic_files.atomic_write(file, f"{secrets.token_hex(8)}\n".encode())
        if not re.fullmatch(r"[0-9a-f]{16}", run_id := file.read_text(encoding="utf-8").strip()):
            raise ValueError(f"{file.name} holds no W&B run ID")  # which becomes part of a path
        shutil.rmtree(folder / "wandb", ignore_errors=True)  # a resumed run writes it again from metrics.jsonl
        os.environ.update({"WANDB_ERROR_REPORTING": "false", "WANDB_CACHE_DIR": f"{folder}/wandb/cache"} | os.environ)
        import wandb

        if (mode or os.environ.get("WANDB_MODE", "online")) == "online" and not wandb.login(prompt=False):
            raise RuntimeError("no API key; set WANDB_API_KEY, or run wandb login, or set logger.wandb.mode=offline")
        place: dict[str, Any] = {"project": project, "entity": entity, "mode": mode, "dir": str(folder), "id": run_id}
        place |= {"name": "/".join(folder.parts[-2:]), "settings": wandb.Settings(**SETTINGS)}
        place |= {"tags": config.get("tags"), "notes": config.get("note")}
        before = sys.exit, sys.excepthook  # which wandb replaces; `create_new` lets a run of the caller go on
        self.run = wandb.init(**place, config=flat(config), allow_val_change=True, resume="allow", reinit="create_new")
        sys.exit, sys.excepthook = before
        for link in filter(Path.is_symlink, [*(folder / "wandb").rglob("*")]):
            link.unlink()  # a folder with links is not resumed
        self.run.define_metric("*", step_metric="step")

    def write(self, line: Line) -> None:
        self.rows.append(metrics(line) | {"step": line["step"], "epoch": line["epoch"]})

    def saved(self) -> None:
        """Send the queued records, except those that W&B has from before a resume."""
        for number, row in enumerate(self.rows, start=self.sent):
            if number >= self.run.step:
                self.run.log(row, step=number, commit=True)
        self.sent, self.rows = self.sent + len(self.rows), []

    def finish(self, summary: dict[str, Any], mistakes: list[Any]) -> None:
        self.saved()
        best = {f"best/{key}": value for key, value in summary["best"].items() if key not in PLACE}
        self.run.summary.update(best | {key: summary[key] for key in ("status", "device")})
        self.run.finish(exit_code=int(summary["status"] == "interrupted"))

    def close(self) -> None:
        self.run.finish(exit_code=1)  # does nothing if it has ended
