"""What a user can mend: each kind of mistake or circumstance, and the exit code it ends with.

UserError (1)
 ├─ ConfigError (2)      the command or the config is wrong
 ├─ InputError (66)      an input is missing or damaged
 ├─ DeviceError (69)     the device is not available
 ├─ OutputError (74)     a file could not be written
 └─ Interrupted (129, 130, 143)  stopped by a signal, after saving
"""

import logging

LONGEST = 300  # letters of another program's words


class UserError(Exception):
    """Shown in a few lines without a traceback: what, where, what to do."""

    exit_code = 1


class ConfigError(UserError):
    exit_code = 2


class InputError(UserError):
    exit_code = 66


class DeviceError(UserError):
    exit_code = 69


class OutputError(UserError):
    exit_code = 74


class Interrupted(UserError):
    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def system_error_message(error: OSError) -> UserError:
    """What nobody foresaw, with the path: a file that own code misses, a name too long, a failing disk."""
    is_missing = isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError)
    return (InputError if is_missing else OutputError)(f"{str(error.filename)[:200]}: {error.strerror}")


def first_line(error: object) -> str:
    """What an error says, as far as a line or a row of a table has room for it; else of which kind it is."""
    line = (sanitized(str(error)).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"


def sanitize_record(record: logging.LogRecord) -> bool:
    """A filter that lets every record through, without what would steer a terminal: names in it may be a stranger's."""
    record.msg, record.args = sanitized(record.getMessage()), ()
    return True


def sanitized(text: str) -> str:
    """Lines without what would steer the terminal, and without halves of letters that no file can hold."""
    return "\n".join(map(printable, text.expandtabs().split("\n")))


def printable(line: str) -> str:
    """A line without what would steer the terminal: it may be a stranger's."""
    return "".join(letter if letter.isprintable() else "?" for letter in line)
