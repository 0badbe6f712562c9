"""Nothing that was saved is lost: faults at every call of a save, damage, full and read-only disks, two writers.

The whole versions run with `-m torture`; what runs by default are short ones of each.
"""

import contextlib
import errno
import itertools
import json
import os
import random
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dltrain import cli
from dltrain.checkpoints import archive, checkpoint
from dltrain.report import run_files
from dltrain.runtime import atomic_files, folders
from dltrain.runtime.errors import InputError, OutputError
from dltrain.training import finish as ending
from dltrain.training.run_dir import RunDir
from support.command import Command
from support.contents import content, equal, files
from support.faults import FAILURES, KILLS, Child, Ended, Fault, at_call, file_limit, forked, limited, obey_permissions
from support.tiers import mostly_slow

SMALL = ("train", "model=mlp", "model.hidden=[2]", "data.limit=100", "batch_size=32", "device=cpu", "device.threads=1")
RUN = (*SMALL, "model.dropout=0.1", "optim=adam", "epochs=3", "log_every=2")


def told(error: Exception, path: Path) -> bool:
    """Whether an error is one line that begins with the file it is about."""
    return str(error).startswith(f"{path}: ") and len(str(error).splitlines()) == 1


# Faults at each call of a save


def filled(folder: Path, keep: int, saves: int = 3) -> Path:
    """A folder's last.pt after some saves, and a best.pt."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    checkpoint.save(folder / "best.pt", content(100))
    for step in range(1, saves + 1):
        checkpoint.save(folder / "last.pt", content(step), keep=keep)
    return folder / "last.pt"


def steps(path: Path) -> list[int]:
    """Steps of a checkpoint, which must be there, and those before it; each must be what was saved, to the bit."""
    assert path.exists()
    found = [checkpoint.load(candidate) for candidate in checkpoint._with_previous(path)]
    assert all(equal(loaded, {"format": checkpoint.FORMAT} | content(loaded["step"])) for loaded in found)
    return [loaded["step"] for loaded in found]


def calls(folder: Path, keep: int, saves: int, *, links: bool) -> list[str]:
    """The calls that a save makes."""
    path = filled(folder, keep, saves)
    with at_call(links=links) as made:
        checkpoint.save(path, content(saves + 1), keep=keep)
    return made


def refuse_leftovers(path: Path, keep: int) -> None:
    """After the next run has begun and saved there must be what is kept and nothing else."""
    atomic_files.remove_leftovers(path)
    last = content(50)
    checkpoint.save(path, last, keep=keep)
    assert steps(path)[0] == 50
    assert equal(checkpoint.load(path.with_name("best.pt"))["model"], content(100)["model"])
    allowed = {"best.pt", "last.pt", *(f"last-{number}.pt" for number in range(1, keep))}
    assert {"best.pt", "last.pt"} <= set(files(path.parent)) <= allowed


def fail_in_a_save(folder: Path, keep: int, saves: int, at: int, fault: Fault, *, links: bool) -> None:
    """One point: an error at a call of a save."""
    path, raised = filled(folder, keep, saves), False
    with at_call(at, fault, links=links) as made:
        try:
            checkpoint.save(path, content(saves + 1), keep=keep)
        except OutputError as error:
            raised = True
            assert (error.exit_code, told(error, path)) == (74, True)
    assert len(made) > at
    found = steps(path) if saves or path.exists() else [0]
    assert found[0] in ((saves, saves + 1) if raised else (saves + 1,))
    assert found == sorted(set(found), reverse=True)
    assert not [name for name in files(folder) if name.startswith(".")]
    refuse_leftovers(path, keep)


def kill_in_a_save(folder: Path, keep: int, saves: int, at: int, fault: Fault, *, links: bool) -> None:
    """One point: the process is killed at a call of a save."""
    path = filled(folder, keep, saves)
    after = content(saves + 1)

    def child() -> None:
        with at_call(at, fault, links=links):
            checkpoint.save(path, after, keep=keep)

    assert forked(child).code == -9
    found = steps(path) if saves or path.exists() else [0]
    assert found[0] in (saves, saves + 1)
    assert found == sorted(set(found), reverse=True)
    refuse_leftovers(path, keep)


def points(folder: Path, faults: list[Fault]) -> Iterator[tuple[int, int, int, Fault, bool]]:
    """Every call of a save, with every fault that can strike there: keep, saves before, call, fault, links."""
    for keep, saves, links in itertools.product((1, 2, 3), (0, 1, 4), (True, False)):
        if links or (keep > 1 and saves):
            for at, name in enumerate(calls(folder, keep, saves, links=links)):
                for fault in faults:
                    if fault.moment != "half" or name in ("write", "copyfile"):
                        yield keep, saves, at, fault, links


@pytest.mark.torture
def test_a_failure_at_each_call_of_a_save_leaves_the_old_or_new_file_and_is_reported(tmp_path: Path) -> None:
    done = 0
    for keep, saves, at, fault, links in points(tmp_path / "checkpoints", FAILURES):
        fail_in_a_save(tmp_path / "checkpoints", keep, saves, at, fault, links=links)
        done += 1
    print(f"{done} points")
    assert done > 500


@pytest.mark.torture
def test_a_kill_at_each_call_of_a_save_leaves_the_old_or_new_file(tmp_path: Path) -> None:
    done = 0
    for keep, saves, at, fault, links in points(tmp_path / "checkpoints", KILLS):
        kill_in_a_save(tmp_path / "checkpoints", keep, saves, at, fault, links=links)
        done += 1
    print(f"{done} points")
    assert done > 300


@pytest.mark.parametrize(("keep", "links"), [(1, True), (3, False)])
def test_a_full_disk_at_each_call_of_a_save_leaves_the_old_or_new_file_and_is_reported(
    tmp_path: Path, keep: int, links: bool
) -> None:
    folder = tmp_path / "checkpoints"
    for at, name in enumerate(calls(folder, keep, 4, links=links)):
        moment = "half" if name in ("write", "copyfile") else "before"
        fail_in_a_save(folder, keep, 4, at, Fault(errno.ENOSPC, moment), links=links)


@pytest.mark.parametrize(("keep", "links"), [(3, True), (3, False)])
def test_a_kill_before_each_call_of_a_save_leaves_the_old_or_new_file(tmp_path: Path, keep: int, links: bool) -> None:
    folder = tmp_path / "checkpoints"
    for at, name in enumerate(calls(folder, keep, 4, links=links)):
        moment = "half" if name in ("write", "copyfile") else "before"
        kill_in_a_save(folder, keep, 4, at, Fault(0, moment), links=links)


# The rotation, where only one of the files is good


def damaged_newest(folder: Path, keep: int) -> Path:
    """A folder whose last-1.pt of step 3 is the only good one."""
    path = filled(folder, keep, 4)
    for other in checkpoint._with_previous(path):
        if other.name != "last-1.pt":
            other.write_bytes(other.read_bytes()[:-200])
    return path


def kill_in_a_rotation(folder: Path, keep: int, at: int, fault: Fault, *, links: bool, read: bool) -> None:
    """One point: a resume, or with `read` false a run that does not know of the damage, is killed at a call."""
    path = damaged_newest(folder, keep)
    after = content(5)

    def child() -> None:
        with at_call(at, fault, links=links):
            if read:
                checkpoint.load_newest(path)
            checkpoint.save(path, after, keep=keep)

    assert forked(child).code == -9
    atomic_files.remove_leftovers(path)
    _, found = checkpoint.load_newest(path)
    assert found["step"] in (3, 5)
    assert equal(found, {"format": checkpoint.FORMAT} | content(found["step"]))
    assert checkpoint.load(path.with_name("best.pt"))["step"] == 100


def rotation(folder: Path, keep: int, *, links: bool, read: bool) -> list[str]:
    path = damaged_newest(folder, keep)
    with at_call(links=links) as made:
        if read:
            checkpoint.load_newest(path)
        checkpoint.save(path, content(5), keep=keep)
    return made


@pytest.mark.torture
def test_a_kill_at_each_call_of_a_rotation_never_costs_the_only_good_file(tmp_path: Path) -> None:
    folder, done = tmp_path / "checkpoints", 0
    for keep, links, read in itertools.product((2, 3), (True, False), (True, False)):
        for at in range(len(rotation(folder, keep, links=links, read=read))):
            for fault in KILLS:
                kill_in_a_rotation(folder, keep, at, fault, links=links, read=read)
                done += 1
    print(f"{done} points")


@pytest.mark.parametrize(("keep", "read"), [(2, False), (3, True)])
def test_a_kill_before_each_call_of_a_rotation_never_costs_the_only_good_file(
    tmp_path: Path, keep: int, read: bool
) -> None:
    folder = tmp_path / "checkpoints"
    for at in range(len(rotation(folder, keep, links=True, read=read))):
        kill_in_a_rotation(folder, keep, at, Fault(0), links=True, read=read)


# Real runs: their folder, and what a command line in a fork prints


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run to its end, of nine steps, that keeps three checkpoints; not to be changed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DLTRAIN_DATA", raising=False)
        assert cli.main([*RUN, "keep=3", "checkpoint_every=2"]) == 0
        return next(folder.glob("outputs/*/*"))


@pytest.fixture(scope="module")
def at_step_6(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of that run stopped at step 6, with the checkpoints of steps 6, 4 and 2; not to be changed."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DLTRAIN_DATA", raising=False)
        assert cli.main([*RUN, "keep=3", "checkpoint_every=2", "limit_steps=6"]) == 0
        return next(folder.glob("outputs/*/*"))


@pytest.fixture
def stopped(at_step_6: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(at_step_6, tmp_path / "run")


def command(*arguments: object, before: Callable[[], None] = lambda: None) -> Callable[[], int]:
    """A command line for a fork."""

    def child() -> int:
        before()
        return cli.main([str(argument) for argument in arguments])

    return child


def weights(folder: Path, name: str = "last.pt") -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / name, weights_only=True)["model"]


def in_brief(ended: Ended) -> bool:
    """Whether a command ended with code 74 and an error of three lines at the most."""
    return (
        ended.code == 74
        and ended.err.startswith("error: ")
        and len(ended.err.splitlines()) <= 3
        and not any(word in ended.out + ended.err for word in ("Traceback", "Logging error", "Exception ignored"))
    )


def go_on_undamaged(dltrain: Command, folder: Path, undisturbed: Path) -> None:
    """A resume must reach the end with the weights and the records of the undisturbed run, and leave nothing else."""
    assert dltrain("train", f"resume={folder}", "limit_steps=null").code == 0
    for name in ("last.pt", "best.pt"):
        assert equal(weights(folder, name), weights(undisturbed, name))
    assert losses(folder) == losses(undisturbed)


def losses(folder: Path) -> list[tuple[object, ...]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["split"], line["step"], line["loss"]) for line in found]


# Damage


def harm(path: Path, kind: str, draw: random.Random) -> None:
    """Damage a file at a random place."""
    data = bytearray(path.read_bytes())
    match kind:
        case "flip":
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        case "cut":
            del data[draw.randrange(len(data)) :]
        case "empty":
            data.clear()
        case "delete":
            path.unlink()
            return
    path.write_bytes(data)


def fall_back(source: Path, folder: Path, count: int, draw: random.Random, caplog: pytest.LogCaptureFixture) -> None:
    """One case: the newest `count` of three are damaged; the next one is used, and the warning names both."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    last = folder / "last.pt"
    candidates = checkpoint._with_previous(last)
    kinds = [draw.choice(["flip", "cut", "empty", "delete"]) for _ in range(count)]
    for path, kind in zip(candidates, kinds, strict=False):
        harm(path, kind, draw)
    good = checkpoint.load(candidates[count])
    caplog.clear()
    used, found = checkpoint.load_newest(last)
    assert used == candidates[count]
    assert equal(found, good)
    assert caplog.messages[-1] == f"{last} cannot be used: continuing from the one before, {used}"
    left = [path.with_name(f"{path.name}.damaged").is_file() for path in candidates[:count]]
    assert left == [kind != "delete" for kind in kinds]


def falls_back(source: Path, folder: Path, cases: int, caplog: pytest.LogCaptureFixture) -> None:
    draw = random.Random(0)
    for case in range(cases):
        fall_back(source, folder, 1 + case % 2, draw, caplog)


@pytest.mark.torture
def test_damaged_newest_checkpoints_fall_back_to_the_previous_one_100_of_100(
    stopped: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    falls_back(stopped / "checkpoints", tmp_path / "checkpoints", 100, caplog)


def test_damaged_newest_checkpoints_fall_back_to_the_previous_one(
    stopped: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    falls_back(stopped / "checkpoints", tmp_path / "checkpoints", 12, caplog)


@pytest.mark.parametrize(("count", "kind"), [(1, "delete"), (2, "cut")])
def test_a_run_with_damaged_newest_checkpoints_ends_with_the_same_result(
    dltrain: Command, stopped: Path, undisturbed: Path, count: int, kind: str
) -> None:
    draw = random.Random(1)
    for path in checkpoint._with_previous(stopped / "checkpoints" / "last.pt")[:count]:
        harm(path, kind, draw)
    go_on_undamaged(dltrain, stopped, undisturbed)
    written = (stopped / "train.log").read_text()
    assert re.search(rf"last\.pt cannot be used: continuing from the one before, .*/last-{count}\.pt", written)


def test_with_every_checkpoint_damaged_a_resume_is_code_66_and_touches_nothing(dltrain: Command, stopped: Path) -> None:
    for path in checkpoint._with_previous(stopped / "checkpoints" / "last.pt"):
        harm(path, "cut", random.Random(2))
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    result = dltrain("train", f"resume={stopped}")
    assert (result.code, len(result.err.splitlines())) == (66, 1)
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before


def test_a_checkpoint_without_read_permission_is_not_treated_as_damaged(stopped: Path) -> None:
    last = stopped / "checkpoints" / "last.pt"
    before = files(last.parent)

    def child() -> None:
        obey_permissions()
        with pytest.raises(InputError, match=r"could not be read \(Permission denied\)") as caught:
            checkpoint.load_newest(last)
        assert told(caught.value, last)

    last.chmod(0)
    with reachable(stopped):
        assert forked(child).err == ""
    assert files(last.parent) == before


@contextlib.contextmanager
def reachable(path: Path) -> Iterator[None]:
    """Let others than root into a folder; pytest's own are root's alone."""
    closed = [(parent, parent.stat().st_mode) for parent in path.parents if not parent.stat().st_mode & 0o001]
    for parent, mode in closed:
        parent.chmod(mode | 0o001)
    try:
        yield
    finally:
        for parent, mode in closed:
            parent.chmod(mode)


def refuse(path: Path, data: bytes | bytearray) -> None:
    """One case: bytes that are not those of a checkpoint must be refused in one line, however they are read."""
    path.write_bytes(data)
    for read in (checkpoint.load, checkpoint.load_weights):
        with pytest.raises(InputError) as caught:
            read(path)
        assert (caught.value.exit_code, told(caught.value, path)) == (66, True)


def damages(whole: bytes, other: bytes, flips: int, cuts: int, swaps: int) -> Iterator[bytes | bytearray]:
    """A file with a bit flipped, cut, with two blocks swapped; with the end of another; two in one."""
    draw, size, bits = random.Random(0), len(whole), 8 * len(whole)
    trailer = archive.TRAILER_SIZE
    ends = [0, 1, 7, bits - 1, *range(bits - 8 * trailer, bits, 8 * trailer * 40 // flips + 1)]
    for bit in [*ends, *(draw.randrange(bits) for _ in range(flips - len(ends)))]:
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        yield data
    ends = [0, 1, size - 1, size - trailer, size - trailer - 1]
    for cut in [*ends, *(draw.randrange(size) for _ in range(cuts - len(ends)))]:
        yield whole[:cut]
    done = 0
    while done < swaps:
        block = draw.choice([1, 64, 512, 4096])
        one, two = sorted(draw.sample(range(0, size - block + 1, block), 2))
        if whole[one : one + block] != whole[two : two + block]:
            data = bytearray(whole)
            data[one : one + block], data[two : two + block] = whole[two : two + block], whole[one : one + block]
            yield data
            done += 1
    yield whole + other
    yield other + whole
    yield whole + whole
    yield whole + whole[-trailer:]
    yield whole[:-trailer] + other[-trailer:]
    yield whole[-trailer:]
    yield whole + b"\n"


@pytest.mark.torture
@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_2000_flips_500_cuts_and_200_swaps_of_a_real_checkpoint_are_each_refused(
    stopped: Path, tmp_path: Path, name: str
) -> None:
    whole, other = ((stopped / "checkpoints" / which).read_bytes() for which in (name, "last-1.pt"))
    for data in damages(whole, other, 2000, 500, 200):
        refuse(tmp_path / name, data)


@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_flips_cuts_and_swaps_of_a_real_checkpoint_are_each_refused(stopped: Path, tmp_path: Path, name: str) -> None:
    whole, other = ((stopped / "checkpoints" / which).read_bytes() for which in (name, "last-1.pt"))
    for data in damages(whole, other, 100, 30, 20):
        refuse(tmp_path / name, data)


@pytest.mark.parametrize("arguments", [("eval", "ckpt="), (*SMALL, "init=")])
def test_a_damaged_best_checkpoint_given_by_name_is_code_66(
    dltrain: Command, stopped: Path, arguments: tuple[str, ...]
) -> None:
    best = stopped / "checkpoints" / "best.pt"
    harm(best, "flip", random.Random(3))
    result = dltrain(*arguments[:-1], f"{arguments[-1]}{stopped}")
    assert (result.code, result.err.startswith(f"error: {best}: ")) == (66, True)
    assert len(result.err.splitlines()) == 1


# Full disks


def fill_up(dltrain: Command, stopped: Path, undisturbed: Path, size: int) -> None:
    """One case: a run goes on where no file may grow beyond `size`; afterwards there is room again."""
    last = stopped / "checkpoints" / "last.pt"

    def child() -> int:
        with file_limit(size):
            return cli.main(["train", f"resume={stopped}", "limit_steps=null"])

    before = last.read_bytes()
    ended = forked(child)
    assert in_brief(ended), ended
    assert "run/" in ended.err
    assert last.read_bytes() == before
    left = [str(path) for path in stopped.rglob(".*") if path.name not in (".lock", ".hydra")]
    assert left == []
    go_on_undamaged(dltrain, stopped, undisturbed)


@pytest.mark.torture
@pytest.mark.parametrize("part", range(20))
def test_a_full_disk_ends_a_run_in_brief_and_the_old_checkpoint_resumes_20_of_20(
    dltrain: Command, stopped: Path, undisturbed: Path, part: int
) -> None:
    size = (stopped / "checkpoints" / "last.pt").stat().st_size
    fill_up(dltrain, stopped, undisturbed, (size - 1) * part // 19)


@pytest.mark.parametrize("share", mostly_slow([0.0, 0.5], fast=[0.5]))
def test_a_full_disk_ends_a_run_in_brief_and_the_old_checkpoint_resumes(
    dltrain: Command, stopped: Path, undisturbed: Path, share: float
) -> None:
    fill_up(dltrain, stopped, undisturbed, int(share * (stopped / "checkpoints" / "last.pt").stat().st_size))


@pytest.mark.parametrize("keep", [1, 3])
def test_a_save_on_a_full_disk_reports_the_bytes_needed(tmp_path: Path, keep: int) -> None:
    path = filled(tmp_path / "checkpoints", keep)
    before = {name: (path.parent / name).read_bytes() for name in files(path.parent)}
    for limit in range(0, path.stat().st_size, path.stat().st_size // 20 + 1):
        with (
            file_limit(limit),
            pytest.raises(OutputError, match=r"File too large\); [\d,]+ bytes are needed") as caught,
        ):
            checkpoint.save(path, content(9), keep=keep)
        assert (caught.value.exit_code, told(caught.value, path)) == (74, True)
    assert {name: (path.parent / name).read_bytes() for name in files(path.parent)} == before


# Each file of a run: the function that writes it, and which of its calls finds the disk full.
WRITERS = {
    "config.yaml": (atomic_files, "atomic_write", 1),
    "train.log": (run_files._LogFile, "emit", 18),
    "metrics.jsonl": (run_files.Metrics, "write", 2),
    "last.pt": (atomic_files, "atomic_write", 3),
    "best.pt": (atomic_files, "atomic_write", 1),
    "summary.json": (atomic_files, "atomic_write", 1),
}


@pytest.mark.parametrize("name", mostly_slow(WRITERS, fast=["last.pt", "metrics.jsonl"]))
def test_a_disk_that_is_full_for_one_file_is_reported_with_that_file(
    dltrain: Command, tmp_path: Path, undisturbed: Path, name: str
) -> None:
    owner, function, at = WRITERS[name]
    arguments = [*RUN, "keep=3", "checkpoint_every=2", "name=full"]

    def child() -> int:
        with pytest.MonkeyPatch.context() as patch:
            limited(patch, owner, function, at=at, name=name if owner is atomic_files else "")
            return cli.main(arguments)

    ended = forked(child)
    assert in_brief(ended), ended
    folder = next(tmp_path.glob("outputs/*/*"))
    assert name in ended.err.splitlines()[0]
    if name != "config.yaml":  # before that there is nothing to go on with
        go_on_undamaged(dltrain, folder, undisturbed)


def test_a_log_on_a_full_device_ends_the_run_in_brief(
    dltrain: Command, stopped: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stopped / "train.log").unlink()
    (stopped / "train.log").symlink_to("/dev/full")
    monkeypatch.setattr(folders, "refuse_links", lambda folder: None)  # else it would not get that far
    ended = forked(command("train", f"resume={stopped}", "limit_steps=null"))
    assert in_brief(ended), ended
    assert f"{stopped}/train.log: could not be written (No space left on device)" in ended.err
    (stopped / "train.log").unlink()
    go_on_undamaged(dltrain, stopped, undisturbed)


# Folders that may not be written


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody can reach and write in; pytest's own are root's alone."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        Path(name).chmod(0o777)
        patch.chdir(name)
        patch.delenv("DLTRAIN_DATA", raising=False)
        yield Path(name)


@pytest.mark.parametrize(
    "part", mostly_slow(["", "checkpoints", ".hydra", ".lock", "metrics.jsonl", "train.log"], fast=["", "checkpoints"])
)
def test_a_resume_with_a_read_only_folder_or_file_is_code_74(public: Path, at_step_6: Path, part: str) -> None:
    folder = shutil.copytree(at_step_6, public / "run")
    path = folder / part
    path.chmod(0o555 if path.is_dir() else 0o444)
    ended = forked(command("train", f"resume={folder}", "limit_steps=null", before=obey_permissions))
    path.chmod(0o777)
    assert in_brief(ended), ended
    assert steps_of_run(folder) == [6, 4, 2]
    assert re.search(r"run\b.*(Permission denied|could not be)", ended.err)


def steps_of_run(folder: Path) -> list[int]:
    return [checkpoint.load(path)["step"] for path in checkpoint._with_previous(folder / "checkpoints" / "last.pt")]


def test_a_run_that_may_not_create_its_folder_is_code_74(public: Path) -> None:
    public.chmod(0o555)
    ended = forked(command(*RUN, before=obey_permissions))
    public.chmod(0o777)
    assert in_brief(ended), ended


@pytest.mark.parametrize(("save", "keep"), [(1, 3), (2, 1), (5, 3)])
def test_a_folder_that_becomes_read_only_during_a_run_ends_it_with_code_74(public: Path, save: int, keep: int) -> None:
    calls = 0

    def child() -> int:
        obey_permissions()
        real = checkpoint.save

        def closed(path: Path, *arguments: Any, **settings: Any) -> None:
            nonlocal calls
            calls += path.name == "last.pt"
            if calls == save:
                path.parent.chmod(0o555)
            real(path, *arguments, **settings)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint, "save", closed)
            return cli.main([*RUN, f"keep={keep}", "checkpoint_every=2"])

    ended = forked(child)
    checkpoints = next(public.glob("outputs/*/*/checkpoints"))
    checkpoints.chmod(0o777)
    assert in_brief(ended), ended
    assert "checkpoints/last.pt: could not be written (Permission denied)" in ended.err
    assert steps_of_run(checkpoints.parent) == [2 * (save - 2 - number) for number in range(save - 1)][:keep]


# Two writers


def holding(folder: Path) -> Child:
    """A process that resumes a run and stays in it until it is killed; it has the lock once this returns."""
    signs = os.pipe()

    def child() -> int:
        real = checkpoint.load_newest

        def waiting(path: Path) -> Any:
            os.write(signs[1], b".")
            time.sleep(60)
            return real(path)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint, "load_newest", waiting)
            return cli.main(["train", f"resume={folder}", "limit_steps=null"])

    process = Child(child)
    os.close(signs[1])
    assert os.read(signs[0], 1) == b"."
    os.close(signs[0])
    return process


def test_a_second_writer_of_a_run_is_refused_immediately_and_may_resume_once_the_first_is_killed(
    dltrain: Command, stopped: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def waits(seconds: float) -> None:
        raise AssertionError(f"waits {seconds} s for the lock")

    first = holding(stopped)
    try:
        before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
        with monkeypatch.context() as patch:
            patch.setattr(time, "sleep", waits)  # between looks at a lock
            second = dltrain("train", f"resume={stopped}", "limit_steps=null")
        after = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    finally:
        first.kill()
        assert first.wait().code == -9
    assert second.code == 74
    assert second.err.endswith("run: another process is writing here. Wait for it or stop it\n")
    assert len(second.err.splitlines()) == 1
    assert after == before
    go_on_undamaged(dltrain, stopped, undisturbed)


def test_one_of_two_simultaneous_resumes_is_refused(stopped: Path, undisturbed: Path) -> None:
    start, goes_on = os.pipe(), os.pipe()

    def child() -> int:
        real = checkpoint.load_newest
        os.read(start[0], 1)

        def slow(path: Path) -> Any:
            os.read(goes_on[0], 1)  # until the other one has come and ended
            return real(path)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint, "load_newest", slow)
            return cli.main(["train", f"resume={stopped}", "limit_steps=null"])

    both = [Child(child) for _ in range(2)]
    os.write(start[1], b"..")
    while not any(os.waitid(os.P_PID, one.number, os.WEXITED | os.WNOHANG | os.WNOWAIT) for one in both):
        time.sleep(0.01)
    os.write(goes_on[1], b"..")
    ended = sorted((process.wait() for process in both), key=lambda one: one.code)
    for end in (*start, *goes_on):
        os.close(end)
    assert [one.code for one in ended] == [0, 74]
    assert "another process is writing here" in ended[1].err
    assert in_brief(ended[1])
    assert equal(weights(stopped), weights(undisturbed))


def test_a_new_run_holds_the_lock_of_its_folder_until_it_ends(
    dltrain: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refused = ending.finish, []

    def finish(run: Any, output: RunDir, *arguments: Any) -> dict[str, Any]:
        folder = output.folder
        with (
            pytest.raises(OutputError, match="another process is writing here"),
            folders.locked(folder / ".lock", wait=False),
        ):
            pass
        refused.append(folder)
        return real(run, output, *arguments)

    monkeypatch.setattr(ending, "finish", finish)
    assert dltrain(*RUN).code == 0
    with folders.locked(refused[0] / ".lock", wait=False):
        pass


# Whole runs


def end_a_run(dltrain: Command, undisturbed: Path, at: int, fault: Fault) -> None:
    """One point: a run meets a fault at a call, is resumed, and ends as if nothing had been."""

    def child() -> int:
        with at_call(at, fault):
            return cli.main([*RUN, "keep=3", "checkpoint_every=2"])

    shutil.rmtree("outputs", ignore_errors=True)
    ended = forked(child)
    run = next(Path("outputs").glob("*/*"), None)
    if ended.code != 0:  # a fault may strike where it does no harm
        assert ended.code == -9 or in_brief(ended), ended
    if run is not None and (run / "checkpoints" / "last.pt").exists():
        go_on_undamaged(dltrain, run, undisturbed)
        assert not [name for name in files(run / "checkpoints") if name.startswith(".")]
    else:
        assert ended.code != 0


def calls_of_a_run() -> int:
    with at_call() as made:
        assert cli.main([*RUN, "keep=3", "checkpoint_every=2"]) == 0
    return len(made)


@pytest.mark.torture
@pytest.mark.parametrize("fault", [Fault(0, "half"), Fault(errno.ENOSPC), Fault(errno.EIO, "half")], ids=str)
def test_a_run_that_fails_at_each_call_resumes_to_the_same_result(
    dltrain: Command, undisturbed: Path, fault: Fault
) -> None:
    points = range(calls_of_a_run())
    for at in points:
        end_a_run(dltrain, undisturbed, at, fault)
    print(f"{len(points)} points")


@pytest.mark.parametrize("share", mostly_slow([0.3, 0.6, 0.9], fast=[0.6]))
def test_a_run_killed_at_a_call_resumes_to_the_same_result(dltrain: Command, undisturbed: Path, share: float) -> None:
    end_a_run(dltrain, undisturbed, int(share * calls_of_a_run()), Fault(0, "half"))
