"""`dltrain.sweep`, in another process: workers are forked, which fails in a program with threads or a GPU in use."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dltrain.commands.from_python import Result
from dltrain.runtime.errors import Interrupted, UserError
from dltrain.runtime.signals import SIGNALS
from dltrain.sweeps import journal, results

MARK = "table: "  # begins the line with the path of results.csv


def sweep(overrides: Sequence[str]) -> Result:
    """Train with every combination of overrides such as "optim.lr=0.1,0.3"; return the `folder` and the `jobs`.

    A job has the columns of results.csv; a failed one says so in its `status`. Raises UserError.
    """
    command = [sys.executable, "-m", "dltrain", "train", "-m", *overrides]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, encoding="utf-8")
    lines: list[str] = []
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.strip())
            if not line.startswith("error: "):  # raised below
                print(line, end="", flush=True)
    text, code = "\n".join(lines), process.returncode
    folder = next((Path(line.removeprefix(MARK)).parent for line in lines if line.startswith(MARK)), None)
    if code in SIGNALS.values():
        raise Interrupted(lines[-1] if lines else "stopped", code)
    if code and (code != 1 or folder is None):
        kinds = {kind.exit_code: kind for kind in UserError.__subclasses__() if "exit_code" in vars(kind)}
        raise kinds.get(code, UserError)(text.rpartition("error: ")[2] or f"ended with exit code {code}")
    entries = journal.read(folder) if folder is not None else []  # none with sweep.dry
    jobs = [results.row(each) | {"folder": str(folder / each.folder)} for each in entries if folder and each.outcome]
    return Result(folder=str(folder or ""), jobs=jobs)
