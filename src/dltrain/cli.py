"""The command `dltrain`: subcommands and exit codes.

torch is imported when a job starts, not before, so that help, lists, completion and error messages appear at once.
"""

import contextlib
import io
import os
import sys
import traceback
from typing import TYPE_CHECKING, Any

from dltrain import __version__
from dltrain.commands import run_names, usage
from dltrain.config import registry, suggestions, validation
from dltrain.runtime import startup, terminal, torchrun
from dltrain.runtime.errors import TRACEBACK, ConfigError, Interrupted, OutputError, located, printable, sanitized
from dltrain.runtime.signals import Shown, as_user_error, exit_code, signals_as_exceptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dltrain.config.composition import Composed

COMMANDS = tuple(usage.COMMANDS)
HELP = {"-h", "--help"}


def console() -> None:
    """Run the command line of the console script, and exit with its code."""
    terminal.make_streams_last()
    code = main(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if not code and (failure := getattr(sys.stdout, "failure", None)):
        code = _report_error(OutputError(f"standard output: could not be written ({failure.strerror})"))
        sys.stderr.flush()
    sys.exit(code)


def main(argv: list[str]) -> int:
    """Run a command line and return its exit code; never raises for a user's mistake."""
    try:
        with signals_as_exceptions(), torchrun.rank_zero_stdout((argv or ["--help"])[0]) as takes_part:
            return _dispatch(argv or ["--help"]) if takes_part else 0
    except (Exception, KeyboardInterrupt) as error:
        if (user_error := as_user_error(error)) is None:
            raise
        return _report_error(user_error)


def _dispatch(argv: list[str]) -> int:
    command, *rest = argv
    if command == "help" and rest:
        return _dispatch([*rest, "--help"])
    if command in run_names.BARE and not HELP & set(rest):
        command, rest = run_names.expand(command, rest)
    if command in COMMANDS and HELP & set(rest):
        from dltrain.commands import help_pages

        others = [argument for argument in rest if argument not in HELP]
        print(help_pages.page(command, _preview(command, others) if command in registry.COMMANDS else None))
    elif command in registry.COMMANDS:
        explained, arguments = usage.split_explain(rest)
        if not explained:
            return _run(command, arguments)
        _explain(command, arguments, explained)
    elif command in ("-sc", "--shell-completion"):
        return _complete(argv)
    elif command == "list":
        from dltrain.commands import listing

        print(listing.text(rest, registry.config_folder()))
    elif command == "doctor":
        startup.import_torch()
        from dltrain.commands import doctor

        print(doctor.text(rest))
    elif command == "inspect":
        from dltrain.commands import inspection

        for line in inspection.lines(inspection.checked_path(rest)):
            print(printable(line))
    elif command == "report":
        from dltrain.sweeps import comparison

        comparison.report(rest)
    elif command == "runs":
        from dltrain.sweeps import run_list

        run_list.list_runs(rest)
    elif command in (*HELP, "help"):
        from dltrain.commands import help_pages

        print(help_pages.overview())
    elif command == "--version":
        print(__version__)
    else:
        raise ConfigError(f"{command}: no such command{suggestions.of_command(argv, COMMANDS)}")
    return 0


def _report_error(error: Shown) -> int:
    """Print an error, or the signal that stopped the process; return the exit code."""
    if torchrun.should_report(error):
        if isinstance(error, KeyboardInterrupt | Interrupted):
            print("stopped" if type(error) is KeyboardInterrupt else sanitized(str(error)), file=sys.stderr)
        elif os.environ.get(TRACEBACK):
            traceback.print_exception(error)
        else:
            print(f"error: {sanitized(located(str(error), error))}", file=sys.stderr)
    return exit_code(error)


def _explain(command: str, arguments: list[str], keys: list[str]) -> None:
    from dltrain.commands import explanation

    composed = _preview(command, arguments)
    explanations = [list(explanation.lines(command, composed, key)) for key in keys]
    print("\n\n".join("\n".join(map(printable, lines)) for lines in explanations))


def _preview(command: str, arguments: list[str]) -> "Composed":
    """Compose a command line; of a sweep, only the first job. Raises ConfigError with all its mistakes."""
    from dltrain.config import composition

    with _diagnosed(command, arguments):
        return composition.preview(command, arguments)


@contextlib.contextmanager
def _diagnosed(command: str, arguments: list[str]) -> "Iterator[None]":
    """Turn an error of Hydra into a ConfigError with all mistakes of the command line."""
    from dltrain.config import composition

    try:
        yield
    except composition.COMPOSE_ERRORS as error:
        from dltrain.config import diagnostics

        raise diagnostics.explain(command, arguments, error) from error


def _complete(argv: list[str]) -> int:
    from dltrain.commands import completion

    def hydra(command: str, arguments: list[str]) -> int:
        from dltrain.config import composition

        try:
            composed = composition.run(command, arguments)
            return composed if isinstance(composed, int) else 0
        except composition.COMPOSE_ERRORS:  # a half-typed line need not compose
            return 2

    shell = next((flag.partition("=")[2] for flag in argv if flag.startswith("query=")), None)
    if shell is None:  # install or uninstall
        script = io.StringIO()
        with contextlib.redirect_stdout(script):
            code = hydra("train", argv)
        print(completion.in_order(script.getvalue()), end="")
        return code
    candidates = completion.candidates(os.environ.get("COMP_LINE", ""), shell, hydra)
    print(("\n" if shell == "fish" else " ").join(candidates))
    return 0


def _run(command: str, argv: list[str]) -> int:
    """Run a job, or with -m a sweep; return the exit code. With --json only the job's document goes to stdout."""
    instead = next((flag for flag in ("--summary", "--show-batch") if command == "train" and flag in argv), "")
    as_lines = "--json=lines" in argv and command == "train" and not instead
    as_json = as_lines or ("--json" in argv and command != "export")
    flag = "--json=lines" if as_lines else "--json"
    of_sweep = [override for override in argv if override.lstrip("+").startswith("sweep.")]
    is_sweep = {"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(argv) or any("sweep.resume=" in it for it in of_sweep)
    if is_sweep and not {"--hydra-help", "--version"} & set(argv):
        if instead:
            raise ConfigError(f"{instead}: describes one run. Leave out -m and sweep.resume")
        if as_json:
            advice = "its results.csv has the metrics. Leave out --json or -m"
            raise ConfigError(f"--json: a sweep prints no document; {advice}")
        return _sweep(command, argv)
    job = instead.removeprefix("--") or command
    own = [instead, *[flag] * as_json]  # a flag that does not apply is left in, and refused
    arguments = [argument for argument in argv if argument not in own]
    out = sys.stdout
    log_to = sys.stderr if as_json and not torchrun.processes().rank else out  # other ranks log nothing

    def show(document: Any, indent: int | None = None) -> None:
        from dltrain.report import run_files

        print(run_files.as_json(document, indent), file=out, flush=True)

    with startup.gc_paused(), contextlib.redirect_stdout(log_to):
        from dltrain.config import composition

        with _diagnosed(command, arguments):
            composed = composition.run(command, arguments)
        if isinstance(composed, int):  # one of Hydra's flags has printed something instead
            return composed
        code, document = _job(job, composed, of_sweep, **{"show": show} if as_lines else {})
    if as_json and document is not None:
        show(*(({"event": "summary"} | document,) if as_lines else (document, 2)))
    return code


def _sweep(command: str, argv: list[str]) -> int:
    from dltrain.config import composition
    from dltrain.sweeps import sweep, sweep_file

    request = sweep_file.parse_request(command, argv)
    arguments = [*request.flags, *request.overrides]
    with _diagnosed(command, arguments), composition.sweeping(command, arguments) as sweeping:
        return sweep.run(request, sweeping)


def _job(command: str, composed: "Composed", of_sweep: list[str], **options: Any) -> tuple[int, Any]:
    """Run one job; return its exit code and document. An interrupted run has one even if it had not started."""
    from dltrain.commands import jobs
    from dltrain.config import resolution

    if of_sweep:
        of = "train" if command in ("summary", "show-batch") else command
        faults = validation.find_problems(resolution.resolve(composed.config), of, composed.origin)
        raise ConfigError("\n".join(faults) or f"{of_sweep[0]}: only works in a sweep. Add -m, or leave it out")
    from dltrain.report.console import start_logging

    start_logging()
    result, document = jobs.run_job(
        command, composed.config, _report_error, typed=composed.typed, origin=composed.origin, **options
    )
    if result.interrupted and command == "train":
        document = document or {"status": "interrupted"}
    return result.code, document
