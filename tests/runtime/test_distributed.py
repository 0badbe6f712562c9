"""Several processes train as one does: equal results, one writer, stops that all agree on, deaths that are survived.

Lives (see lives.py) are started as torchrun starts processes, by RANK and WORLD_SIZE; torchrun itself where it matters.
"""

import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from dltrain.checkpoints import checkpoint
from dltrain.data.loader import TensorLoader
from dltrain.data.splits import Examples
from dltrain.runtime import distributed
from dltrain.runtime import torchrun as launch
from dltrain.runtime.errors import ConfigError, UserError
from dltrain.runtime.torchrun import Processes
from dltrain.training import run as training_run
from support.command import Command
from support.lives import Life, Nursery, finish, outcome, run_folder
from support.tiers import mostly_slow

COMMON = ("train", "data.limit=200", "epochs=3", "batch_size=9", "log_every=4", "checkpoint_every=3")
COMMON += ("data.crop=1", "data.flip=true", "report=false", "logger=none", "device.threads=1")  # 180 examples, 60 steps
SIZES = [(20, 4), (20, 7), (9, 4), (21, 5), (3, 3)]  # examples, in a batch


def start(lives: Nursery, folder: Path, *words: str, world: int = 2) -> list[Life]:
    """Begin a run of several processes; each prints into a log of its own."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        lives.start(folder, *words, environment={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, log=f"{rank}")
        for rank in range(world)
    ]


def end(lives: Nursery, processes: list[Life]) -> list[int]:
    """Exit codes; as torchrun does, end the others once one has failed, by SIGKILL after ten seconds.

    They have a second to end by themselves: a signal while Python clears up leaves lines in their logs.
    """
    failed = 0.0
    waiting = dict(enumerate(processes))
    codes = [0] * len(processes)
    terminated = False
    while waiting:
        for rank, life in list(waiting.items()):
            if lives.has_ended(life):
                codes[rank] = lives.wait(waiting.pop(rank))
                if codes[rank] and not failed:
                    failed = time.monotonic()
            elif failed and time.monotonic() > failed + 10:
                os.kill(life.pid, signal.SIGKILL)
        if failed and not terminated and time.monotonic() > failed + 1:
            terminated = True
            for life in waiting.values():
                os.kill(life.pid, signal.SIGTERM)
        time.sleep(0.01)
    return codes


def printed(processes: list[Life]) -> list[str]:
    return [life.log.read_text() for life in processes]


def run(lives: Nursery, folder: Path, *words: str, world: int = 2) -> list[str]:
    """Let a run come to its end; what each process printed."""
    processes = start(lives, folder, *words, world=world)
    assert end(lives, processes) == [0] * world, printed(processes)
    return printed(processes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    run = run_folder(folder)
    assert run is not None
    found: dict[str, torch.Tensor] = checkpoint.load(run / "checkpoints" / "last.pt")["model"]
    return found


def farthest(one: Path, other: Path) -> tuple[float, float]:
    """The largest difference of two runs in a weight and in a figure of a record."""
    theirs, records = weights(other), outcome(other)["records"]
    of_weights = max(float((value - theirs[key]).abs().max()) for key, value in weights(one).items())
    pairs = list(zip(outcome(one)["records"], records, strict=True))
    assert [(a["split"], a["step"]) for a, _ in pairs] == [(b["split"], b["step"]) for _, b in pairs]
    return of_weights, max(abs(a[key] - b[key]) for a, b in pairs for key in a if key != "split")


def batches(count: int, size: int, processes: Processes) -> TensorLoader:
    images = torch.arange(count, dtype=torch.uint8).view(count, 1, 1, 1)
    examples = Examples(images, torch.arange(count), tuple(map(str, range(count))))
    return TensorLoader(
        examples, torch.device("cpu"), batch_size=size, statistics=((0.0,), (1.0,)), processes=processes, seed=3
    )


# --- shares


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("count, size", SIZES)
def test_the_rank_slices_of_a_batch_make_up_the_whole_batch(count: int, size: int, world: int) -> None:
    whole = [targets.tolist() for _, targets in batches(count, size, launch.SINGLE_PROCESS).epoch(2, 0)]
    of_each = [batches(count, size, Processes(rank, world)) for rank in range(world)]
    epochs = [[targets.tolist() for _, targets in each.epoch(2, 0)] for each in of_each]
    for index, batch in enumerate(whole):
        shares = [each.rank_weight(index) for each in of_each]
        assert {examples for examples, _ in shares} == {len(batch)}
        parts = [epoch[index] for epoch in epochs]
        # Who has none gets one that does not count: it takes part in all that the others do.
        assert all(len(part) == 1 for part, (_, weight) in zip(parts, shares, strict=True) if not weight)
        counting = [part for part, (_, weight) in zip(parts, shares, strict=True) if weight]
        assert list(itertools.chain(*counting)) == batch
        mean = sum(weight / world * sum(part) / len(part) for part, (_, weight) in zip(parts, shares, strict=True))
        assert mean == pytest.approx(sum(batch) / len(batch))


def test_evaluation_batches_are_divided_among_the_ranks() -> None:
    source = batches(20, 3, launch.SINGLE_PROCESS)
    dealt = [[targets.tolist() for _, targets in source.in_order(rank, 3)] for rank in range(3)]
    assert sorted(itertools.chain(*dealt)) == [targets.tolist() for _, targets in source.in_order()]
    assert [len(each) for each in dealt] == [3, 2, 2]


# --- the environment


@pytest.mark.parametrize(
    "environment, told",
    [
        ({"RANK": "one", "WORLD_SIZE": "2"}, "must be numbers"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK must be below WORLD_SIZE"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "no MASTER_ADDR and MASTER_PORT"),
    ],
)
def test_an_inconsistent_torchrun_environment_is_a_config_error(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], told: str
) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=told):
        launch.processes()


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be the second of two processes."""
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launch, "RANK_ZERO_SECONDS", 0.0)


@pytest.mark.usefixtures("second")
def test_ranks_above_zero_do_nothing_in_commands_of_one_process(dltrain: Command) -> None:
    for words in (("eval", "ckpt=nowhere"), ("export", "ckpt=nowhere"), ("list",), ("--version",)):
        assert tuple(vars(dltrain(*words)).values()) == (0, "", "")


@pytest.mark.usefixtures("second")
def test_a_rank_above_zero_reports_its_error_with_its_rank(dltrain: Command) -> None:
    result = dltrain("train", "epochs=0")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("rank 1: error: epochs=0")


def test_a_rank_that_waits_for_the_others_prints_a_notice(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never_meets(processes: Processes) -> None:
        for timer in threading.enumerate():
            if isinstance(timer, threading.Timer):
                timer.join()  # until it has printed
        raise RuntimeError("nobody came")

    monkeypatch.setenv("MASTER_ADDR", "somewhere")
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setattr(distributed, "_join", never_meets)
    monkeypatch.setattr(distributed, "SECONDS_BEFORE_NOTICE", 0.05)
    with pytest.raises(UserError, match="somewhere:1: nobody came"), distributed.process_group(Processes(0, 2)):
        pass
    assert "rank 0 of 2 is waiting for the others at somewhere:1" in capsys.readouterr().err


def test_a_sweep_is_refused_under_torchrun(dltrain: Command, second: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    result = dltrain("train", "-m", "seed=1,2")
    assert result.code == 2
    assert "starts processes itself" in result.err


# --- equal to one process


@pytest.mark.parametrize(
    "world, words",
    [
        # Of the last batch one process has no example; a part of an update is as large as in one process or smaller.
        # Long runs of networks with max pooling diverge: rounding can make another pixel the largest (as with threads).
        (
            2,
            (
                *("model=lenet", "batch_size=179", "epochs=4", "optim.lr=0.1", "metric=f1_macro"),
                *("data.augment=strong", "data.contrast=0.2"),
            ),
        ),
        # Ranks have other mixtures of classes, so that each has another sum of weights.
        (
            2,
            (
                *("model=mlp", "model.hidden=[8]", "optim.lr=0.05", "batch_size=27", "accumulate=2"),
                *("data.balance=0.7", "task.class_weights=[0.2,1,2,1,1,0.5,1,1,1,3]"),
                *("task.focal=2", "task.label_smoothing=0.1"),
            ),
        ),
        # The test set has nine batches, so that the processes gather different numbers of outputs.
        (2, ("model=linear", "batch_size=10", "epochs=1", "metric=auroc")),
        pytest.param(
            3,
            (
                "model=mlp",
                "batch_size=30",
                "accumulate=3",
                "clip_norm=0.5",
                "epochs=20",
                "optim.lr=0.1",
                "metric=auroc",
            ),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_several_processes_give_the_result_of_one(
    lives: Nursery, tmp_path: Path, world: int, words: tuple[str, ...]
) -> None:
    finish(lives, new(tmp_path / "one"), (*COMMON, *words))
    run(lives, tmp_path / "several", *COMMON, *words, world=world)
    of_weights, of_records = farthest(tmp_path / "one", tmp_path / "several")
    start = weights_at_start(tmp_path / "one")
    moved = max(float((value - start[key]).abs().max()) for key, value in weights(tmp_path / "one").items())
    print(
        f"{world} processes and one: weights to {of_weights:.1e} (they moved by {moved:.2f}), records {of_records:.1e}"
    )
    assert of_weights < 1e-5 * moved
    assert of_records < 1e-5


def test_two_processes_lower_the_rate_at_the_same_plateaus_as_one(lives: Nursery, tmp_path: Path) -> None:
    words = (*COMMON, "model=mlp", "model.hidden=[8]", "epochs=6", "batch_size=45", "optim.lr=0.2", "log_every=1")
    words += ("schedule=plateau", "schedule.patience=1", "schedule.threshold=0.1", "schedule.factor=0.5")
    finish(lives, new(tmp_path / "one"), words)
    run(lives, tmp_path / "several", *words)
    rates, of_several = (
        [record["lr"] for record in outcome(tmp_path / name)["records"] if "lr" in record]
        for name in ("one", "several")
    )
    assert rates == of_several
    assert len(set(rates)) > 2
    assert farthest(tmp_path / "one", tmp_path / "several")[0] < 1e-5


def new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def weights_at_start(folder: Path) -> dict[str, torch.Tensor]:
    from dltrain.training import build

    run = run_folder(folder)
    assert run is not None
    content = checkpoint.load(run / "checkpoints" / "last.pt")
    torch.manual_seed(content["config"]["seed"])
    network = build.model(content["config"]["model"], tuple(content["data"]["input_shape"]), 10)
    return network.state_dict()


# --- to the bit: several processes, again, stopped, resumed

# Draws numbers, has running statistics, and gradients of three processes, which are added in some order.
WORDS = (*COMMON, "model=mlp", "model.hidden=[16]", "model.dropout=0.2", "model.batch_norm=true", "optim=adam")
WORDS += ("optim.lr=0.003", "batch_size=12", "accumulate=2")  # 45 steps


@pytest.mark.slow
def test_three_processes_stopped_and_resumed_give_the_same_bits(lives: Nursery, tmp_path: Path) -> None:
    told = run(lives, tmp_path / "whole", *WORDS, world=3)
    assert "batch norm uses each rank's part" in told[0]
    assert told[1:] == ["", ""]
    run(lives, tmp_path / "stopped", *WORDS, "limit_steps=13", world=3)
    folder = run_folder(tmp_path / "stopped")
    told = run(lives, tmp_path / "stopped", "train", f"resume={folder}", "limit_steps=null", world=3)
    assert "not bit-identical" not in told[0]
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_a_resume_with_another_number_of_processes_works_and_warns(lives: Nursery, tmp_path: Path) -> None:
    words = (*COMMON, "model=lenet", "epochs=2")
    finish(lives, new(tmp_path / "one"), words)
    run(lives, tmp_path / "several", *words, "limit_steps=7")
    folder = run_folder(tmp_path / "several")
    again = ("train", f"resume={folder}")
    refused = start(lives, tmp_path / "several", *again, "device.deterministic=true", world=3)
    assert end(lives, refused)[0] == 2
    assert "processes was 2, is 3" in printed(refused)[0]
    told = run(lives, tmp_path / "several", *again, "limit_steps=15", world=3)
    assert "not bit-identical because processes was 2, is 3" in told[0]
    assert lives.run(tmp_path / "several", *again, "limit_steps=null") == 0
    assert "processes was 3, is 1" in (tmp_path / "several" / "life.log").read_text()
    of_weights, of_records = farthest(tmp_path / "one", tmp_path / "several")
    assert of_weights < 1e-5
    assert of_records < 1e-4


# --- stops


def test_a_signal_to_one_rank_is_known_to_all_ranks_in_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    meeting = threading.Barrier(2)
    states: dict[int, torch.Tensor] = {}

    def all_reduce(state: torch.Tensor, _: object) -> None:
        states[threading.get_ident()] = state.clone()
        meeting.wait(timeout=60)
        state.copy_(torch.stack(list(states.values())).amax(dim=0))
        meeting.wait(timeout=60)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    received: list[list[int]] = [[], []]
    ranks = [distributed.SignalSync(Processes(rank, 2), received[rank]) for rank in (0, 1)]
    with ThreadPoolExecutor(2) as threads:
        for number, known in ((0, []), (signal.SIGTERM, [signal.SIGTERM]), (0, [signal.SIGTERM])):
            received[1] += [number] * bool(number)
            for each in [threads.submit(sync, at_once=True) for sync in ranks]:
                each.result()
            assert [sync.signals for sync in ranks] == [known, known]


@pytest.mark.parametrize(
    "count", [pytest.param(2, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.torture)]
)
def test_a_signal_to_one_process_stops_all_with_one_checkpoint(lives: Nursery, tmp_path: Path, count: int) -> None:
    words = (*COMMON, "model=lenet", "epochs=10", "checkpoint_every=1h")
    run(lives, tmp_path / "whole", *words)
    expected, chance = outcome(tmp_path / "whole"), random.Random(5)
    delays = []
    for number in range(count):
        folder = tmp_path / f"stopped-{number}"
        processes = start(lives, folder, *words)
        wait_for(processes[0], "epoch  1/10")
        time.sleep(chance.uniform(0, 0.3))
        sent = time.perf_counter()
        os.kill(processes[number % 2].pid, signal.SIGTERM)
        assert end(lives, processes) == [143, 143], printed(processes)
        delays.append(time.perf_counter() - sent)
        told = printed(processes)
        assert told[0].count("stopped by SIGTERM after saving") == 1
        assert told[1] == ""
        assert len(list(folder.glob("outputs/*/*/checkpoints/last*.pt"))) == 2  # that of the start, and this one
        again = run(lives, folder, "train", f"resume={run_folder(folder)}")
        assert "not bit-identical" not in again[0]
        assert outcome(folder) == expected
    print(f"{count} of {count} signals: one checkpoint, equal after a resume; at most {max(delays):.2f} s to the end")
    assert max(delays) < 10


def wait_for(life: Life, words: str) -> None:
    end = time.monotonic() + 60
    while words not in life.log.read_text():
        assert time.monotonic() < end, life.log.read_text()
        time.sleep(0.01)


@pytest.mark.slow
def test_limits_hold_for_all_processes(lives: Nursery, tmp_path: Path) -> None:
    words = (*COMMON, "model=lenet", "epochs=100000", "schedule=constant")
    run(lives, tmp_path, *words, "max_seconds=1")
    assert outcome(tmp_path)["status"] == "max_seconds"


NETWORK = """
import os
import torch
from torch import nn

class Faulty(nn.Module):
    '''In the second process something goes wrong, in the fifth step.'''

    def __init__(self, input_shape, num_classes, fault):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, num_classes))
        self.fault, self.steps = fault, 0

    def forward(self, images):
        outputs = self.layers(images)
        self.steps += self.training and len(images) > 2
        if os.environ.get("RANK") == "1" and self.steps == 5:
            if self.fault == "raise":
                raise ValueError("a fault of its own")
            if self.fault == "die":
                os.kill(os.getpid(), 9)
            self.steps -= self.fault == "wrong"  # again when it is looked for
            return outputs * (float("nan"))
        return outputs
"""
FAULTY = (*COMMON, "model=custom", "model.name=faulty:Faulty", "checkpoint_every=1")


def faulty(lives: Nursery, folder: Path, *words: str) -> tuple[list[int], list[str]]:
    folder.mkdir(exist_ok=True)
    (folder / "faulty.py").write_text(NETWORK)
    processes = start(lives, folder, *FAULTY, *words)
    return end(lives, processes), printed(processes)


@pytest.mark.slow
def test_a_nonfinite_loss_on_one_rank_stops_all_at_that_step(lives: Nursery, tmp_path: Path) -> None:
    codes, told = faulty(lives, tmp_path, "+model.fault=wrong")
    assert codes[0] == 1
    assert "error: the loss is not finite at step 5, first in the output of the model (Faulty)" in told[0]
    assert told[1] == ""
    folder = run_folder(tmp_path)
    assert folder is not None
    assert checkpoint.load(folder / "checkpoints" / "last.pt")["step"] == 4


@pytest.mark.slow
def test_a_step_is_skipped_on_all_ranks_or_on_none(lives: Nursery, tmp_path: Path) -> None:
    codes, told = faulty(lives, tmp_path, "+model.fault=once", "on_nonfinite=skip")
    assert codes == [0, 0], told
    skipped = {each["step"]: each["skipped_steps"] for each in outcome(tmp_path)["records"] if "skipped_steps" in each}
    assert skipped == {8: 1}


@pytest.mark.parametrize("fault", mostly_slow(["raise", "die"], fast=["die"]))
def test_a_failing_rank_ends_all_and_is_reported_once(lives: Nursery, tmp_path: Path, fault: str) -> None:
    codes, told = faulty(lives, tmp_path, f"+model.fault={fault}")
    assert codes[1] == (1 if fault == "raise" else -signal.SIGKILL)
    assert codes[0] not in (0, -signal.SIGKILL)  # it ends by itself
    if fault == "raise":
        assert sum(text.count("a fault of its own") for text in told) >= 1
        assert "rank 1: error: ValueError: a fault of its own\nat faulty.py:" in told[1]
    assert "Traceback" not in told[0]
    folder = run_folder(tmp_path)
    assert folder is not None
    assert checkpoint.load(folder / "checkpoints" / "last.pt")["step"] == 4
    assert not list(folder.glob("checkpoints/.*"))


# --- torchrun


def torchrun(folder: Path, *words: str) -> "subprocess.Popen[bytes]":
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=3", "-m", "dltrain"]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen([*command, *words], cwd=folder, stdout=log, stderr=log)


def workers(agent: int) -> list[int]:
    """The processes that torchrun has started, by their rank."""
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    environment = {int(child): Path(f"/proc/{child}/environ").read_bytes().split(b"\0") for child in children}
    ranks = {
        next(int(each[5:]) for each in entries if each.startswith(b"RANK=")): child
        for child, entries in environment.items()
        if any(each.startswith(b"RANK=") for each in entries)
    }
    return [ranks[rank] for rank in sorted(ranks)]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize(
    "count", [pytest.param(1, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.torture)]
)
def test_a_killed_process_is_restarted_and_the_run_ends_with_the_same_result(
    lives: Nursery, tmp_path: Path, count: int
) -> None:
    words = (*COMMON, "model=lenet", "epochs=12", "name=kept", "checkpoint_every=15")
    run(lives, tmp_path / "whole", *words)
    expected, chance = outcome(tmp_path / "whole"), random.Random(6)
    seconds = []
    for number in range(count):
        folder = tmp_path / f"killed-{number}"
        with torchrun(folder, *words) as agent:
            life = Life(agent.pid, folder, folder / "log")
            wait_for(life, "epoch  1/12")
            time.sleep(chance.uniform(0, 0.5))
            os.kill(workers(agent.pid)[number % 2], signal.SIGKILL)
            killed = time.perf_counter()
        seconds.append(time.perf_counter() - killed)
        told = life.log.read_text()
        assert agent.returncode == 0, told
        assert "started again by torchrun: continuing from outputs" in told
        assert "Traceback" not in told
        assert len(list(folder.glob("outputs/*/*"))) == 1
        assert outcome(folder) == expected
    print(f"{count} of {count} kills: equal; from kill to end at most {max(seconds):.1f} s")


def test_a_process_that_torchrun_starts_again_continues_its_run_to_the_same_result(
    dltrain: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store that a torchrun agent holds is here, and the process dies by an error at a step."""
    words = (*COMMON, "model=mlp", "epochs=1", "name=kept")

    def die(settings: object, signals: object, step: int, *_: object) -> str:
        assert step < 8
        return ""

    for name in ("whole", "killed"):
        monkeypatch.chdir(new(tmp_path / name))
        if name == "whole":
            assert dltrain(*words).code == 0
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    environment = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    for key, value in (environment | {"TORCHELASTIC_USE_AGENT_STORE": "True"}).items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(distributed, "_run_count", 0)
    with monkeypatch.context() as patch:
        patch.setattr(training_run, "reason_to_stop", die)
        assert dltrain(*words).code == 1
    run = run_folder(tmp_path / "killed")
    assert run is not None
    assert checkpoint.load(run / "checkpoints" / "last.pt")["step"] == 6
    monkeypatch.setattr(distributed, "_run_count", 0)  # a new process
    again = dltrain(*words)
    assert (again.code, "started again by torchrun: continuing from outputs" in again.out + again.err) == (0, True)
    assert len(list((tmp_path / "killed").glob("outputs/*/*"))) == 1
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def test_the_reason_of_an_nccl_error_is_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    told = """NCCL error in: c10d/NCCLUtils.cpp:94, invalid usage (run with NCCL_DEBUG=WARN), NCCL version 2.29
ncclInvalidUsage: This usually reflects invalid usage of NCCL library.
Last error:
Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 50"""

    def fail(processes: Processes) -> None:
        raise torch.distributed.DistBackendError(told)

    monkeypatch.setattr(distributed, "_join", fail)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(UserError) as caught, distributed.process_group(Processes(rank=0, world_size=2)):
        pytest.fail("went on")
    assert str(caught.value).endswith(": Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 50")


# --- several machines (on two real hosts: test_two_hosts.py)


def meeting(store: Any, world: int) -> list[str]:
    """Let all ranks agree on a name for their start, the first one coming last."""
    with ThreadPoolExecutor(world) as threads:
        names = [threads.submit(distributed._attempt, store, Processes(rank, world)) for rank in range(1, world)]
        time.sleep(0.1)
        return [distributed._attempt(store, Processes(0, world)), *(name.result() for name in names)]


def test_ranks_that_are_started_again_agree_on_a_new_name_whatever_dead_ones_left() -> None:
    """Agents on several machines count restarts differently: only what the ranks exchange counts."""
    store = torch.distributed.HashStore()
    names = []
    for _ in range(3):
        names.append(meeting(store, 3))
        store.set("first", "0123")  # of a first rank that was killed before it had met the others
    assert [len(set(each)) for each in names] == [1, 1, 1]
    assert len({each[0] for each in names}) == 3


def test_a_rank_that_is_never_answered_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    store = torch.distributed.HashStore()
    store.set("first", "0123")
    monkeypatch.setattr(distributed, "JOIN_TIMEOUT", timedelta(seconds=0.1))
    with pytest.raises(RuntimeError, match="rank 0 did not answer"):
        distributed._attempt(store, Processes(1, 2))


@pytest.mark.skipif(sys.platform != "linux", reason="has other options of connections")
def test_connections_between_ranks_end_after_a_minute_of_silence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as connection:
        distributed._end_if_silent([Path("/dev/fd", name) for name in (str(connection.fileno()), "0", "9999")])
        options = socket.SO_KEEPALIVE, socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_USER_TIMEOUT
        levels = socket.SOL_SOCKET, *[socket.IPPROTO_TCP] * 3
        assert [connection.getsockopt(*each) for each in zip(levels, options, strict=True)] == [1, 30, 10, 60_000]
        connection.sendall(b"still open")
