"""Versions, hardware and code: what a result depends on. Imports torch only when called."""

import contextlib
import os
import platform
import re
import resource
import shlex
import subprocess
import sys
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


def environment(device: str = "cpu") -> dict[str, Any]:
    """Return the versions, the hardware and the git commit that a result on such a device depends on."""
    import torch

    commit = _git("describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*").decode().strip()
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    return {
        "versions": versions(),
        "hardware": {"cpu": cpu_name(), "cores": os.cpu_count(), "gpu": gpu},
        "git": commit or None,  # with a + if files have changed; None outside a checkout
    }


def process(device: str = "cpu") -> dict[str, Any]:
    """Return the peak memory in bytes and the command line; not that of another program, which may hold secrets."""
    import torch

    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    gpu = torch.cuda.max_memory_allocated() if device == "cuda" else None
    is_ours = Path(sys.argv[0]).name == "dltrain" or Path(sys.argv[0]).parts[-2:] == ("dltrain", "__main__.py")
    command = shlex.join(["dltrain", *sys.argv[1:]]) if is_ours else None
    return {"peak_memory": {"host": host, "gpu": gpu}, "command": command}


def keep_code(folder: Path) -> None:
    """Write packages.txt and, of a git checkout with changes, code.diff; for a sweep's job its sweep has done so."""
    if (folder.parent / "packages.txt").exists():
        return
    with contextlib.suppress(OSError):
        # The names of these folders are enough: to read the metadata in them takes a hundred times as long.
        found = {path.stem.replace("-", "==", 1) for entry in sys.path for path in Path(entry).glob("*.dist-info")}
        (folder / "packages.txt").write_text("\n".join([*sorted(found), ""]), encoding="utf-8")
        diff = _git("diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv")
        # Without --no-empty-directory git also names folders, such as outputs/, in which everything is ignored.
        flags = "--others", "--exclude-standard", "--directory", "--no-empty-directory"
        untracked = _git("ls-files", *flags).splitlines()
        head = b"".join(b"# not tracked by git, and not included: " + name + b"\n" for name in untracked)
        end = b"\n# cut off after 1 MiB\n" if len(diff) > 1 << 20 else b""
        if head or diff:
            (folder / "code.diff").write_bytes(head + diff[: 1 << 20] + end)


def cpu_name() -> str:
    """Return the CPU's model name."""
    with contextlib.suppress(OSError):
        if model := re.search(r"^model name\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return model[1].strip()
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


def _git(*arguments: str) -> bytes:
    """Return what git prints; empty if it fails. It runs no program that the checkout names to watch files."""
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", *arguments]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, check=True, timeout=10).stdout
    return b""
