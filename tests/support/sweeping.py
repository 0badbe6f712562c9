"""Helpers for tests of sweeps: short jobs, their folders and rows, and a model that fails in many ways."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

from support.command import Result

QUICK = ("model=mlp", "model.hidden=[16]", "data.limit=100", "epochs=1")


def sweep_folder(result: Result) -> Path:
    line = next(line for line in result.out.splitlines() if line.startswith("table: "))
    return Path(line.removeprefix("table: ")).parent


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


FAULTY = """
import ctypes, os, signal, time
import torch
from torch import nn

CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"
WHEN_IMPORTED = os.environ.get(CHECK)
torch.ones(600, 600) @ torch.ones(600, 600)  # a parallel operation in the parent: forked workers must not hang

class Faulty(nn.Module):
    def __init__(self, input_shape, num_classes, how="none", mark=""):
        super().__init__()
        channels, height, width = input_shape
        self.how, self.mark = how.partition("-")[0], mark
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, num_classes))

    def forward(self, images):
        if self.training and (not self.mark or not os.path.exists(self.mark)):
            if self.mark:
                open(self.mark, "w").close()
            if self.how == "exit":
                os._exit(3)
            elif self.how == "leave":
                raise SystemExit(4)
            elif self.how == "raise":
                raise RuntimeError("it was asked for")
            elif self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif self.how == "usr2":
                os.kill(os.getpid(), signal.SIGUSR2)
            elif self.how == "nap":
                self.how = "none"
                time.sleep(3)
            elif self.how == "slow":
                time.sleep(0.2)
            elif self.how == "hog":
                self.hoard = torch.ones(3 << 28)  # 3 GiB
                time.sleep(1000)
            elif self.how == "abort":
                os.abort()
            elif self.how == "segv":
                ctypes.string_at(0)
            elif self.how == "gpu":
                print("CHECK", WHEN_IMPORTED, os.environ.get(CHECK))
                print("GPU", *{os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")})
            elif self.how == "hang":
                time.sleep(1000)
            elif self.how == "spin":
                while True:
                    pass
            elif self.how == "family":
                os.fork()
                time.sleep(1000)
            elif self.how == "children":
                os.fork() or time.sleep(1000)
                os.kill(os.getpid(), signal.SIGKILL)
        return self.layers(images)
"""


MODEL = ("model=custom", "model.name=faulty_nets:Faulty", *QUICK[2:])


def write_faulty(folder: Path) -> None:
    (folder / "faulty_nets.py").write_text(FAULTY)


def processes_in(folder: Path) -> list[int]:
    """Return the IDs of all other processes whose current folder this is."""
    processes = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and int(path.name) != os.getpid():
            try:
                is_here = (path / "cwd").readlink() == folder
                is_dead = "\nState:\tZ" in (path / "status").read_text()
            except OSError:  # it has ended, or is not ours
                continue
            if is_here and not is_dead:
                processes.append(int(path.name))
    return processes


def run_alone(*arguments: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Run a command line in a new process, where nothing hangs because pytest has forked."""
    command = [sys.executable, "-m", "dltrain", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def events(folder: Path) -> list[dict[str, Any]]:
    """Return the events of the journal, without an incomplete last line that a kill has left."""
    content = (folder / "journal.jsonl").read_text() if (folder / "journal.jsonl").exists() else ""
    return [json.loads(line) for line in content.splitlines(keepends=True) if line.endswith("\n")]


def wait_for_no_orphan(folder: Path, keep: set[int]) -> None:
    deadline = time.monotonic() + 60
    while (left := set(processes_in(folder)) - keep) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left


def generate_pictures(folder: Path) -> None:
    for name, colour in (("black", 0), ("white", 255)):
        (folder / name).mkdir()
        for number in range(12):
            Image.new("L", (8, 8), colour).save(folder / name / f"{number}.png")
