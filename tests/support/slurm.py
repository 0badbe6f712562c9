"""A real Slurm of this machine's own: two nodes with two CPUs each, one more with a GPU on paper, and no accounting."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

# Short times: a lost node is noticed and a requeued job starts within seconds.
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket,cred_expire=5
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool-%n
SlurmctldPidFile={home}/ctld.pid
SlurmdPidFile={home}/slurmd-%n.pid
SlurmctldPort={ports[0]}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=2000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=bf_interval=2,sched_interval=2
ReturnToService=2
SlurmdTimeout=10
KillWait=5
MpiDefault=none
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=4000 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=4000 State=UNKNOWN
NodeName=g1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[3]} CPUs=2 RealMemory=4000 Gres=gpu:1 State=UNKNOWN
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=n[1-2] State=UP PriorityTier=2
PartitionName=gpu Nodes=g1 State=UP
"""
PROGRAMS = ("sbatch", "slurmctld", "slurmd", "munged", "mungekey")


@dataclass
class Cluster:
    """A running Slurm; `nodes` are its daemons."""

    home: Path
    nodes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    daemons: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def call(self, *command: str) -> str:
        """Run one of Slurm's commands and return its output."""
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    def jobs(self, *states: str, like: str = "dltrain-") -> dict[str, str]:
        """Return the ids of the jobs in such a state, all if none is given, by name; the last one of each name."""
        rows = self.call("squeue", "-h", "-t", ",".join(states) or "all", "-S", "i", "-o", "%j %i").splitlines()
        return {name: job for name, job in (row.split() for row in rows) if name.startswith(like)}

    def start_node(self, name: str) -> None:
        self.nodes[name] = self._daemon("slurmd", "-D", "-N", name, "-f", str(self.home / "slurm.conf"))

    def start_controller(self) -> None:
        self.daemons["slurmctld"] = self._daemon("slurmctld", "-D", "-f", str(self.home / "slurm.conf"))
        wait_for(lambda: subprocess.run(["sinfo"], capture_output=True, check=False).returncode == 0, seconds=60)

    def kill_controller(self) -> None:
        self.daemons["slurmctld"].kill()
        self.daemons["slurmctld"].wait()

    def kill_node(self, name: str) -> None:
        """Kill a node's daemon and all its jobs, as a power cut does."""
        self.nodes[name].kill()
        self.nodes[name].wait()
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                environ = (path / "environ").read_bytes().split(b"\0")
                if {f"SLURM_CONF={self.home}/slurm.conf".encode(), f"SLURMD_NODENAME={name}".encode()} <= {*environ}:
                    parent = int((path / "stat").read_text().rpartition(") ")[2].split()[1])  # Slurm's, of the job
                    for process in {parent, int(path.name)} - {1}:
                        os.kill(process, 9)

    def _daemon(self, *command: str) -> "subprocess.Popen[bytes]":
        with (self.home / f"{command[0]}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def wait_for_nodes(self) -> None:
        wait_for(lambda: {"n1", "n2", "g1"} <= {*self.call("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split()})


def wait_for(look: Callable[[], object], seconds: float = 240) -> None:
    """Wait until `look` returns something true."""
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, f"not so after {seconds} s"
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def running(home: Path) -> Iterator[Cluster]:
    """Start a Slurm in a folder, name it in SLURM_CONF, and stop it at the end. Skips the test where it cannot run."""
    if os.getuid() != 0:
        pytest.skip("starting Slurm needs root")
    if missing := [name for name in PROGRAMS if not (shutil.which(name) or shutil.which(f"/usr/sbin/{name}"))]:
        pytest.skip(f"not installed: {', '.join(missing)} (Debian's packages slurm-wlm and munge)")
    host = socket.gethostname().partition(".")[0]
    home.chmod(0o755)
    (home / "state").mkdir()
    (home / "slurm.conf").write_text(CONF.format(host=host, home=home, ports=_free_ports(4)))
    (home / "gres.conf").write_text("NodeName=g1 Name=gpu File=/dev/null\n")
    cluster = Cluster(home)
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setenv("SLURM_CONF", str(home / "slurm.conf"))
        patch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin")

        def stop() -> None:
            subprocess.run(["scancel", "-u", "root"], timeout=60, check=False)
            with contextlib.suppress(AssertionError, subprocess.SubprocessError):
                wait_for(lambda: not cluster.jobs("PENDING", "RUNNING", "COMPLETING", like=""), seconds=30)
            processes = [*cluster.nodes.values(), *reversed(cluster.daemons.values())]
            for process in processes:
                process.terminate()
            for process in processes:
                try:
                    process.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    process.kill()

        stack.callback(stop)
        key, munge = home / "munge.key", home / "munge.socket"
        cluster.call("mungekey", "--create", f"--keyfile={key}")
        files = [f"--{name}-file={home}/munge.{name}" for name in ("log", "pid", "seed")]
        munged = ("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge}", *files)
        cluster.daemons["munged"] = cluster._daemon(*munged)
        wait_for(munge.exists, seconds=30)
        cluster.start_controller()
        for name in ("n1", "n2", "g1"):
            cluster.start_node(name)
        cluster.wait_for_nodes()
        yield cluster
