"""Versions, hardware and git commit: what a result depends on. Imports torch only when called."""

import contextlib
import os
import platform
import resource
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

VERSION = "0.1.0"


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


def peak_memory() -> dict[str, int | None]:
    """Return the most bytes that this process has had in memory, and its tensors on the GPU, null without one."""
    import torch

    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"host": host, "gpu": torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None}


def command_line() -> str | None:
    """Return the command that started this process; None if another program did, whose arguments may be secret."""
    program, *arguments = sys.argv or [""]
    is_ours = Path(program).name == "dltrain" or Path(program).parts[-2:] == ("dltrain", "__main__.py")
    return shlex.join(["dltrain", *arguments]) if is_ours else None


def cpu_name() -> str:
    """Return the CPU's model name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """Return the commit of the current folder, with a + if files have changed; None outside a checkout."""
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
