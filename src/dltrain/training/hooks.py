"""Calls a user's own functions after the records of a step; they may end the run."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from dltrain.engine import Record
from dltrain.optim.step import TrainState
from dltrain.runtime.distributed import all_gather_text
from dltrain.runtime.errors import UserError, first_line, located, typed_line
from dltrain.runtime.torchrun import Processes

OUTCOMES = ("done", "failed", "interrupted", "pruned", "not done")  # the statuses that sweeps and reports decide by
Hooks = Mapping[str, Callable[[Record, TrainState], object]]


class HookError(UserError):
    """A hook failed on some rank; raised on every rank, so that the run can be saved."""


def call_hooks(hooks: Hooks, records: Sequence[Record], state: TrainState, processes: Processes) -> str:
    """Call all hooks with each record; return the first text that one returns on any rank, which ends the run.

    A hook that returns another true value, or one of OUTCOMES, ends the run with its own name.
    """
    statuses, failure, cause, before = [""], "", None, vars(state).copy()
    try:
        for record, (name, hook) in itertools.product(records, hooks.items()):
            if answer := hook(replace(record, values={**record.values}), state):  # the run keeps its own
                is_reason = isinstance(answer, str) and answer.strip() not in ("", *OUTCOMES)
                statuses.append(first_line(answer) if is_reason else name)
            modes = torch.is_grad_enabled(), torch.get_default_dtype(), hasattr(answer, "send")
            if modes != (True, torch.float32, False) or any(getattr(state, k) is not v for k, v in before.items()):
                raise RuntimeError("it must leave gradient mode, default dtype and state as they are, without yield")
    except (Exception, SystemExit) as error:  # sys.exit(0) would look like success
        failure, cause = located(f"hook {name} failed: {typed_line(error)}", error), error
    vars(state).update(before)
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)
    state.model.train()  # else the rest of the epoch would be without dropout
    # Any rank may end the run; all have to know, since they wait for each other in the next step.
    if failures := [text for text in all_gather_text(failure, processes) if text]:
        raise HookError(failures[0]) from cause
    return next((text for text in all_gather_text("".join(statuses[:2]), processes) if text), "")
