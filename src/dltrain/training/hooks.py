"""Calls a user's own functions after the records of a step; they may end the run."""

import itertools
from collections.abc import Callable, Mapping, Sequence

from dltrain.engine import Record
from dltrain.optim.step import TrainState
from dltrain.runtime.distributed import all_gather_text
from dltrain.runtime.errors import UserError, first_line, message, typed_line
from dltrain.runtime.torchrun import Processes

Hook = Callable[[Record, TrainState], object]


class HookError(UserError):
    """A hook failed on some rank; raised on every rank, so that the run can be saved."""


def call_hooks(hooks: Mapping[str, Hook], records: Sequence[Record], state: TrainState, processes: Processes) -> str:
    """Call all hooks with each record; return the first text that one returns on any rank, which ends the run.

    A hook that returns another true value ends the run with its own name.
    """
    statuses, name, cause = [""], "", None
    try:
        for record, (name, hook) in itertools.product(records, hooks.items()):
            if answer := hook(record, state):
                statuses.append(first_line(answer) if isinstance(answer, str) else name)
    except Exception as error:
        cause = error
    failure = HookError(f"hook {name} failed: {typed_line(cause)}") if cause else HookError()
    failure.__cause__ = cause
    if failures := list(filter(None, all_gather_text(message(failure), processes))):
        raise HookError(failures[0]) from cause
    return next(filter(None, all_gather_text((statuses[1:] or [""])[0], processes)), "")
