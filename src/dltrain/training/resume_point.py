"""Opens the run folder to resume, with its checkpoint, and checks that all ranks have the same data."""

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dltrain.checkpoints import checkpoint
from dltrain.runtime import atomic_files, distributed, folders
from dltrain.runtime.errors import ConfigError, InputError
from dltrain.runtime.torchrun import Processes

WRITTEN = ["checkpoints/last.pt", "checkpoints/best.pt", "summary.json", ".hydra/config.yaml", ".hydra/origins.json"]
WRITTEN += ["analysis.json", "report.html", "metrics.csv"]  # atomically, in the folder of a run
WRITTEN += ["mlflow_run_id", "wandb_run_id", "profile.json", "profile.txt"]


@dataclass(frozen=True)
class ResumePoint:
    """Where a resumed run continues: its folder, and the file and content of its checkpoint."""

    folder: Path
    path: Path
    content: dict[str, Any]


@contextlib.contextmanager
def open_resume_point(text: object, processes: Processes) -> Iterator[ResumePoint]:
    """Open the run folder that `resume` names; with several processes the first reads it for all."""
    if processes.rank == 0:
        with _opened(text) as start:
            if processes.world_size > 1:
                buffer = io.BytesIO()
                torch.save(start.content, buffer)
                distributed.broadcast_bytes(buffer.getvalue(), processes)
            yield start
    else:
        buffer = io.BytesIO(distributed.broadcast_bytes(b"", processes))
        content = torch.load(buffer, map_location="cpu", weights_only=True)
        if content["sums"] is not None:  # the first rank has the sums of all
            content["sums"].zero_()
        folder = Path(str(text))
        yield ResumePoint(folder, folder / "checkpoints" / "last.pt", content)


@contextlib.contextmanager
def _opened(text: object) -> Iterator[ResumePoint]:
    """Lock the run folder that `resume` names and load the newest checkpoint in it that is undamaged."""
    if not isinstance(text, str) or not text:
        raise ConfigError(f"resume={text}: must be the folder of a run")
    path = checkpoint.find(Path(text), "last.pt").absolute()
    here, folder = Path.cwd(), path.parent.parent
    unfit = InputError(f"{text}: only last.pt in the folder of a run can be resumed. Give that folder, or use init=")
    if path.parent.name != "checkpoints":
        raise unfit
    folders.refuse_links(folder)
    with folders.locked(folder / ".lock", wait=False):
        for name in WRITTEN:
            atomic_files.remove_leftovers(folder / name)
        path, content = checkpoint.load_newest(path)
        if "optimizer" not in content:
            raise unfit
        yield ResumePoint(folder.relative_to(here) if folder.is_relative_to(here) else folder, path, content)


def require_same_data_on_all_ranks(digests: dict[str, str], processes: Processes) -> None:
    """Raise InputError unless all processes, which may be on several machines, have the same data."""
    all_digests = distributed.all_gather_text(repr(sorted(digests.items())), processes)
    if others := [str(rank) for rank, text in enumerate(all_digests) if text != all_digests[0]]:
        ranks = ", ".join(others[:8])
        raise InputError(f"data: rank {ranks} has other data than rank 0\nGive all machines the same files")
