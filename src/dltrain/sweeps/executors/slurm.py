"""Jobs on Slurm, through sbatch, squeue and scancel; needs no accounting.

Slurm keeps the script of a job, and starts it again itself after a preemption or the loss of a node: every start
continues from the last checkpoint. Names of jobs hold the sweep and the number, so that none is queued twice.
"""

import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dltrain.commands.jobs import INTERRUPTED, JobResult
from dltrain.runtime import atomic_files
from dltrain.runtime.errors import ConfigError, DeviceError
from dltrain.runtime.signals import SIGNALS, SignalInterrupt, signals_as_exceptions
from dltrain.sweeps.executors.remote import LOST, POLL_SECONDS, Engine, JobFiles, places, run_there
from dltrain.sweeps.executors.worker import JobMetrics, Task

SQUEUE_SECONDS = 2.0  # between two questions to the controller, which serves the whole cluster
REQUEUE_SECONDS = 5.0  # a job that has lost its node may be about to be requeued
ENDED = ["BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"]
ENDED += ["REVOKED", "TIMEOUT", "UNKNOWN"]
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT")
HELD = ("launch failed requeued held", "JobHoldMaxRequeue")  # by Slurm, until an administrator releases the job
STOPPED = [f"RaisedSignal:{int(number)}" for number in SIGNALS]  # while Python was still starting
THREADS = "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}"

Row = namedtuple("Row", "name state reason node")  # as squeue lists a job
GONE = Row("", "UNKNOWN", "Slurm has forgotten the job", "")


def _call(*command: str, text: str | None = None) -> tuple[str, str]:
    """Run a command of Slurm's. Returns its output, and its own words on why it failed, empty if it did not."""
    settings: Any = {"capture_output": True, "text": True, "timeout": 60}
    try:  # in a session of its own: Ctrl-C must not cut it short
        process = subprocess.run(command, input=text, check=False, start_new_session=True, **settings)
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", str(error)
    lines = [line.removeprefix(f"{command[0]}: ").removeprefix("error: ") for line in process.stderr.splitlines()]
    return process.stdout, "" if not process.returncode else "; ".join(lines[-2:]) or f"exit code {process.returncode}"


def queue() -> tuple[dict[str, Row], str]:
    """Return this user's jobs by id, those of the last minutes too; and why Slurm did not answer, if so."""
    out, fault = _call("squeue", "--noheader", "--states=all", f"--user={os.getuid()}", "--format=%i|%j|%T|%r|%N")
    lines = (line.split("|") for line in out.splitlines() if line.count("|") == 4)
    return {job: Row(*rest) for job, *rest in lines}, fault


def still_queued(jobs: Collection[str]) -> list[str]:
    """Return the ids of jobs that Slurm runs or has queued, all if it does not answer; none where there is no Slurm."""
    rows, fault = queue() if jobs and shutil.which("squeue") else ({}, "")
    return [job for job in jobs if fault or rows.get(job, GONE).state not in ENDED]


def arguments(options: Mapping[str, Any], threads: int, devices: Collection[str]) -> list[str]:
    """Return the options of sbatch. A GPU is asked for if a job needs one, or may use one and the partition has any."""
    named = {key.removeprefix("slurm_"): value for key, value in options.items()}  # a prefix of earlier versions
    gpus = "cuda" in devices
    if "auto" in devices and not gpus:
        chosen = [f"--partition={named['partition']}"] if "partition" in named else []  # else the one with a star
        rows = _call("sinfo", "--noheader", "--format=%P %G", *chosen)[0].splitlines()
        gpus = any("gpu" in row.partition(" ")[2] for row in rows if chosen or "* " in row)
    wanted = {"requeue": True, "cpus_per_task": threads or 1, "signal": "B:USR2@90"}
    wanted |= {"gpus_per_node": 1} if gpus and not {"gpus", "gres"} & named.keys() else {}
    wanted |= {"time": named.pop("timeout_min", None)} | named
    if wanted["requeue"] is False:  # clusters requeue by default
        wanted["no_requeue"] = True
    texts = {
        key.replace("_", "-"): value
        for key, value in wanted.items()
        if key not in ("setup", "cluster") and value is not None and value is not False
    }
    return [f"--{key}" if value is True else f"--{key}={value}" for key, value in texts.items()]


def require(options: Mapping[str, Any], threads: int, devices: Collection[str]) -> None:
    """Raise DeviceError if there is no Slurm here, ConfigError with Slurm's own reason if it would refuse the jobs."""
    if not shutil.which("sbatch"):
        raise DeviceError("sweep.executor=slurm: there is no sbatch here. Start the sweep on a login node")
    if fault := queue()[1]:
        raise DeviceError(f"sweep.executor=slurm: {fault}")
    wanted = arguments(options, threads, devices)
    # It also refuses while nodes are down, for which a real job, here an empty one, may wait.
    if fault := _call("sbatch", "--test-only", *wanted, text="#!/bin/sh\n")[1]:
        # Not with --hold: Slurm accepts a held job even where no node fits.
        job, fault = _call("sbatch", *wanted, "--parsable", "--output=/dev/null", text="#!/bin/sh\n")
        if job:
            _call("scancel", job.strip().partition(";")[0])
    if fault:
        raise ConfigError(f"sweep.executor=slurm: {fault}\nSubmitted as: sbatch {shlex.join(wanted)}")


@dataclass(kw_only=True)
class Slurm(Engine):
    """Run jobs on Slurm; `options` are those of sbatch, and `setup`, lines for the script before the job."""

    folder: Path
    devices: Collection[str]
    refused: Task | None = None  # Slurm takes no more jobs for now; its id is empty
    new: dict[int, str] = field(default_factory=dict)  # ids that the journal does not have yet
    ending: dict[int, float] = field(default_factory=dict)  # when the end of a job was first seen
    refusal: str = ""
    asked: float = 0.0

    def __post_init__(self) -> None:
        self.arguments = arguments(self.options, self.threads, self.devices)
        self.name = f"dltrain-{hashlib.sha256(str(self.folder.resolve()).encode()).hexdigest()[:8]}-"
        self.count = self.count or 256  # the cluster has its own queue
        rows, fault = queue()
        if fault:
            raise DeviceError(f"sweep.executor=slurm: {fault}")
        self.queued = self._own(rows)  # by an earlier process of this sweep
        self.results = (self.folder / "slurm").absolute()
        self.results.mkdir(exist_ok=True)

    @property
    def free(self) -> int:
        return 0 if self.refused else super().free

    def _own(self, rows: Mapping[str, Row]) -> dict[int, str]:
        own = {job: row.name for job, row in rows.items() if row.name.startswith(self.name) and row.state not in ENDED}
        return {int(name.removeprefix(self.name)): job for job, name in own.items()}

    def start(self, task: Task) -> None:
        self.files.setdefault(task.number, JobFiles(task.log.parent))
        if not (job := self.queued.pop(task.number, "")):
            path = self.results / f"{task.number}.json"
            path.unlink(missing_ok=True)
            content = {"task": asdict(task), "result": path, "cwd": Path.cwd(), "places": places(), "waits": self.waits}
            command = f"exec {shlex.quote(sys.executable)} -m {__name__} <<'END'"
            setup = self.options.get("setup", self.options.get("slurm_setup")) or []
            lines = [THREADS, *([setup] if isinstance(setup, str) else setup), command]
            script = "\n".join(["#!/bin/sh", *lines, json.dumps(content, default=str), "END", ""])
            log = str(task.log).replace("%", "%%")
            own = [f"--job-name={self.name}{task.number}", f"--output={log}", "--open-mode=append", "--parsable"]
            out, self.refusal = _call("sbatch", *self.arguments, *own, text=script)
            job = out.strip().partition(";")[0]
        self.jobs[task.number], self.refused = job, None if job else task
        self.new |= {task.number: job} if job else {}

    def wait(self) -> Iterator[tuple[int, JobMetrics | JobResult | str]]:
        time.sleep(POLL_SECONDS / (5 if self.waits else 1))
        yield from self.new.items()
        self.new.clear()
        is_due = time.monotonic() >= self.asked + SQUEUE_SECONDS
        rows, fault = queue() if is_due else ({}, "")
        yield from self.new_metrics()  # before the results
        if not is_due:
            return
        self.asked = time.monotonic()
        for number, job in [] if fault else [*self.jobs.items()]:
            row = rows.get(job, GONE)
            if row.state in WAITING and row.reason in HELD and not _call("scancel", job)[1]:
                row = row._replace(state="CANCELLED")
            if row.state in WAITING:  # again, perhaps
                self.began.pop(number, None)
                self.ending.pop(number, None)
            elif row.state not in ENDED:
                self.began.setdefault(number, time.monotonic())
                self.ending.pop(number, None)
            elif job and (result := self._result_of(number, row)) is not None:
                for known in (self.jobs, self.began, self.ending):
                    known.pop(number, None)
                yield number, result
        if (task := self.refused) is not None and not fault:
            if self.count:  # else the sweep is stopping
                self.queued[task.number] = self._own(rows).get(task.number, "")  # sbatch may have failed too late
                self.start(task)
            if not any(self.jobs.values()):  # none that could make room
                self.refused = None
                del self.jobs[task.number]
                yield task.number, JobResult(1, f"Slurm refuses the job: {self.refusal}") if self.count else INTERRUPTED

    def _result_of(self, number: int, row: Row) -> JobResult | None:
        """Return the result of a job that has ended; None if it may be requeued, or its result be on its way."""
        try:
            os.scandir(self.results).close()  # makes NFS look again
            result = JobResult(**json.loads((self.results / f"{number}.json").read_bytes()))
        except (OSError, ValueError, TypeError):
            result = None
        if result is not None and not result.interrupted:
            return result
        patience = {"FAILED": 0.0, "CANCELLED": 0.0, "COMPLETED": 60.0}.get(row.state, REQUEUE_SECONDS)  # 60: for NFS
        since = self.ending.setdefault(number, time.monotonic())
        if time.monotonic() < since + patience:
            return None
        if row.state not in ("CANCELLED", "TIMEOUT") and (result or row.reason.partition("(")[0] in STOPPED):
            return INTERRUPTED  # a cancelled job has failed, and one that has used up its time, even if it could save
        return JobResult(137, f"{LOST} (Slurm: {row.state}, {row.reason}{row.node and f' on {row.node}'})")

    def kill(self, number: int) -> None:
        _call("scancel", self.jobs[number])

    def interrupt(self) -> None:
        """Let all jobs save and end; Slurm kills them after its KillWait, usually 30 s."""
        if jobs := list(filter(None, [*self.jobs.values(), *self.queued.values()])):
            _call("scancel", *jobs)
        self.count = 0

    close = interrupt


def main() -> int:
    """Run the task on standard input, as the script of a job asks; write its result, and return its exit code."""
    content = json.load(sys.stdin)
    path, task = Path(content["result"]), content["task"]
    with signals_as_exceptions():
        try:
            path.unlink(missing_ok=True)  # of a start before this one
            task |= {key: Path(task[key]) for key in ("folder", "log") if task[key] is not None}
            result = run_there(content["cwd"], content["places"], Task(**task), content["waits"])
        except SignalInterrupt:  # before the job could begin
            result = INTERRUPTED
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        atomic_files.atomic_write(path, json.dumps(asdict(result)).encode())
    return result.code


if __name__ == "__main__":
    sys.exit(main())
