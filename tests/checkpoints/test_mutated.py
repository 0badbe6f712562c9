"""Files that differ from a checkpoint by chance end no command: they are read, or refused in a few lines.

A fault is told with its number: `mutated(base, number)` is the file. The whole version runs with `-m torture`; what
runs by default is a short one.
"""

import collections
import contextlib
import functools
import io
import json
import os
import random
import shutil
import signal
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from dltrain import cli
from dltrain.checkpoints import checkpoint
from dltrain.config.resolution import Config
from dltrain.runtime.errors import UserError
from dltrain.training import restore
from support.faults import forked
from support.hostile import SMALL
from support.mutations import mutated
from support.tiers import mostly_slow

SECONDS = 2.0  # of processor time for one file, whatever is done with it
STILL = 120.0  # seconds after which a file is given up that needs no processor time either
BATCH = 200  # files to a fork
USED, RESUMED = 0.1, 0.4  # the shares of files of which a network is built, and of checkpoints that are gone on from
DEVICE = {"name": "cpu", "precision": "fp32", "threads": 1, "deterministic": False}
CODES = {0, 1, 2, 66, 69, 74}  # 1 is also that of a fault of ours, which shows a traceback

Attempt = Callable[[int], list[str]]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, in one of its own."""
    folder = tmp_path_factory.mktemp("mutated")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            words = ("limit_steps=4", "log_every=3", "keep=1", "optim=adam", "hardest=0.5", "proxy={hidden: [2]}")
            assert cli.main([*SMALL, "epochs=2", *words]) == 0
    next(folder.glob("outputs/*/*")).rename(folder / "run")
    return folder


def tried(numbers: Sequence[int], attempt: Attempt) -> tuple[collections.Counter[str], list[str]]:
    """Make each attempt in a fork: how often each outcome was there, and the faults with their numbers."""
    counts: collections.Counter[str] = collections.Counter()
    faults, left = [], list(numbers)
    while left:
        ended = forked(functools.partial(each, left[:BATCH], attempt))
        begun = -1
        for line in ended.out.splitlines():
            begun, outcomes = json.loads(line)
            counts.update(outcome for outcome in outcomes if not outcome.startswith("fault"))
            faults += [f"{begun}: {outcome}" for outcome in outcomes if outcome.startswith("fault")]
        if ended.code:
            told = {-signal.SIGPROF: f"more than {SECONDS} s", -signal.SIGALRM: f"still after {STILL} s"}
            faults.append(f"{begun}: {told.get(ended.code, f'ended with {ended.code}')} {ended.err[-2000:]}")
        elif ended.err:
            faults.append(f"{left[0]} to {begun}: printed {ended.err[-2000:]}")
        left = left[left.index(begun) + 1 :]
    return counts, faults


def each(numbers: Sequence[int], attempt: Attempt) -> None:
    """Print each number before its attempt, and its outcomes after it; one that takes too long is the last."""
    for number in numbers:
        print(json.dumps([number, []]), flush=True)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # whose signal ends also who is in C
        signal.setitimer(signal.ITIMER_REAL, STILL)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            try:
                outcomes = attempt(number)
            except BaseException:
                outcomes = [f"fault: {traceback.format_exc()[-2000:]}"]
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        shown = [each for each in seen if not issubclass(each.category, DeprecationWarning)]  # as Python does
        outcomes += [f"fault: warns {each.message}" for each in shown]
        print(json.dumps([number, outcomes]), flush=True)


def read(folder: Path, base: bytes, number: int) -> list[str]:
    """What becomes of a mutated file by each way it can be read."""
    kind, data = mutated(base, number)
    rng, path = random.Random(-number - 1), folder / "case.pt"
    path.write_bytes(data)
    readers: dict[str, Callable[[], object]] = {
        "load": lambda: checkpoint.load(path),
        "load_weights": lambda: checkpoint.load_weights(path),
        "inspect": lambda: cli.main(["inspect", str(path)]),
    }
    if kind.startswith("content") or rng.random() < USED:
        config = {"trust": [], "device": DEVICE}
        readers["eval"] = lambda: restore.load_trained(str(path), Config({}, config))
    if kind == "content of checkpoints" and rng.random() < RESUMED:
        case = folder / "case"
        shutil.rmtree(case, ignore_errors=True)
        shutil.copytree(folder / "run", case)
        (case / "checkpoints" / "last.pt").write_bytes(data)
        readers["resume"] = lambda: cli.main(["train", f"resume={case}", "limit_steps=5"])
    outcomes = [f"{kind}: {name} {outcome(reader)}" for name, reader in readers.items()]
    torch.set_num_threads(1)  # a file may have asked for others
    return [told[told.index("fault") :] if "fault" in told else told for told in outcomes]


def outcome(reader: Callable[[], object]) -> str:
    """How a file was read: `ok`, `refused`, or which fault there was."""
    with (
        contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")),  # refuses what is no text, as a real one
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        try:
            code = reader()
        except UserError as error:
            code = cli._report_error(error)
        except Exception:
            return f"fault: {traceback.format_exc()[-2000:]}"
    if not isinstance(code, int):
        code = 0
    told = err.getvalue()
    lines = told[told.rfind("error: ") :].splitlines() if code else []
    if code not in CODES or "Traceback" in told or len(lines) > 3 or (code and "error: " not in told):
        return f"fault: code {code}: {told[-2000:]}"
    if "Warning" in told:
        return f"fault: shows {told[-2000:]}"
    return f"refused with {code}" if code else "ok"


def refuse_or_read(folder: Path, numbers: Sequence[int]) -> None:
    base = (folder / "run/checkpoints/last.pt").read_bytes()
    counts, faults = tried(numbers, functools.partial(read, folder, base))
    print(f"{len(numbers)} files", *(f"{key} {count}" for key, count in sorted(counts.items())), sep="\n")
    told = "\n".join(fault[-1500:] for fault in faults[:40])
    assert not faults, f"{len(faults)} faults\n{told}"
    loads = {key.partition(":")[0] for key in counts if key.endswith(": load ok")}
    assert loads >= {"archive", "pickle", "content of checkpoints"}, "mutations that nothing gets through test little"


@pytest.mark.torture
def test_twenty_thousand_mutated_files_are_read_or_refused_in_brief(run_folder: Path) -> None:
    refuse_or_read(run_folder, range(20_000))


@pytest.mark.parametrize("count", mostly_slow([100, 300], fast=[100]))
def test_a_few_mutated_files_are_read_or_refused_in_brief(run_folder: Path, count: int) -> None:
    refuse_or_read(run_folder, range(1_000_000, 1_000_000 + count))


def test_a_mutation_is_determined_by_its_number(run_folder: Path) -> None:
    base = (run_folder / "run/checkpoints/last.pt").read_bytes()
    assert [mutated(base, number) for number in range(50)] == [mutated(base, number) for number in range(50)]


def test_a_reader_error_is_reported_with_the_number_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "SECONDS", 0.1)
    monkeypatch.setitem(globals(), "STILL", 2.0)

    def reader(number: int) -> object:
        match number:
            case 2:
                raise ValueError("of a reader")
            case 3:
                os.kill(os.getpid(), signal.SIGKILL)
            case 4:
                while True:
                    pass
            case 5:
                signal.pause()
            case 6:
                warnings.warn("beware", UserWarning, stacklevel=1)
            case 7:
                os.write(2, b"noise of a library\n")
            case 8:
                raise UserError("one\ntwo\nthree\nfour")
            case 9:
                raise SystemExit(3)
            case 10:
                print("\udc80")
            case 11:
                raise UserError("refused")
        return None

    counts, faults = tried(range(13), lambda number: [outcome(lambda: reader(number))])
    told = {fault.partition(":")[0]: fault for fault in faults}
    assert counts == {"ok": 5, "refused with 1": 1}
    expected = {"2": "of a reader", "3": "ended with -9", "4": "more than 0.1 s", "5": "still after 2.0 s"}
    expected |= {"6": "warns beware", "6 to 12": "noise of a library", "8": "three\nfour", "9": "SystemExit: 3"}
    expected |= {"10": "surrogates not allowed"}
    assert told.keys() == expected.keys() and all(expected[number] in told[number] for number in expected), told
