"""A CUDA graph on the CPU: the calls of a step with the very tensors they had, repeated in place.

What a capture fixes is fixed here too: numbers of Python, which tensors there are, the order of the calls. What it
refuses is refused: a look at a number, a shape that follows from numbers, a tensor made from numbers of Python. As on a
GPU nothing has been computed once the capture is over: memory that was there before, and the generator, are as before.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
REFUSED = {torch.Tag.data_dependent_output: "a number is read", torch.Tag.dynamic_output_shape: "numbers give a shape"}
NOT_IN_SCHEMA = ("running_mean", "running_var")  # batch norm writes to them, and does not say so


class Refused(RuntimeError):
    """What a capture refuses."""


class Replay(TorchDispatchMode):
    """In place of runtime.graphs.CudaGraph; counts what it does."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []  # they keep every tensor alive
        self.own: set[int] = set()  # memory of the graph
        self.before: dict[int, tuple[Any, Any]] = {}  # memory from before that it writes to, as it was
        self.eager = self.captures = self.replays = 0

    @contextlib.contextmanager
    def warm_up(self) -> Iterator[None]:
        self.eager += 1
        yield

    @contextlib.contextmanager
    def capture(self) -> Iterator[None]:
        self.captures += 1
        generator = torch.get_rng_state()
        try:
            with self:
                yield
        finally:
            for storage, copy in self.before.values():
                storage.copy_(copy)
            torch.set_rng_state(generator)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tag in set(function.tags) & set(REFUSED):
            raise Refused(f"{function}: {REFUSED[tag]}")
        if function is aten.lift_fresh.default:
            raise Refused("a tensor is made from numbers of the host")
        arguments = dict(zip((each.name for each in function._schema.arguments), args, strict=False)) | kwargs
        for each in function._schema.arguments:
            if (each.alias_info is not None and each.alias_info.is_write) or each.name in NOT_IN_SCHEMA:
                self._keep(arguments.get(each.name))
        given = set(map(_memory, _tensors((args, kwargs))))
        out = function(*args, **kwargs)
        self.own |= set(map(_memory, _tensors(out))) - given - set(self.before)
        self.calls.append((function, args, kwargs, out))
        return out

    def _keep(self, written: Any) -> None:
        for tensor in _tensors(written):
            if (memory := _memory(tensor)) not in self.own and memory not in self.before:
                self.before[memory] = tensor.untyped_storage(), tensor.untyped_storage().clone()

    def replay(self) -> None:
        self.replays += 1
        with torch.no_grad():
            for function, args, kwargs, out in self.calls:
                if function.is_view or function is aten.detach.default:
                    continue  # of the same memory
                for recorded, new in zip(_tensors(out), _tensors(function(*args, **kwargs)), strict=True):
                    if recorded.data_ptr() != new.data_ptr():
                        recorded.copy_(new)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
