"""The command `dltrain`: subcommands, jobs, exit codes.

torch is imported when a job starts, not before: help, lists, completion and mistakes answer at once.
"""

import contextlib
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dltrain import __version__, schema
from dltrain.errors import ConfigError, OutputError, UserError, cleaned, printable, refused_by_system
from dltrain.stopping import Stop, raised_signals, stop_behind

if TYPE_CHECKING:
    from collections.abc import Callable

    from dltrain.composition import Composed

USAGE = f"""dltrain {__version__}: trains networks from configuration files

  dltrain train                                         train on the embedded digits
  dltrain train model=mlp data=mnist optim.lr=0.01      choose options and keys
  dltrain train -m model=mlp,lenet 'seed=range(3)'      a sweep: every combination
  dltrain train resume=outputs/DATE/TIME                continue a run
  dltrain eval ckpt=outputs/DATE/TIME                   figures of a run's best checkpoint
  dltrain predict ckpt=outputs/DATE/TIME input=a.png    classes of pictures
  dltrain inspect outputs/DATE/TIME                     what is inside a checkpoint, without running any of it
  dltrain list                                          every option with one line

  dltrain train --help                                  groups, keys and values of a subcommand
  eval "$(dltrain -sc install=bash)"                    completion (zsh alike; fish: install=fish | source)
"""
COMMANDS = (*schema.COMMANDS, "inspect", "list")


def console() -> None:
    """Entry point of the console script."""
    code = 0
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # that is a reader, such as `head`, who has seen enough
            code = _tell(OutputError(f"standard output: could not be written ({error.strerror})"))
    sys.exit(code)


def main(argv: list[str]) -> int:
    """Run a command line and return its exit code; never raises for a user's mistake."""
    try:
        with raised_signals():
            return _dispatch(argv or ["--help"])
    except UserError as error:
        return _tell(error)
    except OSError as error:  # a path that the system takes for no name, a disk that fails
        if error.filename is None:
            raise
        return _tell(refused_by_system(error))
    except KeyboardInterrupt as stop:
        return _tell_stopped(stop)


def _dispatch(argv: list[str]) -> int:
    command, *rest = argv
    if command in schema.COMMANDS:
        return _run(command, rest)
    if command in ("-sc", "--shell-completion"):
        return _complete(argv)
    if command == "list":
        return _list(rest)
    if command == "inspect":
        return _inspect(rest)
    if command in ("-h", "--help", "help"):
        print(USAGE, end="")
    elif command == "--version":
        print(__version__)
    else:
        raise ConfigError(f"{command}: no such command{schema.suggest(command, COMMANDS)}")
    return 0


def _tell(error: UserError) -> int:
    if stop := stop_behind(error):
        return _tell_stopped(stop)
    if os.environ.get("DLTRAIN_TRACEBACK"):
        traceback.print_exception(error)
    else:
        print(f"error: {cleaned(str(error))}", file=sys.stderr)
    return error.exit_code


def _tell_stopped(stop: KeyboardInterrupt) -> int:
    print(stop if isinstance(stop, Stop) else "stopped", file=sys.stderr)
    return stop.exit_code if isinstance(stop, Stop) else 130


def _list(arguments: list[str]) -> int:
    from dltrain import listing
    from dltrain.composition import config_folder

    if arguments:
        raise ConfigError(f"list takes no arguments. Received {' '.join(arguments)}")
    print("\n".join(listing.lines(config_folder())))
    return 0


def _inspect(arguments: list[str]) -> int:
    from dltrain import inspection

    for line in inspection.lines(inspection.checked_path(arguments)):
        print(printable(line))
    return 0


def _complete(argv: list[str]) -> int:
    from dltrain import completion, composition

    def hydra(command: str, arguments: list[str]) -> int:
        try:
            return composition.run(command, arguments, lambda _: None)
        except composition.REFUSED:  # a half-typed line need not compose
            return 2

    shell = next((word.partition("=")[2] for word in argv if word.startswith("query=")), None)
    if shell is None:  # install or uninstall
        return hydra("train", argv)
    words = completion.candidates(os.environ.get("COMP_LINE", ""), shell, COMMANDS, hydra)
    print(("\n" if shell == "fish" else " ").join(words))
    return 0


def _run(command: str, argv: list[str]) -> int:
    """Run a subcommand: one job, or with -m a sweep, where a failed job does not stop the others."""
    if {"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(argv):
        return _sweep(command, argv)
    codes: list[int] = []
    code = _compose(command, argv, lambda composed: codes.append(_job(command, composed, None)[0]))
    return codes[0] if codes else code


def _compose(command: str, argv: list[str], job: "Callable[[Composed], None]") -> int:
    """Run a job for each config of a command line. Raises ConfigError with all its faults where there is one."""
    from dltrain import composition

    try:
        return composition.run(command, argv, job)
    except composition.REFUSED as error:
        from dltrain import diagnosis

        raise diagnosis.explain(command, argv, error) from error


def _sweep(command: str, argv: list[str]) -> int:
    """All jobs of a sweep, a row for each in its folder's results.csv, and the ranked table at the end."""
    from dltrain import folders
    from dltrain.sweeps.table import Results, figures

    results = Results(folders.dated("sweeps"))

    def job(composed: "Composed") -> None:
        began = time.perf_counter()
        label = folders.safe_name(",".join(composed.overrides))
        folder = folders.new_folder(results.folder, f"{composed.number}_{label}") if command == "train" else None
        print(f"[job {composed.number}] {' '.join(composed.overrides)}", flush=True)
        code, outcome = _job(command, composed, folder)
        if folder is not None:
            _remove_if_empty(folder)  # refused before it began
        summary = outcome if isinstance(outcome, dict) else {}
        status = summary.get("status", "done") if not code else f"failed ({code}): {str(outcome).splitlines()[0]}"
        results.add(
            job=composed.number,
            overrides=composed.overrides,
            status=status,
            seconds=time.perf_counter() - began,
            folder=folder if folder and folder.exists() else None,
            figures=figures(command, summary),
        )
        if code in (130, 143):  # the person wants the sweep to stop, not only this job
            raise SystemExit(code)

    try:
        code = _compose(command, [*argv, f"hydra.sweep.dir='{results.folder}'"], job)
    finally:
        (results.folder / "multirun.yaml").unlink(missing_ok=True)  # Hydra's own; each job has its whole config
        _remove_if_empty(results.folder)  # refused before the first job
    if not results.rows and not code:
        raise ConfigError(f"{' '.join(argv)}: sweeps over nothing")
    if results.rows:
        from dltrain.console import show_table

        show_table(results.table())
        print(f"table: {results.folder / 'results.csv'}")
    return code or int(results.failed > 0)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _job(command: str, composed: "Composed", folder: Path | None) -> tuple[int, Any]:
    """Exit code of one job, and its summary, or the error that ended it."""
    try:
        return 0, _execute(command, composed, folder)
    except UserError as error:
        return _tell(error), error
    except KeyboardInterrupt as stop:
        return _tell_stopped(stop), "stopped"
    except Exception as error:  # a fault of ours, or of a user's own code: say all there is to know
        if isinstance(error, OSError) and error.filename is not None:
            return _tell(refused_by_system(error)), error
        if behind := stop_behind(error):
            return _tell_stopped(behind), "stopped"
        traceback.print_exc()
        return 1, f"{type(error).__name__}: {error}"


def _execute(command: str, composed: "Composed", folder: Path | None) -> Any:
    from dltrain.composition import resolve
    from dltrain.console import start_logging

    start_logging()
    if command == "train":
        from dltrain.run import train

        return train(composed.config, folder=folder, typed=composed.typed, resolve=resolve, origin=composed.origin)
    schema.require(schema.check(resolve(composed.config), command, composed.origin))
    if command == "eval":
        from dltrain.evaluation import evaluate_checkpoint

        result = evaluate_checkpoint(resolve(composed.config), typed=composed.typed, resolve=resolve)
        return {result["split"]: {key: value for key, value in result.items() if key in ("loss", "accuracy")}}
    from dltrain.prediction import predict

    predict(resolve(composed.config), typed=composed.typed, resolve=resolve)
    return {}
