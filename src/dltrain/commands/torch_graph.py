"""Exports a network as a graph of torch itself (torch.export). Knows tensors; knows no config, no files."""

import io
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dltrain.commands.onnx_graph import ExportError, batches, silenced
from dltrain.runtime.errors import first_line


def build(network: nn.Module, example: Tensor, *, metadata: Mapping[str, str]) -> bytes:
    """Return a network as a file of torch.export, for batches of any size, with the metadata as files in it.

    Raises ExportError for a network that torch cannot export.
    """
    try:
        with silenced():
            two = torch.cat([example, example])  # a batch of one would become a fixed size
            shapes = ({0: torch.export.Dim("batch")},)
            program = torch.export.export(network.eval(), (two,), dynamic_shapes=shapes)
            buffer = io.BytesIO()
            torch.export.save(program, buffer, extra_files=dict(metadata))
            return buffer.getvalue()
    except Exception as error:  # torch raises many types for a model of a user
        raise ExportError(first_line(error.__cause__ or error)) from error


def outputs(file: bytes, inputs: Tensor) -> Tensor:
    """Return what such a file computes, in batches of several sizes. Raises ExportError if torch cannot run it."""
    try:
        with silenced(), torch.no_grad():
            network = torch.export.load(io.BytesIO(file)).module()
            return torch.cat([network(part) for part in batches(inputs)])
    except Exception as error:  # as above
        raise ExportError(f"torch cannot run it: {first_line(error)}") from error
