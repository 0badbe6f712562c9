"""torch's compiler, which dltrain never calls: a run shall not wait for its import, which takes as long as torch's own.

An optimizer imports it (torch._dynamo) when its methods are first called, to tell it to leave them alone.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim import optimizer as of_all

Method = Callable[..., Any]

# What torch has today. Where a later one does it in another way nothing is found below, and it imports as ever.
SHIELDED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")  # by torch/_compile.py,
KEPT = "__dynamo_disable"  # which keeps on a method's function what is to be called in its place
HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")  # a person's own
HOOKS_OF_ALL = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")
STEP = "_use_grad"  # the function around each optimizer's step, in torch/optim/optimizer.py


def skip_dynamo_import() -> None:
    """Let optimizers do without the compiler until somebody else, such as a person's own model, imports it."""
    if _is_there():
        return
    for name in SHIELDED:
        method = getattr(Optimizer, name)
        function = getattr(method, "__wrapped__", None)
        if function is not None and not hasattr(function, KEPT):
            setattr(function, KEPT, _unshielded(method, function))
    for kind in Optimizer.__subclasses__():
        step = vars(kind).get("step")
        if getattr(getattr(step, "__code__", None), "co_name", "") == STEP and hasattr(step, "__wrapped__"):
            kind.step = _plain_step(step)  # type: ignore[method-assign]


def _is_there() -> bool:
    return "torch._dynamo" in sys.modules


def _unshielded(method: Method, function: Method) -> Method:
    def call(*arguments: Any, **keywords: Any) -> Any:
        if not _is_there():
            return function(*arguments, **keywords)
        delattr(function, KEPT)  # from now on as torch does it
        return method(*arguments, **keywords)

    return call


def _plain_step(step: Any) -> Method:
    hooked = getattr(Optimizer, "profile_hook_step", lambda method: method)(step)  # as torch itself calls it

    @functools.wraps(step)
    def call(self: Optimizer, *arguments: Any, **keywords: Any) -> Any:
        hooks = [getattr(self, name, True) for name in HOOKS] + [getattr(of_all, name, True) for name in HOOKS_OF_ALL]
        if _is_there() or any(hooks):
            return hooked(self, *arguments, **keywords)
        with torch.set_grad_enabled(self.defaults["differentiable"]):  # the same without a mark for the compiler
            return step.__wrapped__(self, *arguments, **keywords)

    call.hooked = True  # type: ignore[attr-defined]  # no range for a profiler either: a thirtieth of a small step
    return call
