"""Keep optimizers from importing torch's compiler, which takes as long to import as torch, unless it is used.

An optimizer imports torch._dynamo when its methods are first called, only to exclude them from compilation.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim import optimizer as optimizer_module

Method = Callable[..., Any]

# Names in torch today. If a later version renames them, nothing below applies and torch imports the compiler as usual.
DISABLED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")  # methods that torch/_compile.py wraps
REPLACEMENT = "__dynamo_disable"  # attribute of the wrapped function: what the wrapper calls in its place
HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")  # of one optimizer
GLOBAL_HOOKS = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")
STEP_WRAPPER = "_use_grad"  # wraps each optimizer's step, in torch/optim/optimizer.py


def skip_dynamo_import() -> None:
    """Patch optimizers to work without torch._dynamo until other code, such as a user's model, imports it."""
    if _is_imported():
        return
    for name in DISABLED:
        method = getattr(Optimizer, name)
        function = getattr(method, "__wrapped__", None)
        if function is not None and not hasattr(function, REPLACEMENT):
            setattr(function, REPLACEMENT, _without_dynamo(method, function))
    for optimizer_class in Optimizer.__subclasses__():
        step = vars(optimizer_class).get("step")
        if getattr(getattr(step, "__code__", None), "co_name", "") == STEP_WRAPPER and hasattr(step, "__wrapped__"):
            optimizer_class.step = _plain_step(step)  # type: ignore[method-assign]


def _is_imported() -> bool:
    return "torch._dynamo" in sys.modules


def _without_dynamo(method: Method, function: Method) -> Method:
    def call(*arguments: Any, **keywords: Any) -> Any:
        if not _is_imported():
            return function(*arguments, **keywords)
        delattr(function, REPLACEMENT)  # from now on as torch does it
        return method(*arguments, **keywords)

    return call


def _plain_step(step: Any) -> Method:
    hooked = getattr(Optimizer, "profile_hook_step", lambda method: method)(step)  # as torch does

    @functools.wraps(step)
    def call(self: Optimizer, *arguments: Any, **keywords: Any) -> Any:
        hooks = [getattr(self, name, True) for name in HOOKS]
        hooks += [getattr(optimizer_module, name, True) for name in GLOBAL_HOOKS]
        if _is_imported() or any(hooks):
            return hooked(self, *arguments, **keywords)
        with torch.set_grad_enabled(self.defaults["differentiable"]):  # as the wrapper does
            return step.__wrapped__(self, *arguments, **keywords)

    call.hooked = True  # type: ignore[attr-defined]  # no profiler range either: a thirtieth of a small step
    return call
