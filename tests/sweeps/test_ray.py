"""A sweep on a real Ray cluster of two nodes: jobs on both, faults of each, and the same table as on one machine."""

import os
import pty
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.ray_cluster import HEAD, Cluster, cluster, free_port
from support.sweeping import events, processes_in, rows, run_alone, wait_for_no_orphan

pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = pytest.mark.slow

# It takes its time without computing, and notes on which node it ran and from which step.
SLOW = """
import os, time
from torch import nn

class Slow(nn.Module):
    def __init__(self, input_shape, num_classes, nap=0.05):
        super().__init__()
        channels, height, width = input_shape
        self.nap = nap
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, num_classes))
        print("NODE", os.getppid(), flush=True)

    def forward(self, images):
        if self.training:
            time.sleep(self.nap)
        return self.layers(images)
"""
MODEL = ("model=custom", "model.name=slow_nets:Slow", "data.limit=100", "batch_size=50", "device.threads=1")
MODEL += ("device=cpu", "checkpoint_every=2")
CLOCK = ("seconds", "folder")
JOBS = 32  # of a sweep with five faults: more than end in the time that those take


def table(folder: Path) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in rows(folder)]


def on(ray: Cluster) -> tuple[str, ...]:
    return "sweep.executor=ray", f"sweep.options={{address: '{ray.address}'}}"


def sweep_in(folder: Path) -> Path:
    (found,) = folder.glob("outputs/sweeps/*/*")
    return found


def nodes_of(folder: Path) -> list[set[str]]:
    """Return, for each job, the processes whose children have run it: the raylets."""
    return [set(re.findall(r"NODE (\d+)", (folder / row["folder"] / "train.log").read_text())) for row in rows(folder)]


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def ray() -> Iterator[Cluster]:
    with cluster("second") as made:
        yield made


@pytest.fixture(autouse=True)
def _slow_model(tmp_path: Path) -> None:
    (tmp_path / "slow_nets.py").write_text(SLOW)


def started(folder: Path, *overrides: str) -> "subprocess.Popen[str]":
    """Start a sweep in the background, with its output in out.log and err.log."""
    with (folder / "out.log").open("w") as out, (folder / "err.log").open("w") as err:
        command = [sys.executable, "-m", "dltrain", "train", *overrides]
        return subprocess.Popen(command, cwd=folder, stdout=out, stderr=err, text=True, start_new_session=True)


def has_checkpoints(folder: Path, count: int) -> Callable[[], bool]:
    """True once `count` jobs have records, and so a checkpoint after the first steps."""
    return lambda: sum(path.stat().st_size > 0 for path in folder.glob("outputs/sweeps/*/*/*/metrics.jsonl")) >= count


def test_jobs_run_on_both_nodes_and_give_the_table_of_one_machine(ray: Cluster, tmp_path: Path) -> None:
    words = ("train", "-m", *MODEL, "epochs=6", "seed=range(6)")
    for place in ("local", "ray"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "slow_nets.py").write_text(SLOW)
        how = ("sweep.workers=2",) if place == "local" else on(ray)
        process = run_alone(*words, *how, cwd=tmp_path / place)
        assert process.returncode == 0, process.stdout + process.stderr
    assert table(sweep_in(tmp_path / "ray")) == table(sweep_in(tmp_path / "local"))
    assert len(set().union(*nodes_of(sweep_in(tmp_path / "ray")))) == 2
    wait_for_no_orphan(tmp_path / "ray", set())


@pytest.mark.parametrize("retries", [0, 1])
def test_jobs_of_a_killed_raylet_are_rows_or_go_on_elsewhere_from_their_checkpoint(
    ray: Cluster, tmp_path: Path, retries: int
) -> None:
    process = started(tmp_path, "-m", *MODEL, "epochs=120", "seed=range(4)", f"sweep.retries={retries}", *on(ray))
    wait_for(has_checkpoints(tmp_path, 4))
    ray.kill_raylet("second")
    assert process.wait(300) == 1 - retries, (tmp_path / "err.log").read_text()
    folder = sweep_in(tmp_path)
    statuses = [row["status"] for row in rows(folder)]
    nodes = nodes_of(folder)
    if retries:
        assert statuses == ["done"] * 4
        assert sorted(map(len, nodes)) == [1, 1, 2, 2]
        logs = [(folder / row["folder"] / "train.log").read_text() for row in rows(folder)]
        assert sum("resumed at step" in log for log in logs) == 2
    else:
        lost = [status for status in statuses if status != "done"]
        assert len(lost) == 2
        assert all("lost: its machine died" in status for status in lost), lost
    assert "Traceback" not in (tmp_path / "err.log").read_text()
    wait_for_no_orphan(tmp_path, set())


def test_a_lost_head_ends_the_sweep_with_one_line_and_it_resumes(ray: Cluster, tmp_path: Path) -> None:
    process = started(tmp_path, "-m", *MODEL, "epochs=60", "seed=range(5)", *on(ray))
    wait_for(has_checkpoints(tmp_path, 4))
    ray.kill(HEAD)
    assert process.wait(120) == 69, (tmp_path / "err.log").read_text()
    (line,) = (tmp_path / "err.log").read_text().splitlines()
    assert "the cluster is lost" in line
    ray.kill("second")
    ray.start()
    again = run_alone("train", "sweep.resume=last", "trust=[slow_nets]", *on(ray), cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    folder = sweep_in(tmp_path)
    assert [row["status"] for row in rows(folder)] == ["done"] * 5
    assert any("resumed at step" in path.read_text() for path in folder.glob("*/train.log"))


def test_ctrl_c_saves_the_jobs_and_they_continue(ray: Cluster, tmp_path: Path) -> None:
    process = started(tmp_path, "-m", *MODEL, "epochs=120", "seed=range(5)", *on(ray))
    wait_for(has_checkpoints(tmp_path, 4))
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(120) == 130, (tmp_path / "err.log").read_text()
    folder = sweep_in(tmp_path)
    assert {row["status"] for row in rows(folder)} == {"interrupted"}
    again = run_alone("train", "sweep.resume=last", "trust=[slow_nets]", *on(ray), cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert [row["status"] for row in rows(folder)] == ["done"] * 5
    logs = [path.read_text() for path in folder.glob("*/train.log")]
    assert sum("resumed at step" in log for log in logs) == 4


def test_metrics_of_running_jobs_are_shown_on_a_terminal(ray: Cluster, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "dltrain", "train", "-m", *MODEL, "epochs=30", "seed=1,2", *on(ray)]
    environment = os.environ | {"COLUMNS": "150", "TERM": "xterm"}
    process = subprocess.Popen(command, cwd=tmp_path, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:  # which is how a terminal ends
        os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert process.wait() == 0, text
    assert re.search(r"job 1 +seed=2 +\d+ s +epoch \d+\.00: (train|val) loss \d", text), text


def test_bad_jobs_are_pruned_as_on_one_machine(ray: Cluster, tmp_path: Path) -> None:
    search = ("optim.lr=0.05,0.04,1e-7", "sweep.search=random", "sweep.trials=10", "sweep.pruner=median")
    search += ("data.limit=200", "data.val=0.5", "epochs=6", "sweep.seed=2", "sweep.workers=1", "+model.nap=0.0")
    for place, how in (("local", ()), ("ray", on(ray))):
        (tmp_path / place).mkdir()
        (tmp_path / place / "slow_nets.py").write_text(SLOW)
        process = run_alone("train", "-m", *MODEL, *search, *how, cwd=tmp_path / place)
        assert process.returncode == 0, process.stdout + process.stderr
    found = table(sweep_in(tmp_path / "ray"))
    assert found == table(sweep_in(tmp_path / "local"))
    assert {row["status"] for row in found} == {"done", "pruned"}


def fault(ray: Cluster, folder: Path, process: "subprocess.Popen[str]", how: str, draw: random.Random) -> None:
    """Do one fault, and repair what it has broken of the cluster."""
    if how == "sweep":
        process.kill()
        process.wait()
    elif how == "head":
        ray.kill(HEAD)
        assert process.wait(120) in (0, 69), (folder / "err.log").read_text()
        # Jobs on the other node of the lost cluster still run when the sweep resumes on a new one.
        ray.rename("second", "old")
        threading.Timer(10, ray.kill, ["old"]).start()
        ray.port = free_port()
        ray.start()
        ray.start("second")
    elif how == "worker":
        if running := [pid for pid in processes_in(folder) if os.getpgid(pid) != process.pid]:
            os.kill(draw.choice(running), signal.SIGKILL)
    else:
        if how == "raylet":
            ray.kill_raylet("second")
            time.sleep(draw.uniform(0, 3))
        ray.kill("second")
        ray.start("second")


@pytest.mark.torture
@pytest.mark.parametrize("seed", range(4))
def test_five_faults_at_random_moments_lose_nothing_and_run_nothing_again(
    ray: Cluster, tmp_path: Path, seed: int
) -> None:
    words = ("-m", *MODEL, "epochs=30", f"seed=range({JOBS})", "sweep.resume=sweep")
    reference, hurt = tmp_path / "reference", tmp_path / "hurt"
    for folder in (reference, hurt):
        (folder / "sweep").mkdir(parents=True)
        (folder / "slow_nets.py").write_text(SLOW)
    assert started(reference, *words, "sweep.workers=4").wait(300) == 0
    draw = random.Random(seed)
    faults = ["raylet", "node", "worker", "head", "sweep"]
    draw.shuffle(faults)
    done: set[int] = set()
    process = started(hurt, *words, *on(ray), "sweep.retries=9")
    for how in faults:
        begun = len(events(hurt / "sweep"))
        while process.poll() is None and len(events(hurt / "sweep")) == begun:
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 4))
        assert process.poll() is None, f"ended before {how}: {(hurt / 'err.log').read_text()}"
        print(how, flush=True)
        fault(ray, hurt, process, how, draw)
        if process.poll() is not None:
            process = started(hurt, *words, *on(ray), "sweep.retries=9")
        now_done = {event["job"] for event in events(hurt / "sweep") if event["event"] == "ended" and not event["code"]}
        assert done <= now_done
        done = now_done
    assert process.wait(300) == 0, (hurt / "err.log").read_text()
    assert table(hurt / "sweep") == table(reference / "sweep")
    log = events(hurt / "sweep")
    for number in range(JOBS):
        own = [event["event"] for event in log if event["job"] == number]
        assert own.count("planned") == own.count("ended") == 1
        assert own[-1] == "ended"  # what was done did not begin again
    wait_for_no_orphan(hurt, set())
