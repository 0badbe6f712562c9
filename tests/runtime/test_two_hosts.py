"""One run on two hosts, by torchrun: processes, agents and hosts that die, a cable that is pulled, data that differ.

The hosts are network namespaces with addresses and names of their own (see two_hosts.py). `count` is the number of
faults at random moments.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

from runtime.test_distributed import run
from support.lives import Nursery, outcome, run_folder
from support.two_hosts import Host, TwoHosts, two_hosts

pytestmark = pytest.mark.slow

Agents = list["subprocess.Popen[bytes]"]

COMMON = ("train", "data.limit=200", "epochs=12", "batch_size=9", "log_every=4", "checkpoint_every=15", "name=kept")
COMMON += ("model=lenet", "data.crop=1", "data.flip=true", "report=false", "logger=none", "device.threads=1")
LOST = "another process of this run has ended or cannot be reached"
SILENCE = 6  # seconds, in place of a minute
# torchrun runs it in place of dltrain: with a shorter timeout, which no user can set.
IMPATIENT = f"""
import sys
from dltrain import cli
from dltrain.runtime import distributed
distributed.SILENCE = {SILENCE}
sys.exit(cli.main(sys.argv[1:]))
"""


def faults(few: int) -> Any:
    """Parametrize a test by a number of faults and a seed: few by default, 20 more with `-m torture`."""
    torture = [pytest.param(5, seed, marks=pytest.mark.torture) for seed in range(1, 5)]
    return pytest.mark.parametrize("count, seed", [(few, 0), *torture])


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[TwoHosts]:
    with two_hosts(tmp_path) as both:
        yield both


@pytest.fixture(scope="module")
def expected(lives: Nursery, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes on one machine come to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(lives, folder, *COMMON)
    return outcome(folder)


def printed(folder: Path, host: Host) -> str:
    path = folder / f"{host.name}.log"
    return path.read_text() if path.exists() else ""


def lines(text: str) -> list[str]:
    """What dltrain printed as errors, without its epochs and without torchrun's own lines."""
    return [line for line in text.splitlines() if "error: " in line]


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> float:
    """Wait until a condition holds; return the seconds that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + seconds
        time.sleep(0.02)
    return time.monotonic() - began


def ended(hosts: TwoHosts, agents: Agents, seconds: float = 240) -> list[int]:
    """Exit codes of both agents, once no process is left on either host."""
    wait_for(lambda: all(agent.poll() is not None for agent in agents), seconds)
    wait_for(lambda: not any(host.processes() for host in hosts.both), seconds)
    return [agent.wait() for agent in agents]


def text_of_both(hosts: TwoHosts, folder: Path) -> str:
    return "".join(f"== {host.name}\n{printed(folder, host)}" for host in hosts.both)


def under_way(hosts: TwoHosts, folder: Path) -> None:
    """Wait until a run has saved a checkpoint after its start, on either host."""
    wait_for(lambda: "epoch  1/12" in printed(folder, hosts.alpha) + printed(folder, hosts.beta))


def resumed(lives: Nursery, folder: Path, expected: dict[str, Any]) -> None:
    """Assert that the run of a folder, resumed by two processes, comes to the end of an undisturbed one."""
    run(lives, folder, "train", f"resume={run_folder(folder)}")
    assert outcome(folder) == expected
    assert len(list(folder.glob("outputs/*/*"))) == 1


@faults(few=2)
def test_a_process_killed_on_either_host_is_restarted_and_the_run_ends_with_the_same_result(
    hosts: TwoHosts, lives: Nursery, tmp_path: Path, expected: dict[str, Any], count: int, seed: int
) -> None:
    chance, seconds = random.Random(seed), []
    for number in range(count):
        folder = tmp_path / f"killed-{number}"
        meet = ("alpha", "beta")[number // 2 % 2]
        agents = hosts.torchrun((folder, folder), "-m", "dltrain", *COMMON, restarts=3, meet=meet)
        under_way(hosts, folder)
        time.sleep(chance.uniform(0, 0.5))
        victim = hosts.both[number % 2]
        os.kill(next(iter(victim.workers().values())), signal.SIGKILL)
        killed = time.monotonic()
        assert ended(hosts, agents) == [0, 0], text_of_both(hosts, folder)
        seconds.append(time.monotonic() - killed)
        assert "started again by torchrun: continuing from outputs" in text_of_both(hosts, folder)
        assert "Traceback" not in text_of_both(hosts, folder)
        assert len(list(folder.glob("outputs/*/*"))) == 1
        assert outcome(folder) == expected
        shutil.rmtree(folder)
    print(f"{count} of {count} kills: equal; from kill to end at most {max(seconds):.1f} s")


@faults(few=2)
def test_a_process_killed_without_restarts_ends_the_run_on_both_hosts_with_one_line(
    hosts: TwoHosts, lives: Nursery, tmp_path: Path, expected: dict[str, Any], count: int, seed: int
) -> None:
    chance, seconds = random.Random(seed), []
    for number in range(count):
        folder = tmp_path / f"killed-{number}"
        agents = hosts.torchrun((folder, folder), "-m", "dltrain", *COMMON)
        under_way(hosts, folder)
        time.sleep(chance.uniform(0, 0.5))
        os.kill(hosts.both[number % 2].workers()[number % 2], signal.SIGKILL)
        killed = time.monotonic()
        assert 0 not in ended(hosts, agents)
        seconds.append(time.monotonic() - killed)
        survivor = lines(printed(folder, hosts.both[1 - number % 2]))
        assert [line for line in survivor if LOST in line] == survivor[:1] != [], text_of_both(hosts, folder)
        resumed(lives, folder, expected)
        shutil.rmtree(folder)
    print(f"{count} of {count} kills: one line, resumed; from kill to end at most {max(seconds):.1f} s")
    assert max(seconds) < 60


@faults(few=2)
def test_a_killed_agent_ends_the_run_saved_and_leaves_no_process(
    hosts: TwoHosts, lives: Nursery, tmp_path: Path, expected: dict[str, Any], count: int, seed: int
) -> None:
    chance, seconds = random.Random(seed), []
    for number in range(count):
        folder = tmp_path / f"killed-{number}"
        agents = hosts.torchrun((folder, folder), "-m", "dltrain", *COMMON, "epochs=1000", "schedule=constant")
        wait_for(lambda folder=folder: "epoch " in text_of_both(hosts, folder))
        time.sleep(chance.uniform(0, 0.5))
        agents[number % 2].kill()
        killed = time.monotonic()
        assert 0 not in ended(hosts, agents), text_of_both(hosts, folder)
        seconds.append(time.monotonic() - killed)
        # A further SIGTERM, from torchrun, may come after saving.
        assert "stopped by SIGTERM" in printed(folder, hosts.alpha), text_of_both(hosts, folder)
        assert '"interrupted"' in next(folder.glob("outputs/*/*/summary.json")).read_text()
        shutil.rmtree(folder)
    print(f"{count} of {count} agents killed: saved; from kill to end at most {max(seconds):.1f} s")


@faults(few=2)
def test_a_host_without_power_ends_the_run_on_the_other_with_one_line(
    hosts: TwoHosts, lives: Nursery, tmp_path: Path, expected: dict[str, Any], count: int, seed: int
) -> None:
    chance, seconds = random.Random(seed), []
    for number in range(count):
        folder = tmp_path / f"off-{number}"
        folder.mkdir()
        (folder / "impatient.py").write_text(IMPATIENT)
        agents = hosts.torchrun((folder, folder), "impatient.py", *COMMON)
        under_way(hosts, folder)
        time.sleep(chance.uniform(0, 0.5))
        victim, survivor = hosts.both[number % 2], hosts.both[1 - number % 2]
        hosts.pull_the_cable()  # first, so that its kernel does not say good-bye
        victim.kill_all()
        off = time.monotonic()
        wait_for(lambda folder=folder, survivor=survivor: LOST in printed(folder, survivor), SILENCE * 3 + 10)
        seconds.append(time.monotonic() - off)
        hosts.plug_the_cable_in()  # torchrun itself would wait for a quarter of an hour
        assert 0 not in ended(hosts, agents)
        resumed(lives, folder, expected)
        shutil.rmtree(folder)
    print(f"{count} of {count} hosts off: one line after at most {max(seconds):.1f} s; resumed")


@faults(few=1)
def test_a_cable_pulled_for_longer_than_the_timeout_ends_the_run_on_both_hosts_with_one_line(
    hosts: TwoHosts, lives: Nursery, tmp_path: Path, expected: dict[str, Any], count: int, seed: int
) -> None:
    chance, seconds = random.Random(seed), []
    for number in range(count):
        folder = tmp_path / f"pulled-{number}"
        folder.mkdir()
        (folder / "impatient.py").write_text(IMPATIENT)
        agents = hosts.torchrun((folder, folder), "impatient.py", *COMMON)
        under_way(hosts, folder)
        time.sleep(chance.uniform(0, 0.5))
        hosts.pull_the_cable()
        pulled = time.monotonic()
        for host in hosts.both:
            wait_for(lambda folder=folder, host=host: LOST in printed(folder, host), SILENCE * 3 + 10)
        seconds.append(time.monotonic() - pulled)
        hosts.plug_the_cable_in()  # torchrun itself would wait for a quarter of an hour
        assert 0 not in ended(hosts, agents)
        for host in hosts.both:
            found = lines(printed(folder, host))
            assert [line for line in found if LOST in line] == found[:1] != [], text_of_both(hosts, folder)
        resumed(lives, folder, expected)
        shutil.rmtree(folder)
    print(f"{count} of {count} cables pulled: one line after at most {max(seconds):.1f} s; resumed")


def test_a_cable_that_stays_out_ends_the_run_within_a_minute_and_a_half(hosts: TwoHosts, tmp_path: Path) -> None:
    """The timeout that users have."""
    agents = hosts.torchrun((tmp_path, tmp_path), "-m", "dltrain", *COMMON, "epochs=1000", "schedule=constant")
    wait_for(lambda: "epoch " in text_of_both(hosts, tmp_path))
    hosts.pull_the_cable()
    seconds = [wait_for(lambda host=host: LOST in printed(tmp_path, host), 90) for host in hosts.both]
    print(f"a cable pulled: one line after {sum(seconds):.1f} s")
    hosts.plug_the_cable_in()
    assert 0 not in ended(hosts, agents)


@faults(few=1)
def test_a_cable_pulled_for_a_moment_does_no_harm(
    hosts: TwoHosts, lives: Nursery, tmp_path: Path, expected: dict[str, Any], count: int, seed: int
) -> None:
    chance = random.Random(seed)
    for number in range(count):
        folder = tmp_path / f"moment-{number}"
        agents = hosts.torchrun((folder, folder), "-m", "dltrain", *COMMON)
        under_way(hosts, folder)
        hosts.pull_the_cable()
        time.sleep(chance.uniform(0.5, 5))
        hosts.plug_the_cable_in()
        assert ended(hosts, agents) == [0, 0], text_of_both(hosts, folder)
        assert lines(text_of_both(hosts, folder)) == []
        assert outcome(folder) == expected
        shutil.rmtree(folder)


@pytest.mark.parametrize("meet", ["alpha", "beta"])
def test_the_first_process_may_be_on_another_host_than_where_they_meet(
    hosts: TwoHosts, tmp_path: Path, expected: dict[str, Any], meet: str
) -> None:
    """Each host has a file system of its own; the first process is on alpha, whose name comes first."""
    folders = tmp_path / "on-alpha", tmp_path / "on-beta"
    agents = hosts.torchrun(folders, "-m", "dltrain", *COMMON, meet=meet)
    assert ended(hosts, agents) == [0, 0], [printed(at, host) for at, host in zip(folders, hosts.both, strict=True)]
    assert outcome(folders[0]) == expected
    assert not (folders[1] / "outputs").exists()
    assert "folder  outputs" in printed(folders[0], hosts.alpha)


def test_hosts_whose_data_differ_are_refused_before_the_first_step(hosts: TwoHosts, tmp_path: Path) -> None:
    folders = tmp_path / "on-alpha", tmp_path / "on-beta"
    images = numpy.random.default_rng(1).integers(0, 256, (60, 8, 8), dtype=numpy.uint8)
    for folder in folders:
        folder.mkdir()
        numpy.savez(folder / "own.npz", images=images, labels=numpy.arange(60) % 2)
        images[7, 0, 0] += 1  # a single pixel
    words = ("train", "data=arrays", "data.file=own.npz", "model=linear", "epochs=1", "batch_size=6", "report=false")
    agents = hosts.torchrun(folders, "-m", "dltrain", *words, "device.threads=1", "logger=none")
    assert 0 not in ended(hosts, agents)
    told = lines(printed(folders[0], hosts.alpha))
    assert told[:1] == ["error: data: rank 1 has other data than rank 0"], printed(folders[0], hosts.alpha)
    assert not (folders[0] / "outputs").exists()
