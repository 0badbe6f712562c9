"""A real Ray cluster of several nodes on this machine: each is a raylet of its own with its own workers."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SECONDS = 120.0  # for anything that Ray does; a start takes some 4 s
HEAD = "head"
QUIET = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
    "RAY_enable_open_telemetry": "0",
}
# A node counts as dead after 2 s without an answer, instead of some 30.
ALERT = {"RAY_health_check_period_ms": "500", "RAY_health_check_timeout_ms": "1000"}
ALERT |= {"RAY_health_check_failure_threshold": "2", "RAY_health_check_initial_delay_ms": "1000"}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def descendants(pid: int) -> list[int]:
    """Return a process and all that it has started, directly or not."""
    parents = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
    family = [pid]
    for one in family:
        family += [child for child, parent in parents.items() if parent == one]
    return family


def name_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return (Path("/proc") / str(pid) / "comm").read_text().strip()
    return ""


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "\nState:\tZ" not in (Path("/proc") / str(pid) / "status").read_text()
    return False


@dataclass
class Cluster:
    """A head and further nodes, of two CPUs each."""

    folder: Path
    port: int = field(default_factory=free_port)
    nodes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    seen: dict[str, set[int]] = field(default_factory=dict)  # all processes of each node so far

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self, name: str = HEAD, cpus: int = 2) -> None:
        """Start the head or, by any other name, a further node; return when it is ready."""
        if name == HEAD:
            how = ["--head", f"--port={self.port}", "--include-dashboard=false", f"--temp-dir={self.folder / 'ray'}"]
        else:
            how = [f"--address={self.address}"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *how, f"--num-cpus={cpus}", "--block"]
        log = self.folder / f"{name}.log"
        with log.open("wb") as out:
            self.nodes[name] = subprocess.Popen(
                [*command, "--node-ip-address=127.0.0.1"],
                cwd=self.folder,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | QUIET | ALERT,
                start_new_session=True,
            )
        end = time.monotonic() + SECONDS
        while b"Ray runtime started" not in log.read_bytes():
            assert self.nodes[name].poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)

    def processes(self, name: str) -> set[int]:
        """Return the processes of a node, its workers included, and those that lost their parent since."""
        self.seen[name] = self.seen.get(name, set()) | set(descendants(self.nodes[name].pid))
        return set(filter(is_alive, self.seen[name]))

    def rename(self, name: str, other: str) -> None:
        self.processes(name)
        self.nodes[other], self.seen[other] = self.nodes.pop(name), self.seen.pop(name)

    def kill_raylet(self, name: str) -> None:
        """Kill the raylet alone, as an out-of-memory killer would; its workers end by themselves."""
        (raylet,) = (pid for pid in self.processes(name) if name_of(pid) == "raylet")
        os.kill(raylet, signal.SIGKILL)

    def kill(self, name: str) -> None:
        """Kill all processes of a node at once, as a power cut does."""
        family = self.processes(name)
        for pid in family:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self.nodes.pop(name).wait()
        del self.seen[name]
        end = time.monotonic() + SECONDS
        while left := [pid for pid in family if is_alive(pid)]:
            assert time.monotonic() < end, left
            time.sleep(0.02)

    def close(self) -> None:
        for name in [*self.nodes]:
            if name in self.nodes:
                self.kill(name)


@contextlib.contextmanager
def cluster(*nodes: str, cpus: int = 2) -> Iterator[Cluster]:
    """Yield a cluster of a head and further `nodes`, each with this many CPUs."""
    # Not in pytest's folder: Ray's sockets are named by their whole path, of which the system takes 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    made = Cluster(folder)
    try:
        for name in (HEAD, *nodes):
            made.start(name, cpus)
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)
