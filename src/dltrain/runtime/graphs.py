"""Steps recorded as a CUDA graph: the CPU then starts a whole step at once, not each of its kernels."""

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from dltrain.runtime.errors import UserError, first_line

Result = TypeVar("Result")
BY_DEFAULT = False  # what device.graph=auto means on a GPU: off until its tests have run on one
AT_ONCE = 8  # training steps in a graph of several
WARM_UP = 3  # eager steps of a shape before it is recorded: optimizers get their state, libraries choose their kernels


class Graph(Protocol):
    """Kernels with all their arguments, recorded once without being run."""

    def warm_up(self) -> contextlib.AbstractContextManager[object]:
        """Run steps as they are, where they will be recorded."""

    def capture(self) -> contextlib.AbstractContextManager[object]:
        """Record what is computed inside the block, in place of computing it."""

    def replay(self) -> None:
        """Compute what was recorded, from and into the same memory."""


class CudaGraph:
    """A graph of the current CUDA device."""

    def __init__(self) -> None:
        self.graph, self.stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()

    @contextlib.contextmanager
    def warm_up(self) -> Iterator[None]:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            yield
        torch.cuda.current_stream().wait_stream(self.stream)

    @contextlib.contextmanager
    def capture(self) -> Iterator[None]:
        recorded = torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local")
        with torch.cuda.stream(self.stream), recorded:  # the first sets the stream back even if the second fails
            yield

    def replay(self) -> None:
        self.graph.replay()


def shapes(batch: Sequence[Tensor]) -> object:
    """Return what must be the same of tensors for which a graph was recorded."""
    return tuple((tensor.shape, tensor.stride(), tensor.dtype) for tensor in batch)


class GraphedStep(Generic[Result]):
    """A function of a batch of tensors, which may change others in place, and is recorded for one shape of batch.

    The first batches of each shape, and later ones of other shapes than the recorded one, are computed as they are.
    A replay overwrites the tensors that the one before returned.
    """

    result: Result

    def __init__(self, step: Callable[..., Result], graph: Graph, warm_up: int = WARM_UP) -> None:
        self.step, self.graph, self.warm_up = step, graph, warm_up
        self.seen: Counter[object] = Counter()
        self.recorded: object = None
        self.static: list[Tensor] = []

    def __call__(self, *batch: Tensor) -> Result:
        shape = shapes(batch)
        if self.recorded is None and self.seen[shape] == self.warm_up:
            self._record(batch)
            self.recorded = shape
        if shape == self.recorded:
            torch._foreach_copy_(self.static, batch)
            self.graph.replay()
            return self.result
        self.seen[shape] += 1
        with self.graph.warm_up():
            return self.step(*batch)

    def _record(self, batch: tuple[Tensor, ...]) -> None:
        self.static = [tensor.clone() for tensor in batch]
        try:
            with self.graph.capture():
                self.result = self.step(*self.static)
        except RuntimeError as error:  # afterwards the random generator does not work outside of a graph
            problem = f"device.graph: a step of this run cannot be recorded ({first_line(error)})"
            raise UserError(f"{problem}\nSet device.graph=false") from error


class GraphedSteps:
    """Steps that wait, once they are recorded, until AT_ONCE of them are computed as one graph; or until `flush`."""

    def __init__(self, step: Callable[..., object], graph: Callable[[], Graph], *, wait: bool) -> None:
        def several(*tensors: Tensor) -> None:
            size = len(tensors) // AT_ONCE
            for start in range(0, len(tensors), size):
                step(*tensors[start : start + size])

        self.one, self.several = GraphedStep(step, graph()), GraphedStep(several, graph(), warm_up=0)
        self.wait = wait
        self.waiting: list[tuple[Tensor, ...]] = []

    def __call__(self, *batch: Tensor) -> None:
        if not self.wait or self.one.recorded != shapes(batch):
            self.flush()
            self.one(*batch)
            return
        self.waiting.append(batch)
        if len(self.waiting) == AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Compute the steps that wait."""
        waiting, self.waiting = self.waiting, []
        if len(waiting) == AT_ONCE:
            self.several(*itertools.chain(*waiting))
        else:
            for batch in waiting:
                self.one(*batch)
