"""Sweeps on a real Slurm of two nodes: what Slurm does to jobs is followed, and the table stays that of one machine."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.slurm import Cluster, running, wait_for
from support.sweeping import events, rows, run_alone, wait_for_no_orphan, write_faulty

# Two steps an epoch, each of 0.2 s; a run saves after every step.
FAULTY = ("model=custom", "model.name=faulty_nets:Faulty", "data.limit=100", "checkpoint_every=1", "log_every=1")
FAULTY += ("device=cpu", "device.threads=1")
SLOW = (*FAULTY, "+model.how=slow")
ON_SLURM = "sweep.executor=slurm"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture
def cluster(started: Cluster, tmp_path: Path) -> Iterator[Cluster]:
    """The cluster, without jobs; a test leaves none either."""
    write_faulty(tmp_path)
    yield started
    left = started.jobs("PENDING", "RUNNING", "SUSPENDED", like="")
    for job in left.values():
        started.call("scancel", job)
    wait_for(lambda: not started.jobs("PENDING", "RUNNING", "COMPLETING", like=""))
    assert left == {}


class Sweep:
    """A sweep in a process of its own, in a folder; its output is in out.txt there."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder, self.arguments = folder, arguments
        with (folder / "out.txt").open("a") as out:
            command = [sys.executable, "-m", "dltrain", "train", *arguments]
            self.process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out)

    @property
    def path(self) -> Path:
        (found,) = self.folder.glob("outputs/sweeps/*/*")
        return found

    @property
    def out(self) -> str:
        return (self.folder / "out.txt").read_text()

    def steps(self, number: int) -> int:
        """How many steps the records of a job show."""
        path = next(self.folder.glob(f"outputs/sweeps/*/*/{number}_*/metrics.jsonl"), None)
        return path.read_text().count('"train"') if path is not None else 0

    def id_at_step(self, number: int, step: int = 2) -> str:
        """Wait until a job has made some steps, and return its id."""
        wait_for(lambda: self.steps(number) >= step or self.process.poll() is not None)
        return [event["id"] for event in events(self.path) if event["event"] == "submitted" and event["job"] == number][
            -1
        ]

    def end(self, code: int = 0) -> list[dict[str, str]]:
        """Wait until the sweep ends with such a code, and return its table without seconds."""
        assert self.process.wait(timeout=300) == code, self.out
        assert "Traceback" not in self.out, self.out
        return [{key: value for key, value in row.items() if key != "seconds"} for row in rows(self.path)]

    def log(self, number: int) -> str:
        return next(self.path.glob(f"{number}_*/train.log")).read_text()


@pytest.fixture
def sweep(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., Sweep]]:
    """Start a sweep on the cluster."""
    sweeps: list[Sweep] = []

    def start(*arguments: str) -> Sweep:
        sweeps.append(Sweep(tmp_path, *arguments))
        return sweeps[-1]

    yield start
    for each in sweeps:
        each.process.kill()
        each.process.wait()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """The table of four slow jobs of ten epochs on this machine."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_faulty(folder)
    return Sweep(folder, "-m", *SLOW, "epochs=10", "seed=range(4)", "sweep.workers=4").end()


def test_requeues_and_preemptions_are_followed_to_the_same_table(
    cluster: Cluster, sweep: Callable[..., Sweep], undisturbed: list[dict[str, str]]
) -> None:
    running = sweep("-m", *SLOW, "epochs=10", "seed=range(4)", ON_SLURM)
    cluster.call("scontrol", "requeue", running.id_at_step(1))
    running.id_at_step(0)
    cluster.call("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    assert running.end() == undisturbed
    assert "resumed at step" in running.log(1)
    assert all(text not in running.out for text in ("sacct", "accounting", "interrupted"))
    assert len(running.out.splitlines()) < 30


def test_a_job_that_slurm_kills_is_a_row_with_slurms_words(
    cluster: Cluster, sweep: Callable[..., Sweep], undisturbed: list[dict[str, str]]
) -> None:
    running = sweep("-m", *SLOW, "epochs=10", "seed=range(4)", ON_SLURM, "sweep.workers=4")
    cluster.call("scancel", "--signal=KILL", running.id_at_step(1))
    cluster.call("scancel", "--signal=KILL", "--batch", running.id_at_step(2))
    cluster.call("scancel", running.id_at_step(3))
    found = running.end(1)
    assert found[0] == undisturbed[0]
    reason = r"failed \(137\): lost: its worker died \(Slurm: (CANCELLED|FAILED), .* on n\d\)"
    assert all(re.fullmatch(reason, row["status"]) for row in found[1:]), found


def test_a_job_whose_node_is_lost_runs_again_or_is_a_row(cluster: Cluster, sweep: Callable[..., Sweep]) -> None:
    # A node that has just come back may fail to launch a requeued job, or stop it with SIGTERM.
    again = ("sweep.retries=2", "sweep.requeue=true")
    first = sweep("-m", *SLOW, "epochs=60", "seed=1", ON_SLURM, "sweep.options={nodelist: n2}", *again)
    (folder := first.folder / "other").mkdir()
    write_faulty(folder)
    fixed = "sweep.options={nodelist: n2, no_requeue: true, requeue: false}"
    other = Sweep(folder, "-m", *SLOW, "epochs=60", "seed=1", ON_SLURM, fixed)
    for each in (first, other):
        each.id_at_step(0)
    cluster.kill_node("n2")
    assert other.end(1)[0]["status"].startswith("failed (137): lost: its worker died (Slurm: NODE_FAIL")
    cluster.start_node("n2")
    assert first.end()[0]["status"] == "done"
    assert "resumed at step" in first.log(0)
    cluster.wait_for_nodes()


def test_a_job_at_its_time_limit_saves_and_is_submitted_again_and_one_that_hangs_is_a_row(
    sweep: Callable[..., Sweep],
) -> None:
    # Slurm looks every 30 s and signals when less than 50 + 30 s are left: 40 to 70 s after the start.
    limit = "sweep.options={timeout_min: 2, signal: 'B:USR2@50'}"
    running = sweep("-m", *FAULTY, "epochs=240", "+model.how=slow,hang", ON_SLURM, "sweep.requeue=true", limit)
    slow, hanging = running.end(1)
    assert slow["status"] == "done", running.out
    assert "submitting it again (sweep.requeue)" in running.out
    assert "resumed at step" in running.log(0)
    assert hanging["status"].startswith("failed (137): lost: its worker died (Slurm: TIMEOUT, TimeLimit on n"), hanging


def test_a_job_beyond_its_memory_is_a_row_with_slurms_words(sweep: Callable[..., Sweep]) -> None:
    running = sweep("-m", *FAULTY, "epochs=1", "+model.how=hog,none", ON_SLURM, "sweep.options={mem: 2G}")
    hog, fine = running.end(1)
    # OUT_OF_MEMORY where Slurm has cgroups; here it is slurmstepd that kills.
    assert re.search(r"\(Slurm: (OUT_OF_MEMORY|FAILED), \w+ on n\d\)", hog["status"]), hog
    assert "exceeded memory limit" in running.log(0)
    assert fine["status"] == "done"


def test_a_resumed_sweep_follows_the_jobs_that_still_run(
    cluster: Cluster, sweep: Callable[..., Sweep], tmp_path: Path, undisturbed: list[dict[str, str]]
) -> None:
    running = sweep("-m", *SLOW, "epochs=10", "seed=range(4)", ON_SLURM, "sweep.workers=3")
    jobs = [running.id_at_step(number, 1) for number in range(3)]
    running.process.kill()
    running.process.wait()
    for job in jobs:
        cluster.call("scontrol", "suspend", job)
    assert len(cluster.jobs("PENDING", "RUNNING", "SUSPENDED")) == 3  # sweep.workers
    here = run_alone("train", "sweep.resume=last", "trust=faulty_nets", cwd=tmp_path)
    assert (here.returncode, "Slurm still has 3 of its jobs" in here.stderr) == (2, True), here.stderr
    resumed = sweep("sweep.resume=last", "trust=faulty_nets", ON_SLURM)
    wait_for(lambda: len(events(resumed.path)) > 4 + 6 + 3)  # planned, then begun and submitted, then begun again
    for job in jobs:
        cluster.call("scontrol", "resume", job)
    assert resumed.end() == undisturbed
    submitted = [(event["job"], event["id"]) for event in events(resumed.path) if event["event"] == "submitted"]
    assert {(number, job) for number, job in enumerate(jobs)} < set(submitted)
    assert len(set(submitted)) == 4, submitted  # none was started twice


def test_ctrl_c_saves_the_jobs_empties_the_queue_and_the_sweep_goes_on(
    cluster: Cluster, sweep: Callable[..., Sweep], undisturbed: list[dict[str, str]]
) -> None:
    running = sweep("-m", *SLOW, "epochs=10", "seed=range(4)", ON_SLURM, "sweep.options={nodelist: n1}")
    running.id_at_step(0)
    running.process.send_signal(signal.SIGINT)
    assert {row["status"] for row in running.end(130)} == {"interrupted"}
    wait_for(lambda: not cluster.jobs("PENDING", "RUNNING", "COMPLETING"))
    assert sweep("sweep.resume=last", "trust=faulty_nets", ON_SLURM).end() == undisturbed
    assert "resumed at step" in running.log(0)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["device=cuda"], "Requested node configuration is not available"),
        (["sweep.options={partition: nowhere}"], "nvalid partition"),
        (["sweep.options={constraint: fast}"], "Invalid feature"),
        (["sweep.options={nodez: 3}"], "unrecognized option '--nodez=3'"),
        (["device.threads=3"], "Requested node configuration is not available"),
        (["sweep.options={timeout_min: 0.2}"], "time"),
    ],
)
@pytest.mark.usefixtures("cluster")
def test_refused_jobs_are_one_line_with_slurms_reason_and_nothing_is_written(
    tmp_path: Path, overrides: list[str], reason: str
) -> None:
    result = run_alone("train", "-m", "seed=1,2", ON_SLURM, *overrides, cwd=tmp_path)
    assert (result.returncode, reason in result.stderr.splitlines()[0]) == (2, True), result.stderr
    assert len(result.stderr.splitlines()) <= 3
    assert not (tmp_path / "outputs").exists()


@pytest.mark.usefixtures("cluster")
def test_a_controller_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(tmp_path / "none.conf"))
        result = run_alone("train", "-m", "seed=1,2", ON_SLURM, cwd=tmp_path)
    assert (result.returncode, len(result.stderr.splitlines())) == (69, 1), result.stderr


@pytest.mark.parametrize("partition", ["main", "gpu"])
def test_a_gpu_is_asked_for_where_the_partition_has_one(
    cluster: Cluster, sweep: Callable[..., Sweep], partition: str
) -> None:
    options = f"sweep.options={{partition: {partition}}}"
    running = sweep("-m", "model=mlp", "data.limit=100", "epochs=1", "seed=1", ON_SLURM, options)
    assert [row["status"] for row in running.end()] == ["done"]
    (job,) = {event["id"] for event in events(running.path) if event["event"] == "submitted"}
    assert ("gres:gpu" in cluster.call("scontrol", "show", "job", job)) == (partition == "gpu")


DOCS = Path(__file__).parents[2] / "docs" / "how-to" / "clusters.md"


def script(number: int, **replaced: str) -> str:
    """One of the batch scripts in the docs that need no torchrun, with a run that takes some seconds."""
    found = [
        block for block in re.findall(r"```text\n(#!.*?)```", DOCS.read_text(), re.DOTALL) if "torchrun" not in block
    ]
    assert len(found[number].splitlines()) <= 15
    text = found[number].replace("model=cnn data=cifar10 device=cuda", " ".join((*SLOW, "epochs=20")))
    text = text.replace("resume=last", "resume=last trust=faulty_nets")
    text = re.sub(r" --gpus\S+|--nodes=2 ", "", text).replace("dltrain train", f"{sys.executable} -m dltrain train")
    text = text.replace('$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)', "127.0.0.1")  # no such names
    return text.replace("--ntasks-per-node=4", "--ntasks=2").replace("29500", str(random.randint(20000, 30000)))


def submit(cluster: Cluster, folder: Path, text: str) -> str:
    (folder / "job.sh").write_text(text)
    return cluster.call("sbatch", "--parsable", f"--chdir={folder}", "--output=out.txt", str(folder / "job.sh")).strip()


def steps_of_run(folder: Path) -> int:
    return sum(path.read_text().count('"train"') for path in folder.glob("**/metrics.jsonl"))


@pytest.mark.parametrize("how", ["scancel --signal=USR1", "scontrol requeue"])
def test_the_script_for_a_single_run_saves_and_continues(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    job = submit(cluster, tmp_path, script(1))
    wait_for(lambda: steps_of_run(tmp_path) >= 2)
    cluster.call(*how.split(), job)
    wait_for(lambda: any('"status": "done"' in path.read_text() for path in tmp_path.glob("job-*/**/summary.json")))
    assert "resumed at step" in (tmp_path / "out.txt").read_text()
    wait_for(lambda: not cluster.jobs("PENDING", "RUNNING", "COMPLETING", like=""))


def test_processes_that_srun_starts_compute_one_run_and_save_at_a_signal(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    job = submit(cluster, tmp_path, script(0))
    wait_for(lambda: steps_of_run(tmp_path) >= 2)
    cluster.call("scancel", "--signal=TERM", job)
    wait_for(lambda: job not in cluster.jobs("PENDING", "RUNNING", "COMPLETING", like="").values())
    out = (tmp_path / "out.txt").read_text()
    assert out.count("stopped by SIGTERM after saving") == 1, out
    assert len(list(tmp_path.glob("outputs/*/*/checkpoints/last.pt"))) == 1


class Faults:
    """What befalls a sweep, at a moment that nobody chose; each method returns whether it has."""

    def __init__(self, cluster: Cluster, folder: Path, table: list[dict[str, str]]) -> None:
        self.cluster, self.folder, self.table = cluster, folder, table
        self.draw = random.Random(folder.name)
        self.sweep = self.begin(0)

    def begin(self, number: int) -> Sweep:
        folder = self.folder / f"sweep{number}"
        folder.mkdir()
        write_faulty(folder)
        settings = ("sweep.retries=99", "sweep.requeue=true")
        return Sweep(folder, "-m", *SLOW, "epochs=10", "seed=range(4)", ON_SLURM, *settings)

    def of_job(self, *command: str) -> bool:
        jobs = sorted(self.cluster.jobs("RUNNING").values())
        return bool(jobs) and not subprocess.run([*command, self.draw.choice(jobs)], check=False).returncode

    def requeue(self) -> bool:
        return self.of_job("scontrol", "requeue")

    def kill(self) -> bool:
        return self.of_job("scancel", "--signal=KILL", "--full")

    def time_limit(self) -> bool:
        return self.of_job("scancel", "--signal=USR2", "--batch")

    def preempt(self) -> bool:
        node = f"--nodelist={self.draw.choice(['n1', 'n2'])}"
        urgent = ("sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
        return bool(self.cluster.call(*urgent, node))

    def node(self) -> bool:
        name = self.draw.choice(["n1", "n2"])
        self.cluster.kill_node(name)
        wait_for(lambda: name in self.cluster.call("sinfo", "-h", "-N", "-t", "down", "-o", "%N").split())
        self.cluster.start_node(name)
        return True

    def controller(self) -> bool:
        wait_for(self.is_in_its_state)
        self.cluster.kill_controller()
        time.sleep(self.draw.uniform(0, 5))
        self.cluster.start_controller()
        # Until a node has registered, its state is unknown, and stays so if it dies.
        registered = ("sinfo", "-h", "-N", "-p", "main", "-t", "idle,alloc,mix", "-o", "%N")
        wait_for(lambda: len(self.cluster.call(*registered).split()) == 2)
        return True

    def is_in_its_state(self) -> bool:
        """True 6 s after the last submission and the last start of a job: within 5 Slurm saves its state.

        A controller that has lost it gives ids of running jobs again, starts jobs twice, and then drains their nodes.
        """
        times = self.cluster.call("squeue", "-h", "-t", "all", "-o", "%V").split()
        times += self.cluster.call("squeue", "-h", "-t", "RUNNING,COMPLETING", "-o", "%S").split()
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() - 6)) > max(times, default="")

    def this_process(self) -> bool:
        self.sweep.process.kill()
        self.sweep.process.wait()
        if not list(self.sweep.folder.glob("outputs/sweeps/*/*/sweep.json")):  # it had not begun
            self.sweep = Sweep(self.sweep.folder, *self.sweep.arguments)
            return False
        resumed = ("sweep.resume=last", "trust=faulty_nets", ON_SLURM, "sweep.retries=99", "sweep.requeue=true")
        self.sweep = Sweep(self.sweep.folder, *resumed)
        return True

    def any_of_these(self) -> bool:
        names = ("requeue", "kill", "time_limit", "preempt", "node", "controller", "this_process")
        return bool(getattr(self, self.draw.choice(names))())

    def check(self) -> None:
        """Wait for the end of the sweep: it has the table of an undisturbed one, and nothing done ran again."""
        assert self.sweep.end() == self.table
        done = set()
        for event in events(self.sweep.path):
            assert event["event"] != "begun" or event["job"] not in done
            done |= {event["job"]} if event["event"] == "ended" else set()
        wait_for(lambda: not self.cluster.jobs("PENDING", "RUNNING", "COMPLETING"))
        wait_for_no_orphan(self.sweep.folder, set())


@pytest.mark.torture
@pytest.mark.parametrize(
    "fault",
    ["requeue", "kill", "time_limit", "preempt", "node", "controller", "this_process", "any_of_these"],
)
def test_twenty_faults_at_random_moments_leave_the_table_of_an_undisturbed_sweep(
    cluster: Cluster, tmp_path: Path, undisturbed: list[dict[str, str]], fault: str
) -> None:
    faults = Faults(cluster, tmp_path, undisturbed)
    count = sweeps = 0
    try:
        while count < 20:
            time.sleep(faults.draw.uniform(0, 6))
            if faults.sweep.process.poll() is None:
                count += bool(getattr(faults, fault)())
            else:
                faults.check()
                faults.sweep = faults.begin(sweeps := sweeps + 1)
        faults.check()
    finally:
        faults.sweep.process.kill()
        faults.sweep.process.wait()


@pytest.mark.torture
def test_a_sweep_of_200_jobs_costs_its_own_process_at_most_150_milliseconds_a_job(
    cluster: Cluster, sweep: Callable[..., Sweep]
) -> None:
    running = sweep("-m", "model=mlp", "limit_steps=20", "seed=range(200)", "device=cpu", "device.threads=1", ON_SLURM)
    seconds = 0.0
    while running.process.poll() is None:  # of this process alone, without its children
        text = Path(f"/proc/{running.process.pid}/stat").read_text().rpartition(") ")[2].split()
        seconds = max(seconds, sum(map(int, text[11:13])) / os.sysconf("SC_CLK_TCK"))
        time.sleep(0.05)
    assert {row["status"] for row in rows(running.path)} == {"limit_steps"}, running.out
    print(f"{seconds / 200:.3f} s a job")
    assert seconds / 200 <= 0.15
