"""Errors that a user can fix, each with its exit code.

UserError (1)
 ├─ ConfigError (2)      the command or the config is wrong
 ├─ InputError (66)      an input is missing or damaged
 ├─ DeviceError (69)     the device is not available
 ├─ OutputError (74)     a file could not be written
 ├─ PartialFailure (that of the first failure)  some inputs could not be used
 └─ Interrupted (129, 130, 143)  stopped by a signal, after saving
"""

import linecache
import logging
import os
import traceback
from collections.abc import Sequence
from pathlib import PurePath

MAX_LENGTH = 300  # characters of a message from another library
TRACEBACK = "DLTRAIN_TRACEBACK"  # the environment variable that asks for whole tracebacks
# How the paths of generated code, of the standard library and of dltrain begin.
NOT_USERS = ("<", f"{PurePath(os.__file__).parent}{os.sep}", f"{PurePath(__file__).parents[1]}{os.sep}")


class UserError(Exception):
    """An error that is shown without a traceback, in a few lines: what is wrong, where, and what to do."""

    exit_code = 1


class ConfigError(UserError):
    exit_code = 2


class InputError(UserError):
    exit_code = 66


class DeviceError(UserError):
    exit_code = 69


class OutputError(UserError):
    exit_code = 74


class PartialFailure(UserError):
    """Some inputs could not be used; `document` is JSON-able and has the results of the others."""

    def __init__(self, message: str, exit_code: int, document: object) -> None:
        super().__init__(message)
        self.exit_code, self.document = exit_code, document


class Interrupted(UserError):
    def __init__(self, message: str, exit_code: int, document: object = None) -> None:
        super().__init__(message)
        self.exit_code, self.document = exit_code, document


def first_line(error: object) -> str:
    """Return the first line of an error's message, shortened to fit a table row, or else its type."""
    line = (sanitized(str(error)).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= MAX_LENGTH else f"{line[:MAX_LENGTH]}…"


def typed_line(error: BaseException) -> str:
    """Return the first line of an error's message, after its type unless it is a UserError."""
    return first_line(error if isinstance(error, UserError) else f"{type(error).__name__}: {error}").rstrip(": ")


def user_line(error: BaseException | None) -> str:
    """Return `FILE:LINE: TEXT`, the last line of the user's own code behind an error, unless that is a UserError."""
    while error is not None:
        frames = [] if isinstance(error, UserError) else traceback.walk_tb(error.__traceback__)
        places = [(frame.f_code.co_filename, line) for frame, line in frames]
        if isinstance(error, SyntaxError):
            places.append((error.filename or "<", error.lineno or 0))
        for file, number in reversed(places):
            if not (file.startswith(NOT_USERS) or {"site-packages", "dist-packages"} & set(PurePath(file).parts)):
                text = linecache.getline(file, number).strip()
                return f"{min(file, os.path.relpath(file), key=len)}:{number}: {text[:MAX_LENGTH]}"
        error = error.__cause__
    return ""


def located(text: str, error: BaseException) -> str:
    """Return a message, in at most three lines, with the line of the user's own code that led to an error, if any."""
    if not (line := user_line(error)) or line in text:
        return text
    return "\n".join([*text.splitlines()[:2], f"at {line}  ({TRACEBACK}=1 shows the traceback)"])


def listed(names: Sequence[str], most: int = 5, separator: str = ", ") -> str:
    """Return the first names of a list and the number of the others: a, b and 3 more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more


def sanitize_record(record: logging.LogRecord) -> bool:
    """Logging filter that keeps every record but removes control characters: names in it may be untrusted."""
    record.msg, record.args = sanitized(record.getMessage()), ()
    return True


def sanitized(text: str) -> str:
    """Replace control characters and lone surrogates in a text of several lines."""
    return "\n".join(map(printable, text.expandtabs().split("\n")))


def printable(line: str) -> str:
    """Replace whatever is not printable: untrusted text must not control the terminal."""
    return "".join(character if character.isprintable() else "?" for character in line)
