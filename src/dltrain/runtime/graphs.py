"""Steps recorded as a CUDA graph: the CPU then starts a whole step at once, not each of its kernels."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from dltrain.runtime.errors import UserError, first_line

Result = TypeVar("Result")
BY_DEFAULT = False  # what device.graph=auto means on a GPU: off until its tests have run on one
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


class GraphedStep(Generic[Result]):
    """A function of a batch (inputs, targets), which changes tensors in place, and is recorded for one shape of batch.

    The first batches of each shape, and later ones of other shapes than the recorded one, are computed as they are.
    A replay overwrites the tensors that the one before returned.
    """

    result: Result

    def __init__(self, step: Callable[[Tensor, Tensor], Result], graph: Graph) -> None:
        self.step, self.graph = step, graph
        self.seen: Counter[object] = Counter()
        self.recorded: object = None
        self.static: list[Tensor] = []

    def __call__(self, *batch: Tensor) -> Result:
        shape = tuple((tensor.shape, tensor.stride(), tensor.dtype) for tensor in batch)
        if self.recorded is None and self.seen[shape] == WARM_UP:
            self._record(batch)
            self.recorded = shape
        if shape == self.recorded:
            for static, tensor in zip(self.static, batch, strict=True):
                static.copy_(tensor)
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
