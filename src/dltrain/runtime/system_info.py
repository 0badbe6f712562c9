"""Versions, hardware and git commit: what a result depends on. Imports torch only when called."""

import contextlib
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

VERSION = "0.1.0"
CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def versions() -> dict[str, str]:
    """Return the versions of dltrain and of what it computes with."""
    import numpy
    import torch

    return {
        "dltrain": VERSION,
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "python": platform.python_version(),
    }


def environment() -> dict[str, Any]:
    """Return the versions, the hardware and the git commit that a result depends on."""
    import torch

    return {
        "versions": versions(),
        "hardware": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_initialized() else None,
        },
        "git": _git_commit(),
    }


def cpu_name() -> str:
    """Return the CPU's model name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> float:
    """Return the cores that this process may use: its affinity, and the quota of its control groups."""
    cores = [float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)]
    with contextlib.suppress(OSError):
        for path in re.findall(r"^0::/(.*)$", OWN_CGROUP.read_text(), re.MULTILINE):
            for group in (CGROUPS / path, *(CGROUPS / path).parents):
                with contextlib.suppress(OSError, ValueError):  # "max" is no limit
                    quota, period = map(int, (group / "cpu.max").read_text().split())
                    cores.append(quota / period)
    return min(cores)


def _git_commit() -> str | None:
    """Return the commit of the current folder, with a + if files have changed; None outside a checkout."""
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
