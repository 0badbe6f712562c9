"""Exit codes are the same whatever standard output and standard error are: full, closed, or read by nobody."""

import contextlib
import logging
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dltrain import cli
from dltrain.report import console
from support.command import Trained

RUN = "model=linear epochs=1 data.limit=40 limit_steps=1 device.threads=1 report=false logger=none"
COMMANDS = {  # with their exit codes
    "list": 0,
    "--help": 0,
    "train --help": 0,
    "train --explain optim.lr": 0,
    "train --summary model=linear": 0,
    "doctor": 0,
    f"train --json=lines {RUN}": 0,
    f"train {RUN}": 0,
    f"train -m seed=1 {RUN}": 0,
    "eval ckpt=run": 0,
    "eval ckpt=run --json": 0,
    "inspect run": 0,
    "report run": 0,
    "predict ckpt=run input=nowhere": 66,
    "train model=nope": 2,
    "trian": 2,
    "eval ckpt=nowhere": 66,
    "train device=cuda": 69,
}
QUICK = ["list", "train --summary model=linear", "eval ckpt=run", "train model=nope", "eval ckpt=nowhere"]
CASES = [(command, "") for command in COMMANDS] + [(command, "1") for command in QUICK]
FULL = 74
# How the shell starts the command, and the exit code of one that succeeds.
STREAMS = {
    "stdout is full": ("{} >/dev/full 2>err", FULL),
    "stderr is full": ("{} >out 2>/dev/full", 0),
    "both are full": ("{} >/dev/full 2>/dev/full", FULL),
    "both are closed": ("{} >&- 2>&-", 0),
    "nobody reads": ("({}; echo $? >code) 2>&1 | true; exit $(cat code)", 0),
}


@pytest.fixture(autouse=True)
def _no_gpu_and_no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("DLTRAIN_DATA", raising=False)


@pytest.fixture
def run(trained: Trained) -> Path:
    return trained("model=linear", "epochs=1", "data.limit=50").rename("run")


@pytest.mark.slow
@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("streams", STREAMS)
@pytest.mark.parametrize(("command", "unbuffered"), CASES)
def test_an_exit_code_holds_whatever_the_streams_are(command: str, streams: str, unbuffered: str) -> None:
    shell, ended = STREAMS[streams]
    line = shell.format(shlex.join([sys.executable, "-m", "dltrain", *command.split()]))
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    found = subprocess.run(["sh", "-c", line], check=False, env=environment, stdin=subprocess.DEVNULL)
    assert found.returncode == (COMMANDS[command] or ended)
    if Path("err").exists() and Path("err").stat().st_size:
        assert "Traceback" not in Path("err").read_text()


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("command", QUICK)
def test_an_exit_code_holds_when_both_streams_are_full(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setattr(sys, "argv", ["dltrain", *command.split()])
    for name in ("stdout", "stderr"):
        stream = open("/dev/full", "w", encoding="utf-8")  # noqa: PTH123, SIM115
        monkeypatch.setattr(sys, name, stream)
        monkeypatch.setattr(sys, f"__{name}__", stream)
    with pytest.raises(SystemExit) as stop:
        cli.console()
    sys.stdout.close()
    sys.stderr.close()
    assert stop.value.code == (COMMANDS[command] or FULL)


def test_a_full_stream_of_a_program_is_an_error_of_output_without_a_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open("/dev/full", "w", encoding="utf-8", buffering=1) as full:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.main(["--version"]) == FULL
        with contextlib.suppress(OSError):
            full.close()
    assert capsys.readouterr().err.startswith("error: standard output, or a file: could not be written (No space")


def test_lines_of_the_log_that_cannot_be_written_are_lost_without_a_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("dltrain")
    monkeypatch.setattr(logger, "handlers", [])
    with open("/dev/full", "w", encoding="utf-8") as full:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", full)
        console.start_logging()
        logger.info("lost")
        with contextlib.suppress(OSError):
            full.close()
    assert capsys.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize("stream", ["2>/dev/full", ">/dev/full", ">&- 2>&-"])
def test_a_signal_ends_a_run_with_its_code_whatever_the_streams_are(tmp_path: Path, stream: str) -> None:
    words = "train model=linear epochs=1000000 device.threads=1 report=false logger=none log_every=1000"
    line = f"exec {shlex.join([sys.executable, '-m', 'dltrain', *words.split()])} {stream}"
    with subprocess.Popen(["sh", "-c", line], cwd=tmp_path, stdin=subprocess.DEVNULL) as process:
        while not list(tmp_path.glob("outputs/*/*/checkpoints/last.pt")):
            assert process.poll() is None
        process.terminate()
        assert process.wait(60) == 143
