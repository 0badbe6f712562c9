"""What a run keeps of its code: what git knows to have changed, the packages, the command and the memory."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from dltrain.runtime import system_info
from support.command import Command
from support.sweeping import sweep_folder

QUICK = ("train", "model=mlp", "model.hidden=[8]", "data.limit=100", "epochs=1", "device.threads=1", "logger=none")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git checkout with one commit, in which code.py has changed and new.py is not tracked."""
    place = tmp_path / "checkout"
    place.mkdir()
    monkeypatch.chdir(place)
    (place / "code.py").write_text("lr = 1\n")
    (place / ".gitignore").write_text("outputs/*\nsecret.env\n")
    name = ("-c", "user.name=n", "-c", "user.email=e@x.invalid")
    for words in (["init", "-q"], ["add", "."], [*name, "commit", "-qm", "first"]):
        subprocess.run(["git", *words], check=True)
    (place / "code.py").write_text("lr = 2\n")
    (place / "new.py").write_text("canary-of-new\n")
    (place / "secret.env").write_text("canary-of-secret\n")
    (place / "outputs").mkdir()
    (place / "outputs" / "ignored").touch()
    return place


def kept(folder: Path) -> str | None:
    folder.mkdir(exist_ok=True, parents=True)
    system_info.keep_code(folder)
    path = folder / "code.diff"
    return path.read_text() if path.exists() else None


def test_the_diff_has_tracked_changes_and_only_names_untracked_files(checkout: Path, tmp_path: Path) -> None:
    text = kept(tmp_path / "run") or ""
    assert "-lr = 1\n+lr = 2\n" in text
    assert "# not tracked by git, and not included: new.py\n" in text
    assert "canary" not in text
    assert "secret.env" not in text
    assert "outputs" not in text
    subprocess.run(["git", "checkout", "-q", "code.py"], check=True)
    subprocess.run(["git", "apply", str(tmp_path / "run" / "code.diff")], check=True)
    assert (checkout / "code.py").read_text() == "lr = 2\n"


def test_a_large_diff_is_cut_off(checkout: Path, tmp_path: Path) -> None:
    (checkout / "code.py").write_text("x" * 3_000_000)
    text = kept(tmp_path / "run") or ""
    assert 1 << 20 < len(text) < (1 << 20) + 200
    assert text.endswith("\n# cut off after 1 MiB\n")


def test_nothing_is_kept_without_changes_outside_a_checkout_or_without_git(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "new.py").unlink()
    subprocess.run(["git", "checkout", "-q", "code.py"], check=True)
    assert kept(tmp_path / "same") is None
    (checkout / "code.py").write_text("lr = 3\n")
    monkeypatch.setenv("PATH", "")
    assert kept(tmp_path / "no git") is None
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert kept(tmp_path / "outside") is None
    assert (tmp_path / "outside" / "packages.txt").exists()


def test_no_program_that_the_checkout_names_is_run(checkout: Path, tmp_path: Path) -> None:
    program = checkout / "program"
    program.write_text("#!/bin/sh\ntouch ran\n")
    program.chmod(0o755)
    for key in ("core.fsmonitor", "diff.external"):
        subprocess.run(["git", "config", key, str(program)], check=True)
    assert "+lr = 2" in (kept(tmp_path / "run") or "")
    assert not (checkout / "ran").exists()


def test_packages_are_those_installed(tmp_path: Path) -> None:
    kept(tmp_path / "run")
    lines = (tmp_path / "run" / "packages.txt").read_text().splitlines()
    assert f"numpy=={version('numpy')}" in lines
    assert f"torch=={version('torch')}" in lines
    assert lines == sorted(lines)


def test_a_run_keeps_its_diff_and_a_resume_replaces_it(dltrain: Command, checkout: Path) -> None:
    folder = dltrain(*QUICK, "limit_steps=1").folder
    assert "+lr = 2" in (folder / "code.diff").read_text()
    subprocess.run(["git", "checkout", "-q", "code.py"], check=True)
    (checkout / "new.py").unlink()
    assert dltrain("train", f"resume={folder}", "limit_steps=null").code == 0
    assert not (folder / "code.diff").exists()


def test_jobs_leave_code_and_packages_to_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert kept(tmp_path / "sweep") is None
    assert (tmp_path / "sweep" / "packages.txt").exists()
    kept(tmp_path / "sweep" / "0_a")
    assert not list((tmp_path / "sweep" / "0_a").iterdir())


def test_a_worker_asks_git_once_for_all_its_jobs(
    dltrain: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "git"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\necho 0123abcd\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    folder = sweep_folder(dltrain(QUICK[0], "-m", *QUICK[1:], "seed=1,2,3", "sweep.workers=1", "device.name=cpu"))
    summaries = [json.loads(path.read_text()) for path in folder.glob("*/summary.json")]
    assert [summary["git"] for summary in summaries] == ["0123abcd"] * 3
    assert sum(" describe " in line for line in (tmp_path / "asked").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/x/bin/dltrain", "train", "name=my run"], "dltrain train 'name=my run'"),
        (["/x/dltrain/__main__.py", "train"], "dltrain train"),
        (["/x/serve.py", "--password=canary"], None),
        ([""], None),
    ],
)
def test_the_command_line_is_kept_unless_it_is_that_of_another_program(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], command: str | None
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    found = system_info.process()
    assert found["command"] == command
    assert 10_000_000 < found["peak_memory"]["host"] < 1 << 40


def test_only_a_run_on_a_gpu_names_the_gpu_though_the_process_has_used_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Tesla")
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda: 5)
    for device, gpu, peak in (("cpu", None, None), ("cuda", "Tesla", 5)):
        assert system_info.environment(device)["hardware"]["gpu"] == gpu
        assert system_info.process(device)["peak_memory"]["gpu"] == peak
