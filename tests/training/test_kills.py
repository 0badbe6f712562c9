"""Runs that are killed or stopped at any moment come to the same end as one that is left alone, to the bit.

Equal are: the weights in last.pt and best.pt, the best record, the summary's figures and all lines of metrics.jsonl,
without what the clock says. Short by default, longer with `-m slow`; `-m torture` runs the whole.
"""

import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dltrain.checkpoints import checkpoint
from support.lives import Life, Nursery, finish, next_words, outcome, run_folder
from support.tiers import counts, mostly_slow

COMMON = ("train", "data.limit=200", "epochs=3", "batch_size=9", "log_every=4", "checkpoint_every=3")
COMMON += ("data.crop=1", "data.flip=true")  # 180 examples in 20 steps an epoch
MODELS = {
    "mlp": ("model=mlp", "model.hidden=[16]", "model.dropout=0.2", "model.batch_norm=true"),
    "lenet": ("model=lenet",),
    "lstm": ("model=lstm", "model.hidden=16", "model.dropout=0.2"),
    "attention": ("model=attention", "model.width=16", "model.dropout=0.2"),
    "mlp for uneven classes": (
        *("model=mlp", "model.hidden=[16]", "data.balance=0.5"),
        *("task.class_weights=balanced", "task.focal=2", "task.label_smoothing=0.1"),
    ),
    "mlp by its F1": ("model=mlp", "model.hidden=[16]", "metric=f1_macro"),
    "mlp by its AUROC": ("model=mlp", "model.hidden=[16]", "metric=auroc"),
    "mlp with a proxy": ("model=mlp", "model.hidden=[16]", "hardest=0.5", "proxy={hidden: [4], dropout: 0.1}"),
}
OPTIMIZERS = {"sgd": ("optim=sgd",), "adam": ("optim=adam", "optim.lr=0.003")}
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}
PAIRS = [(model, optimizer) for model in MODELS for optimizer in OPTIMIZERS]


class References:
    """What undisturbed runs come to, and how long they take."""

    def __init__(self, lives: Nursery, base: Path) -> None:
        self.lives, self.base = lives, base

    @functools.cache  # noqa: B019  (it lives as long as the module's tests)
    def __call__(self, words: tuple[str, ...]) -> tuple[dict[str, Any], float]:
        folder = new(self.base, "reference")
        began = time.perf_counter()
        finish(self.lives, folder, words)
        return outcome(folder), time.perf_counter() - began


@pytest.fixture(scope="module")
def reference(lives: Nursery, tmp_path_factory: pytest.TempPathFactory) -> References:
    return References(lives, tmp_path_factory.mktemp("references"))


def new(base: Path, name: str) -> Path:
    """A new folder; not of a name that was there before, as folders are removed when they are done with."""
    folder = base / f"{name}-{time.monotonic_ns()}"
    folder.mkdir(parents=True)
    return folder


def words_of(model: str, optimizer: str) -> tuple[str, ...]:
    return (*COMMON, *MODELS[model], *OPTIMIZERS[optimizer])


def sleep_until_end(lives: Nursery, life: Life, seconds: float) -> None:
    """Wait, but not longer than a life lasts."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end and not lives.has_ended(life):
        time.sleep(min(0.005, max(0.0, end - time.perf_counter())))


# --- SIGKILL


@counts(1, 12, 200)
def test_runs_killed_at_random_moments_end_with_the_same_result(
    lives: Nursery, reference: References, tmp_path: Path, count: int
) -> None:
    chance = random.Random(0)
    kills = runs = 0
    while kills < count:
        words = words_of(*PAIRS[runs % len(PAIRS)])
        expected, seconds = reference(words)
        folder = new(tmp_path, "killed")
        code = None
        while code != 0:
            life = lives.start(folder, *next_words(folder, words))
            if kills < count:
                sleep_until_end(lives, life, chance.uniform(0, 0.7 * seconds))
                os.kill(life.pid, signal.SIGKILL)  # one that has ended is not reaped yet
            code = lives.wait(life)
            kills += code == -signal.SIGKILL
            assert code in (0, -signal.SIGKILL), life.log.read_text()[-2000:]
        assert outcome(folder) == expected, words
        run = run_folder(folder)  # not one that was killed in its first save, which nothing goes on with
        assert run is not None
        leftovers = [path.name for path in run.glob("checkpoints/.*")]
        assert leftovers == []
        runs += 1
        shutil.rmtree(folder)
    print(f"{kills} kills over {runs} runs: all equal, 0 lost")


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), pytest.param(6, marks=pytest.mark.torture)])
def test_a_run_that_is_killed_again_and_again_progresses(tmp_path: Path, count: int) -> None:
    """Real processes with the default interval, each killed at twice the time it takes to start."""
    words = ("train", "model=mlp", "epochs=1000000", "device.threads=1", "schedule=constant")

    def start(*argv: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "dltrain", *argv]
        return subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)

    steps = []
    for _ in range(count + 1):
        began = time.perf_counter()
        with start(*next_words(tmp_path, words)) as process:
            assert process.stdout is not None
            next(line for line in process.stdout if line.startswith("folder"))
            time.sleep(time.perf_counter() - began)
            process.kill()
        folder = run_folder(tmp_path)
        assert folder is not None
        steps.append(checkpoint.load(folder / "checkpoints" / "last.pt")["step"])
    print(f"steps after each life: {steps}")
    assert all(before < after for before, after in zip([0, *steps], steps, strict=False))


# --- stops at chosen steps


@counts(1, 5, 119)
def test_every_step_is_a_valid_resume_point(lives: Nursery, reference: References, tmp_path: Path, count: int) -> None:
    words = (*words_of("mlp", "adam"), "epochs=6")  # 120 steps
    expected, _ = reference(words)
    assert expected["steps"] == 120
    stops = range(1, 120) if count == 119 else random.Random(1).sample(range(1, 120), count)
    for stop in stops:
        folder = new(tmp_path, "stopped")
        assert lives.run(folder, *words, f"limit_steps={stop}") == 0
        assert lives.run(folder, *next_words(folder, words), "limit_steps=null") == 0
        assert outcome(folder) == expected, stop
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("count", "resumes"),
    [(1, 2), pytest.param(1, 10, marks=pytest.mark.slow), pytest.param(50, 10, marks=pytest.mark.torture)],
)
def test_resumes_inside_one_epoch_end_with_the_same_result(
    lives: Nursery, reference: References, tmp_path: Path, count: int, resumes: int
) -> None:
    chance = random.Random(2)
    for run in range(count):
        words = words_of(*PAIRS[run % len(PAIRS)])
        expected, _ = reference(words)
        folder = new(tmp_path, "resumed")
        for stop in sorted(chance.sample(range(21, 40), resumes)):  # in the second epoch
            assert lives.run(folder, *next_words(folder, words), f"limit_steps={stop}") == 0
        assert lives.run(folder, *next_words(folder, words), "limit_steps=null") == 0
        assert outcome(folder) == expected, words
        shutil.rmtree(folder)


# --- signals


def is_stopped(code: int, number: int) -> bool:
    """Whether an exit code is that of a run stopped by a signal, or of one that was over before."""
    return code in (0, SIGNALS[signal.Signals(number)])


@counts(1, 6, 100)
def test_a_signal_at_a_random_moment_saves_and_the_resumed_run_ends_with_the_same_result(
    lives: Nursery, reference: References, tmp_path: Path, count: int
) -> None:
    chance = random.Random(3)
    delays, stopped = [], 0
    for run in range(count):
        words = words_of(*PAIRS[run % len(PAIRS)])
        expected, seconds = reference(words)
        folder = new(tmp_path, "stopped")
        number = list(SIGNALS)[run % len(SIGNALS)]
        life = lives.start(folder, *words)
        sleep_until_end(lives, life, chance.uniform(0.03, seconds))
        sent = time.perf_counter()
        os.kill(life.pid, number)
        code = lives.wait(life)
        delays.append(time.perf_counter() - sent)
        stopped += code != 0
        assert is_stopped(code, number), (code, life.log.read_text()[-2000:])
        finish(lives, folder, words)
        assert outcome(folder) == expected, words
        shutil.rmtree(folder)
    delays.sort()
    print(
        f"{count} signals, {stopped} runs stopped by them: all equal; from signal to exit: median "
        f"{1000 * delays[len(delays) // 2]:.0f} ms, longest {1000 * delays[-1]:.0f} ms"
    )
    assert stopped >= count // 2


@counts(1, 6, 100)
def test_a_second_signal_ends_the_run_immediately_and_leaves_a_valid_checkpoint(
    lives: Nursery, reference: References, tmp_path: Path, count: int
) -> None:
    chance = random.Random(4)
    for run in range(count):
        words = words_of(*PAIRS[run % len(PAIRS)])
        expected, seconds = reference(words)
        folder = new(tmp_path, "stopped")
        first, second = chance.choices(list(SIGNALS), k=2)
        life = lives.start(folder, *words)
        sleep_until_end(lives, life, chance.uniform(0.03, seconds))
        os.kill(life.pid, first)
        sleep_until_end(lives, life, chance.uniform(0, 0.2))
        os.kill(life.pid, second)
        code = lives.wait(life)
        # By the second one even while the interpreter goes, when nobody handles signals any more.
        assert is_stopped(code, first) or is_stopped(code, second) or code == -second, life.log.read_text()[-2000:]
        finish(lives, folder, words)
        assert outcome(folder) == expected, words
        shutil.rmtree(folder)


# --- many at once


@pytest.mark.parametrize(
    "count", [pytest.param(6, marks=pytest.mark.slow), pytest.param(50, marks=pytest.mark.torture)]
)
def test_runs_started_in_one_second_get_separate_folders(lives: Nursery, tmp_path: Path, count: int) -> None:
    words = (*COMMON, *MODELS["mlp"], "epochs=1", "checkpoint_every=1h")
    at = time.time() + 3 + 0.1 * count
    started = [lives.start(tmp_path, *words, at=at) for _ in range(count)]
    assert time.time() < at  # so all of them begin at that moment
    assert [lives.wait(life) for life in started] == [0] * count
    folders = [path.parent for path in tmp_path.glob("outputs/*/*/summary.json")]
    assert len(folders) == count
    names = {folder.name[: len("hh-mm-ss")] for folder in folders}
    print(f"{count} runs, {count} folders, {len(names)} different times in their names")
    assert len({(folder / "metrics.jsonl").read_text().count("\n") for folder in folders}) == 1


# --- nothing is forgotten: each item of the state, taken from the start instead of the stop, makes another run

NETWORK = """
import random
import numpy
import torch
from torch import nn

class Noisy(nn.Module):
    '''Draws from every generator there is.'''

    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2))
        self.last = nn.Linear(16, num_classes)

    def forward(self, images):
        noise = 1 + 0.2 * random.random() + 0.2 * numpy.random.random() if self.training else 1
        return self.last(self.layers(images) * noise)
"""
NOISY = (*COMMON, "model=custom", "model.name=noisy:Noisy", "optim=adam", "optim.lr=0.002", "patience=2", "epochs=60")
# By steps: by time a slow machine would save in between.
NOISY += ("schedule=plateau", "schedule.patience=1", "checkpoint_every=1000000", "keep=2")


def item(*path: str) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """What takes an item of a checkpoint's content from the one of the start."""

    def mutate(content: dict[str, Any], start: dict[str, Any]) -> None:
        *parents, last = path
        for key in parents:
            content, start = content[key], start[key]
        content[last] = start[last]

    return mutate


def put(value: Any, *path: str) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """What puts another value in the place of an item."""

    def mutate(content: dict[str, Any], _: dict[str, Any]) -> None:
        *parents, last = path
        for key in parents:
            content = content[key]
        assert content[last] != value
        content[last] = value

    return mutate


MUTANTS: dict[str, Callable[[dict[str, Any], dict[str, Any]], None]] = {
    "weights": item("model", "last.weight"),
    "buffers": item("model", "layers.2.running_mean"),
    "optimizer": item("optimizer"),
    "moments": item("optimizer", "state"),
    "step": item("step"),
    "sums": item("sums"),
    "torch's generator": item("generators", "cpu"),
    "python's generator": item("generators", "python"),
    "numpy's generator": item("generators", "numpy"),
    "best": item("progress", "best"),
    "best weights": item("progress", "best_weights"),
    "patience": item("progress", "stale_epochs"),
    "validation scores": item("progress", "scores"),
    "latest figures": item("progress", "latest"),
    "position in metrics.jsonl": item("position"),
    "config": put(0.02, "config", "optim", "lr"),
    "seed": put(1, "config", "seed"),
    "data": put({"train": "0"}, "digests", "data"),
    "precision": put("bf16", "runtime", "precision"),
    "threads": put(2, "runtime", "threads"),
    "versions": put("0.0.1", "environment", "torch"),
}


@pytest.fixture(scope="module")
def noisy_runs(lives: Nursery, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that patience ended; and one stopped between its best epoch and that end, in the middle of an interval."""
    whole, stopped = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("stopped")
    for folder in (whole, stopped):
        (folder / "noisy.py").write_text(NETWORK)
    assert lives.run(whole, *NOISY) == 0, (whole / "life.log").read_text()
    end = outcome(whole)
    assert end["status"] == "patience"
    assert end["best"]["step"] == end["steps"] - 40
    assert lives.run(stopped, *NOISY, f"limit_steps={end['steps'] - 14}") == 0
    return whole, stopped


def resumed(lives: Nursery, folder: Path) -> tuple[dict[str, Any], str]:
    """What a stopped run comes to, and what it prints."""
    code = lives.run(folder, *next_words(folder, NOISY), "limit_steps=null", "trust=[noisy]")
    printed = (folder / "life.log").read_text()
    return (outcome(folder) if code == 0 else {"code": code}), printed


@pytest.fixture
def copies(noisy_runs: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """Copies of the two, to be resumed."""
    whole, stopped = (Path(shutil.copytree(run, tmp_path / run.name)) for run in noisy_runs)
    return whole, stopped


def test_a_run_that_draws_from_every_generator_resumes_exactly(
    lives: Nursery, noisy_runs: tuple[Path, Path], copies: tuple[Path, Path]
) -> None:
    expected = outcome(noisy_runs[0])
    for folder in copies:
        found, printed = resumed(lives, folder)
        assert found == expected
        assert "not bit-identical" not in printed


OFTEN = ("optimizer", "torch's generator")


@pytest.mark.parametrize("name", mostly_slow(MUTANTS, fast=OFTEN))
def test_losing_any_item_of_the_state_changes_the_result(
    lives: Nursery, noisy_runs: tuple[Path, Path], copies: tuple[Path, Path], name: str
) -> None:
    """What is compared above would find every one of them forgotten."""
    folder = copies[0] if name == "latest figures" else copies[1]  # those are told at the end alone
    run = run_folder(folder)
    assert run is not None
    last = run / "checkpoints" / "last.pt"
    content, start = checkpoint.load(last), checkpoint.load(last.with_name("last-1.pt"))
    assert start["step"] == 0
    MUTANTS[name](content, start)
    checkpoint.save(last, content)
    found, printed = resumed(lives, folder)
    assert found != outcome(noisy_runs[0]) or "not bit-identical" in printed
