"""Two hosts on this machine: network namespaces with addresses and names of their own, and a cable that can be pulled.

Each host reads its own /etc/hosts, which names both; they share the file system.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PORT = 29500
ADDRESSES = {"alpha": "10.77.0.1", "beta": "10.77.0.2"}


def run(*command: str) -> str:
    """Run a command and return what it printed."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


@dataclass(frozen=True)
class Host:
    """A network namespace; `hosts` is its /etc/hosts."""

    name: str
    space: str
    hosts: Path

    def start(self, folder: Path, *command: str) -> "subprocess.Popen[bytes]":
        """Start a process of this host in a folder; it prints into NAME.log there."""
        folder.mkdir(exist_ok=True, parents=True)
        become = 'mount --bind "$0" /etc/hosts && hostname "$1" && shift && exec "$@"'
        # One program after the other in the same process, so that a signal reaches the last.
        inside = ("ip", "netns", "exec", self.space, "unshare", "--uts", "--mount", "sh", "-c", become)
        environment = {key: value for key, value in os.environ.items() if key not in ("DLTRAIN_TRACEBACK",)}
        with (folder / f"{self.name}.log").open("ab") as log:
            return subprocess.Popen(
                [*inside, str(self.hosts), self.name, *command],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment | {"OMP_NUM_THREADS": "1", "TORCHELASTIC_ERROR_FILE": str(folder / "error.json")},
            )

    def processes(self) -> list[int]:
        """Return all processes of the host."""
        return [int(number) for number in run("ip", "netns", "pids", self.space).split()]

    def workers(self) -> dict[int, int]:
        """Return the processes that torchrun has started here, by their rank."""
        ranks = {}
        for number in self.processes():
            with contextlib.suppress(OSError):
                entries = Path(f"/proc/{number}/environ").read_bytes().split(b"\0")
                ranks |= {int(entry[5:]): number for entry in entries if entry.startswith(b"RANK=")}
        return ranks

    def kill_all(self) -> None:
        """Kill all processes of the host, as a loss of power does."""
        for number in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)


@dataclass(frozen=True)
class TwoHosts:
    """The hosts `alpha` and `beta`; torchrun gives rank 0 to the first in the order of names."""

    alpha: Host
    beta: Host

    @property
    def both(self) -> tuple[Host, Host]:
        return self.alpha, self.beta

    def pull_the_cable(self) -> None:
        run("ip", "-n", self.alpha.space, "link", "set", "eth0", "down")

    def plug_the_cable_in(self) -> None:
        run("ip", "-n", self.alpha.space, "link", "set", "eth0", "up")

    def torchrun(
        self, folders: tuple[Path, Path], *words: str, meet: str = "alpha", restarts: int = 0
    ) -> list["subprocess.Popen[bytes]"]:
        """Start torchrun on both hosts, in a folder each; they meet at the host `meet`."""
        options = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint={meet}:{PORT}"]
        options += [f"--rdzv-id={folders[0].name}", f"--max-restarts={restarts}"]
        command = [sys.executable, "-m", "torch.distributed.run", *options]
        return [host.start(at, *command, *words) for host, at in zip(self.both, folders, strict=True)]


@contextlib.contextmanager
def two_hosts(folder: Path) -> Iterator[TwoHosts]:
    """Yield two hosts, which are gone with all their processes at the end; skip the test where they cannot be made."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("needs root and the commands ip and unshare for network namespaces")
    for space in Path("/run/netns").glob("dltrain-*"):
        if not Path("/proc", space.name.split("-")[1]).exists():  # of a test that was killed
            _remove(Host("", space.name, folder))
    hosts = folder / "hosts"
    hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in ADDRESSES.items()))
    alpha, beta = (Host(name, f"dltrain-{os.getpid()}-{name}", hosts) for name in ADDRESSES)
    try:
        for host in (alpha, beta):
            try:
                run("ip", "netns", "add", host.space)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"the kernel refuses network namespaces: {error.stderr.strip()}")
        run(*f"ip link add eth0 netns {alpha.space} type veth peer name eth0 netns {beta.space}".split())
        for host in (alpha, beta):
            run("ip", "-n", host.space, "address", "add", f"{ADDRESSES[host.name]}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                run("ip", "-n", host.space, "link", "set", device, "up")
        yield TwoHosts(alpha, beta)
    finally:
        for host in (alpha, beta):
            if Path("/run/netns", host.space).exists():
                _remove(host)


def _remove(host: Host) -> None:
    end = time.monotonic() + 30
    while host.processes() and time.monotonic() < end:
        host.kill_all()
        time.sleep(0.05)
    run("ip", "netns", "del", host.space)
