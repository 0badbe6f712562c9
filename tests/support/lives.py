"""Processes that run a command line, forked from a server that has imported everything and computed nothing.

A process starts in milliseconds, so hundreds can be killed within minutes. Run as a script, this file is the server:
it reads a line of JSON for each process to start or to wait for, and answers with a number.
"""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

DROPPED = ("examples_per_second",)  # keys that depend on the clock


class Life(NamedTuple):
    """A process that runs a command line in `folder` and prints into `log`."""

    pid: int
    folder: Path
    log: Path


class Nursery:
    """Starts processes through the server and waits for them."""

    def __init__(self, server: "subprocess.Popen[str]") -> None:
        self.server = server

    def start(
        self,
        folder: Path,
        *argv: str,
        at: float = 0.0,
        environment: dict[str, str] | None = None,
        log: str = "life.log",
    ) -> Life:
        """Start a process, which waits until the time `at` if that is in the future."""
        path = folder / log
        question = {"argv": argv, "folder": str(folder), "log": str(path), "at": at, "environment": environment or {}}
        return Life(self._ask(question), folder, path)

    def wait(self, life: Life) -> int:
        """Return the exit code of a process, or -N if signal N killed it."""
        return self._ask({"wait": life.pid})

    def run(self, folder: Path, *argv: str) -> int:
        return self.wait(self.start(folder, *argv))

    def has_ended(self, life: Life) -> bool:
        return bool(self._ask({"ended": life.pid}))

    def _ask(self, question: dict[str, Any]) -> int:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        print(json.dumps(question), file=self.server.stdin, flush=True)
        return int(self.server.stdout.readline())


@contextlib.contextmanager
def nursery() -> Iterator[Nursery]:
    """Yield a server that is ready; its processes compute on one thread."""
    environment = {key: value for key, value in os.environ.items() if key not in ("DLTRAIN_DATA", "DLTRAIN_TRACEBACK")}
    with subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment | {"OMP_NUM_THREADS": "1"},
    ) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        server.stdout.readline()  # printed once everything is imported
        yield Nursery(server)
        server.kill()  # to shut down takes it seconds


def run_folder(folder: Path) -> Path | None:
    """Return the newest run folder below outputs/ that can be resumed, or None."""
    checkpoints = sorted(folder.glob("outputs/*/*/checkpoints/last*.pt"), key=lambda path: path.stat().st_mtime_ns)
    return checkpoints[-1].parent.parent if checkpoints else None


def next_words(folder: Path, arguments: tuple[str, ...]) -> tuple[str, ...]:
    """Return the arguments that resume the newest run of a folder; the given ones if there is none."""
    run = run_folder(folder)
    return arguments if run is None else ("train", f"resume={run}")


def finish(lives: Nursery, folder: Path, arguments: tuple[str, ...]) -> None:
    """Resume or start a run, and assert that it ends with exit code 0."""
    code = lives.run(folder, *next_words(folder, arguments))
    assert code == 0, (folder / "life.log").read_text()[-2000:]


def outcome(folder: Path) -> dict[str, Any]:
    """Return what must be equal in two runs: weights, best metrics and records, without times."""
    import torch

    run = run_folder(folder)
    assert run is not None
    kept: dict[str, Any] = {}
    for name in ("last.pt", "best.pt"):
        content = torch.load(run / "checkpoints" / name, weights_only=True)
        digest = hashlib.sha256()
        for key, tensor in sorted(content["model"].items()):
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
        kept[name] = digest.hexdigest()
    summary = json.loads((run / "summary.json").read_text())
    for key in ("status", "test", "val", "best", "steps"):
        value = summary[key]
        kept[key] = {k: v for k, v in value.items() if k not in DROPPED} if isinstance(value, dict) else value
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept["records"] = [{key: value for key, value in line.items() if key not in DROPPED} for line in lines]
    return kept


def _serve() -> None:
    import torch
    import torch._dynamo

    import dltrain.commands.prediction
    import dltrain.config.composition
    import dltrain.training.run  # noqa: F401
    from dltrain import cli

    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        if "argv" in question:
            answer = os.fork() or _live(cli.main, question)
        elif "wait" in question:
            answer = os.waitstatus_to_exitcode(os.waitpid(question["wait"], 0)[1])
        else:  # without reaping it: signals can be sent to it until it is waited for
            answer = int(os.waitid(os.P_PID, question["ended"], os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None)
        print(answer, flush=True)


def _live(main: Any, question: dict[str, Any]) -> int:
    os.chdir(question["folder"])
    os.environ.update(question["environment"])
    log = os.open(question["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = 1
    time.sleep(max(0.0, question["at"] - time.time()))
    try:
        code = main(question["argv"])
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    _serve()
