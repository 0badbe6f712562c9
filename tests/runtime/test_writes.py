"""Whatever is typed or stands in a checkpoint: files are written in the folder of the run alone.

The whole version runs with `-m torture`; what runs by default is a short one.
"""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dltrain import cli
from dltrain.checkpoints import checkpoint
from support.faults import forked
from support.hostile import SMALL
from support.tiers import mostly_slow

QUICK = (*SMALL, "epochs=1", "limit_steps=2", "keep=1")
TEXTS = [
    "../escaped",
    "../../escaped",
    "..",
    ".",
    "/",
    "~",
    "~/escaped",
    "a/b",
    "a/../../escaped",
    "a\\..\\..\\escaped",
]
TEXTS += ["{outside}/escaped", "file://{outside}/escaped", "link", "link/escaped", "link/../escaped"]
TEXTS += [
    "a\0b",
    "../\0",
    "x" * 5000,
    "\n../escaped",
    "-rf",
    "$(touch ../escaped)",
    "${oc.env:OUTSIDE}/escaped",
    "\u202e../escaped",
]
TYPED = ["name", "init", "resume", "data.name", "model.name", "experiment", "task.name"]
TYPED += ["hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.output_subdir", "hydra.job.name"]
STORED = ["name", "resume", "init", "data.root", "data.name", "hydra.run.dir", "logger.dir", "trust"]
CREATING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Audit events of calls that change the file system, and which of their arguments are paths.
CHANGES = {"os.mkdir": (0,), "os.rename": (0, 1), "os.remove": (0,), "os.rmdir": (0,), "os.link": (0, 1)}
CHANGES |= {"os.symlink": (1,), "os.truncate": (0,), "os.chmod": (0,), "os.chown": (0,), "shutil.rmtree": (0,)}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to start in, with a run in it, and a link to a folder outside."""
    outside, folder = tmp_path / "outside", tmp_path / "work" / "here"
    for path in (outside, folder):
        path.mkdir(parents=True)
    (folder / "link").symlink_to(outside)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(outside))
    monkeypatch.setenv("OUTSIDE", str(outside))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert cli.main([*QUICK]) == 0
    next(folder.glob("outputs/*/*")).rename(folder / "outputs" / "run")
    return folder


class Writes:
    """Paths outside `allowed` at which this process changed the file system."""

    def __init__(self, allowed: Path) -> None:
        self.allowed, self.outside = str(allowed.resolve()), list[str]()
        sys.addaudithook(self.note)

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = any(letter in (mode or "") for letter in "wxa+") or (flags or 0) & CREATING
            self.check([path] if writes else [])
        elif event in CHANGES and not (event == "os.mkdir" and os.path.isdir(arguments[0])):  # noqa: PTH112 - it fails
            self.check([arguments[index] for index in CHANGES[event]])

    def check(self, paths: list[Any]) -> None:
        for path in paths:
            if isinstance(path, str | bytes | os.PathLike):
                name = os.path.realpath(os.fsdecode(path))
                if not f"{name}/".startswith(f"{self.allowed}/") and name != os.devnull:
                    self.outside.append(name)


def cases(folder: Path) -> Iterator[tuple[str, Callable[[], int]]]:
    """Ways to name a place outside; each is a command line, or a checkpoint that is resumed or evaluated."""
    texts = [text.replace("{outside}", str(folder.parent.parent / "outside")) for text in TEXTS]
    for text in texts:
        for key in TYPED:
            yield f"typed {key}={text[:60]!r}", lambda key=key, text=text: cli.main([*QUICK, f"{key}={text}"])
        for key in ("name", "hydra.sweep.dir"):
            words = [*QUICK, "-m", f"{key}={text}"]
            yield f"swept {key}={text[:60]!r}", lambda words=words: cli.main(words)
        for key in STORED:
            yield f"resumed {key}={text[:60]!r}", lambda key=key, text=text: stored(key, text, "resume")
            yield f"evaluated {key}={text[:60]!r}", lambda key=key, text=text: stored(key, text, "eval")
            yield f"exported {key}={text[:60]!r}", lambda key=key, text=text: stored(key, text, "export")


def stored(key: str, text: str, command: str) -> int:
    """Resume, evaluate or export a copy of the run whose stored config has another value, on data that is not there."""
    run = Path("outputs/run")
    path = run / "checkpoints" / "last.pt"
    before = {each: each.read_bytes() for each in run.rglob("*") if each.is_file()}
    content = checkpoint.load(path)
    if key == "data.root":
        content["config"]["data"] = {"name": "mnist", **dict.fromkeys(("val", "limit", "mean", "std"), None)}
        content["config"]["data"] |= {"val": 0.1, "flip": False, "crop": 0}
    node = content["config"]
    *parents, last = key.split(".")
    for parent in parents:
        node = node.setdefault(parent, {})
    node[last] = [text] if key == "trust" else text
    content["digests"]["config"] = {}  # whoever changes a config can change them too
    checkpoint.save(path, content)
    argv = {
        "resume": ["train", f"resume={run}", "limit_steps=3"],
        "eval": ["eval", f"ckpt={path}"],
        "export": ["export", f"ckpt={path}", f"output={run}/model.onnx"],
    }[command]
    try:
        return cli.main(argv)
    finally:
        for each, data in before.items():
            each.write_bytes(data)


def assert_inside(folder: Path, chosen: list[tuple[str, Callable[[], int]]]) -> None:
    """Act each case out in one fork; nothing is written outside outputs/, and no error is a traceback."""

    def child() -> None:
        writes = Writes(folder / "outputs")
        for name, act in chosen:
            writes.outside = []
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
                code = act()
            told = err.getvalue()
            brief = "Traceback" not in told and len(told[told.rfind("error: ") :].splitlines()) <= 3
            if writes.outside or code not in (0, 1, 2, 66, 74) or not brief:
                print(f"{name}: code {code}, {writes.outside[:3]}\n{told[-1500:]}")

    ended = forked(child)
    print(ended.out, ended.err)
    assert (ended.code, ended.out, ended.err) == (0, "", "")
    assert list((folder.parent.parent / "outside").iterdir()) == []
    assert sorted(path.name for path in folder.iterdir()) == ["link", "outputs"]
    assert [path.name for path in folder.parent.iterdir()] == ["here"]


@pytest.mark.torture
def test_no_command_writes_outside_its_folder(here: Path) -> None:
    every = list(cases(here))
    assert len(every) >= 200
    assert_inside(here, every)


@pytest.mark.parametrize("every", mostly_slow([13, 219], fast=[219]))
def test_some_commands_write_nothing_outside_their_folder(here: Path, every: int) -> None:
    assert_inside(here, list(cases(here))[::every])


LINKED = (".lock", "train.log", "metrics.jsonl", "summary.json", ".hydra", "checkpoints", "checkpoints/last.pt")
LINKED += ("tensorboard", "metrics.csv", "mlflow_run_id", "wandb_run_id")


@pytest.mark.parametrize("name", mostly_slow(LINKED, fast=["checkpoints/last.pt"]))
def test_a_run_folder_with_a_link_inside_is_not_resumed(
    here: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path, target = here / "outputs" / "run" / name, here.parent.parent / "outside" / "target"
    path.rename(target) if path.exists() else target.touch()
    path.symlink_to(target)
    before = {each: each.read_bytes() for each in target.parent.rglob("*") if each.is_file()}
    assert cli.main(["train", "resume=outputs/run", "limit_steps=3"]) == 66
    assert f"run/{name}: is a link" in capsys.readouterr().err
    assert before == {each: each.read_bytes() for each in target.parent.rglob("*") if each.is_file()}


@pytest.mark.parametrize(
    "name", mostly_slow([".lock", "train.log", "metrics.jsonl", ".hydra/config.yaml"], fast=["metrics.jsonl"])
)
def test_a_run_folder_with_a_pipe_inside_is_not_resumed(here: Path, name: str) -> None:
    path = here / "outputs" / "run" / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    assert cli.main(["train", "resume=outputs/run", "limit_steps=3"]) == 66


def test_a_run_folder_reached_through_a_link_is_resumed(here: Path) -> None:
    (here / "mine").symlink_to(here / "outputs" / "run")
    assert cli.main(["train", "resume=mine", "limit_steps=3"]) == 0


def test_nothing_is_downloaded_into_a_folder_named_by_a_checkpoint(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("resume", "eval"):
        assert stored("data.root", str(here / "elsewhere"), command) == 66
        told = capsys.readouterr().err
        assert "is only read" in told
        assert f"add data.root={here / 'elsewhere'}" in told
    assert not (here / "elsewhere").exists()


def test_the_write_check_detects_a_write_outside(here: Path) -> None:
    def write() -> int:
        (here.parent / "escaped").touch()
        return 0

    with pytest.raises(AssertionError, match="escaped"):
        assert_inside(here, [("a file", write)])
