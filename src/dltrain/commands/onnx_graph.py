"""Exports a network as a graph, of ONNX or torch, and compares both outputs. Knows tensors; no config, no files."""

import contextlib
import io
import itertools
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dltrain.runtime.errors import ConfigError, first_line

# float32 keeps 24 bits: kernels that add in another order differ by some 1e-7 of the largest output (1e-7 to 7e-7 over
# the built-in models). A thousand times that is not rounding; a wrong layout or a lost layer is of order one.
TOLERANCE = 1e-4
LARGEST = (1 << 31) - (1 << 24)  # bytes of weights: protobuf is limited to 2 GiB per file, and the graph is small
BATCHES = (1, 7, 256)  # sizes to run the file with; the last one is repeated


class ExportError(Exception):
    """A network cannot be exported, or the file computes something else."""


class Normalized(nn.Module):
    """A network that also normalises its inputs as in training, by scale and shift (C, 1, 1) of each channel."""

    def __init__(self, network: nn.Module, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.network = network
        self.scale, self.shift = nn.Buffer(scale), nn.Buffer(shift)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.float() * self.scale + self.shift)  # (B, C, H, W), uint8 or float


def require_packages() -> Any:
    """Return onnxruntime. Raises ConfigError if it, onnx or onnxscript is not installed."""
    # Otherwise it would, from 1.29 on, keep an identifier in the home folder and send the names in each graph to its
    # vendor. It reads this variable on import.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        advice = "in dltrain's checkout: pip install -e '.[export]'. Or set format=safetensors"
        raise ConfigError(f"format=onnx: needs {error.name}; {advice}") from error
    return onnxruntime


def build(kind: str, network: nn.Module, example: Tensor, output: str, metadata: Mapping[str, str]) -> bytes:
    """Return a network as a file for batches of any size, with the input `images` and one output.

    The same network gives the same bytes. Raises ExportError for a network that torch cannot export.
    """
    two, shapes = torch.cat([example, example]), ({0: torch.export.Dim("batch")},)  # one would become a fixed size
    if kind == "onnx" and sum(tensor.nbytes for tensor in network.state_dict().values()) > LARGEST:
        raise ExportError("its weights exceed the 2 GiB that an ONNX file can hold")
    network.eval()
    try:
        with _silenced():
            if kind == "torch_export":
                exported, buffer = torch.export.export(network, (two,), dynamic_shapes=shapes), io.BytesIO()
                torch.export.save(exported, buffer, extra_files=dict(metadata))
                return buffer.getvalue()
            names: dict[str, Any] = {"input_names": ["images"], "output_names": [output]}
            program = torch.onnx.export(network, (two,), dynamo=True, dynamic_shapes=shapes, verbose=False, **names)
            assert program is not None
            from onnx_ir.passes.common import ClearMetadataAndDocStringPass

            ClearMetadataAndDocStringPass()(program.model)  # what the exporter records of local source files
            program.model.metadata_props.update(metadata)
            return program.model_proto.SerializeToString()
    except Exception as error:  # torch raises many types for a model of a user
        raise ExportError(first_line(error.__cause__ or error)) from error


def difference(kind: str, file: bytes, inputs: Tensor, expected: Tensor, *, threads: int) -> float:
    """Return the largest difference of a file's outputs from `expected` (N, ...). Raises ExportError if too large."""
    *first, rest = inputs.tensor_split(tuple(itertools.accumulate(BATCHES[:-1])))
    batches = [*first, *rest.split(BATCHES[-1])]
    try:
        network = _onnx_session(file, threads) if kind == "onnx" else torch.export.load(io.BytesIO(file)).module()
        with torch.no_grad():
            outputs = torch.cat([network(batch) for batch in batches if len(batch)])
    except Exception as error:  # those of onnxruntime have no common base class
        raise ExportError(f"{'onnxruntime' if kind == 'onnx' else kind} cannot run it: {first_line(error)}") from error
    if outputs.shape != expected.shape:
        raise ExportError(f"its outputs are {tuple(outputs.shape)}, the network's {tuple(expected.shape)}")
    largest = float((outputs - expected).abs().max())
    limit = TOLERANCE * max(1.0, float(expected.abs().max()))
    if not largest <= limit:  # also for NaN
        raise ExportError(f"its outputs differ from the network's by {largest:.2g}, at most {limit:.2g} is rounding")
    return largest


def _onnx_session(file: bytes, threads: int) -> Callable[[Tensor], Tensor]:
    onnxruntime = require_packages()
    onnxruntime.set_default_logger_severity(4)  # it writes to stderr of the process
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda inputs: torch.from_numpy(session.run(None, {"images": inputs.numpy()})[0])


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Suppress the progress of the exporter and its warnings about torch itself, which are of no use to users."""
    text = io.StringIO()
    with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        yield
