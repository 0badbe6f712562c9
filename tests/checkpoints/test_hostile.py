"""A checkpoint cannot run code, name it or import it, however it is put together and by whichever command it is read.

The whole versions run with `-m torture`; what runs by default are short ones of each.
"""

import contextlib
import copy
import io
import os
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dltrain import cli
from dltrain.checkpoints import archive, checkpoint, pickle_reader
from dltrain.runtime.errors import InputError, UserError
from support.faults import forked
from support.hostile import MARK, SMALL, archives, bare, configs, digested, saved
from support.tiers import mostly_slow

WATCHED = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.", "ctypes.", "pty.spawn")
EVIL = f"import pathlib\npathlib.Path('{MARK}').mkdir()\ndef run(**settings): pathlib.Path('{MARK}').mkdir()\n"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, a picture, and modules that leave a mark where they are imported."""
    folder = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert cli.main([*SMALL, "epochs=2", "limit_steps=4", "log_every=3", "keep=1", "optim=adam"]) == 0
    next(folder.glob("outputs/*/*")).rename(folder / "run")
    Image.new("L", (28, 28)).save(folder / "a.png")
    (folder / "evil.py").write_text(EVIL)
    return folder


LAST = Path("run/checkpoints/last.pt")
ROUTES: dict[str, Callable[[], int]] = {
    "load": lambda: directly(checkpoint.load),
    "load_weights": lambda: directly(checkpoint.load_weights),
    "eval": lambda: cli.main(["eval", f"ckpt={LAST}", "split=test"]),
    "predict": lambda: cli.main(["predict", f"ckpt={LAST}", "input=a.png", "output=a.csv"]),
    "export": lambda: cli.main(["export", f"ckpt={LAST}"]),
    "resume": lambda: cli.main(["train", "resume=run", "limit_steps=5"]),
    "init": lambda: cli.main([*SMALL, f"init={LAST}", "limit_steps=1"]),
}


def directly(read: Callable[[Path], Any]) -> int:
    try:
        read(LAST)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


class Watch:
    """What this process did that reading a checkpoint has no reason to do."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.is_on = False
        sys.addaudithook(self.note)

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_on:
            return
        if event.startswith(WATCHED):
            if event != "subprocess.Popen" or arguments[0] != "git":  # dltrain's own, of the checkout it runs from
                self.seen.append(event)
        elif event == "exec":
            name = arguments[0].co_filename
            if not name.startswith((sys.prefix, sys.base_prefix, "<frozen")) and "/src/dltrain/" not in name:
                self.seen.append(f"exec of {name}")

    @contextlib.contextmanager
    def on(self) -> Iterator[list[str]]:
        self.seen, self.is_on = [], True
        try:
            yield self.seen
        finally:
            self.is_on = False


def refused(folder: Path, route: str, cases: dict[str, bytes], *, codes: tuple[int, ...] = (2, 66)) -> None:
    """Read each file by a route, in one fork: nothing runs, nothing is imported, the answer is a few lines."""
    honest = (folder / LAST).read_bytes()

    def child() -> None:
        os.chdir(folder)
        watch = Watch()
        attempt(route)  # whatever an honest one imports
        for name, data in cases.items():
            LAST.write_bytes(data)
            modules = set(sys.modules)
            with watch.on() as seen:
                code, err = attempt(route)
            foreign = sorted(set(sys.modules) - modules)
            if code not in codes or seen or foreign or Path(MARK).exists() or not in_brief(err, code):
                print(f"{name}: code {code} {seen} {foreign} {Path(MARK).exists()}\n{err[:2000]}")
            if Path(MARK).exists():
                Path(MARK).rmdir()

    ended = forked(child)
    for path in (folder / LAST).parent.glob("*.damaged"):
        path.unlink()
    (folder / LAST).write_bytes(honest)
    assert (ended.code, ended.out, ended.err) == (0, "", "")


def attempt(route: str) -> tuple[int, str]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
        code = ROUTES[route]()
    return code, err.getvalue()


def in_brief(err: str, code: int) -> bool:
    lines = err[err.rfind("error: ") :].splitlines() if code else []
    return len(lines) <= 3 and "Traceback" not in err and (not code or "error: " in err)


def files(folder: Path) -> dict[str, bytes]:
    """Hostile files, each with a right digest and without one."""
    found = archives(MARK, bare((folder / LAST).read_bytes()))
    with_digest = {f"{name}, with its digest": digested(data) for name, data in found.items()}
    return {name: data for pair in zip(found.items(), with_digest.items(), strict=True) for name, data in pair}


def names(folder: Path) -> dict[str, bytes]:
    """Checkpoints whose config names code."""
    content = checkpoint.load(folder / LAST)
    found = {}
    for name, config in configs(content["config"], MARK):
        found[name] = digested(saved(copy.copy(content) | {"config": config}))
    return found


@pytest.mark.torture
@pytest.mark.parametrize("route", ROUTES)
def test_a_hostile_file_runs_nothing_and_is_refused_in_brief(run_folder: Path, route: str) -> None:
    cases = files(run_folder)
    assert len(cases) >= 120
    refused(run_folder, route, cases)


@pytest.mark.torture
@pytest.mark.parametrize("route", ["eval", "predict", "export", "resume"])
def test_a_config_in_a_checkpoint_cannot_choose_code(run_folder: Path, route: str) -> None:
    cases = names(run_folder)
    assert len(cases) >= 60
    refused(run_folder, route, cases)


@pytest.mark.parametrize("route", ["load", "load_weights"])
def test_a_hostile_file_is_refused_when_it_is_read(run_folder: Path, route: str) -> None:
    refused(run_folder, route, files(run_folder))


@pytest.mark.parametrize("route", mostly_slow(["eval", "predict", "export", "resume", "init"], fast=["resume"]))
def test_a_hostile_file_is_refused_by_each_command(run_folder: Path, route: str) -> None:
    cases = files(run_folder)
    refused(run_folder, route, {name: cases[name] for name in list(cases)[::27]})


@pytest.mark.parametrize("route", mostly_slow(["eval", "predict", "export", "resume"], fast=["eval"]))
def test_a_few_configs_cannot_choose_code(run_folder: Path, route: str) -> None:
    cases = names(run_folder)
    refused(run_folder, route, {name: cases[name] for name in list(cases)[::17]})


@pytest.mark.parametrize("route", mostly_slow(["init", "load"], fast=["load"]))
def test_the_config_is_not_read_when_only_weights_are_needed(run_folder: Path, route: str) -> None:
    cases = names(run_folder)
    refused(run_folder, route, {name: cases[name] for name in list(cases)[::50]}, codes=(0, 66))


def test_the_hostile_files_of_this_test_would_run_code(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files themselves do harm to who loads them without care, and the modules are there to be imported."""
    import torch

    monkeypatch.chdir(run_folder)
    cases = archives(MARK, bare(LAST.read_bytes()))
    for name in ("os.system", "pathlib", "STACK_GLOBAL", "INST", "two data.pkl, the honest one first"):
        path = Path("file.pt")
        path.write_bytes(cases[name])
        with contextlib.suppress(Exception):
            torch.load(path, weights_only=False)
        assert Path(MARK).is_dir() or name.startswith("two"), name
        with contextlib.suppress(OSError):
            Path(MARK).rmdir()


def test_an_entry_that_python_would_read_under_another_name_is_refused() -> None:
    """Newer ones take it from an extra field that torch does not know."""
    entry = zipfile.ZipInfo("archive/data/0")
    entry.filename = "archive/data.pkl"
    with pytest.raises(pickle_reader.UnsafePickle, match="two names"):
        archive._entries([entry], 100)


def test_an_entry_marked_as_a_folder_is_refused() -> None:
    """torch reads no bytes of it and takes what the memory held before, for weights or for their names."""
    entry = zipfile.ZipInfo("archive/data.pkl")
    archive._entries([entry], 100)
    entry.external_attr = 0xFFFF
    with pytest.raises(pickle_reader.UnsafePickle, match="folder"):
        archive._entries([entry], 100)


def test_a_config_without_its_groups_is_refused_in_brief(run_folder: Path) -> None:
    content = checkpoint.load(run_folder / LAST)
    for config in ({}, {"a": 1}, content["config"] | {"task": None}):
        path = run_folder / "case.pt"
        path.write_bytes(digested(saved(content | {"config": config})))
        with pytest.raises(InputError, match=r"config\.(data|task) (is missing|must be)"):
            checkpoint.load(path)


def test_weights_that_are_not_finite_are_not_resumed(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run_folder)
    honest = LAST.read_bytes()
    content = checkpoint.load(LAST)
    next(iter(content["model"].values()))[0] = float("nan")
    LAST.write_bytes(digested(saved(content)))
    code = cli.main(["train", "resume=run", "limit_steps=5"])
    LAST.write_bytes(honest)
    assert (code, "cannot be resumed (the loss is not finite" in capsys.readouterr().err) == (66, True)


def test_code_that_is_trusted_is_imported(run_folder: Path) -> None:
    def child() -> int:
        os.chdir(run_folder)
        LAST.write_bytes(names(run_folder)["model.name=evil:run"])
        cli.main(["eval", f"ckpt={LAST}", "trust=evil"])
        return int(Path(MARK).exists())

    honest = (run_folder / LAST).read_bytes()
    ended = forked(child)
    (run_folder / LAST).write_bytes(honest)
    (run_folder / MARK).rmdir()
    assert ended.code == 1
