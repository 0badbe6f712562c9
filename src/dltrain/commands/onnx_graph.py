"""A network as an ONNX file: built, and run beside the network itself. Knows tensors; knows no config, no files."""

import contextlib
import io
import itertools
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dltrain.runtime.errors import ConfigError, first_line

# float32 keeps 24 bits: kernels that add in another order differ by some 1e-7 of the largest output (1e-7 to 7e-7 over
# the built-in models). A thousand times that is no rounding any more; a wrong layout or a lost layer is of order one.
TOLERANCE = 1e-4
LARGEST = (1 << 31) - (1 << 24)  # bytes of weights: protobuf holds 2 GiB in one file, the graph is small beside them
BATCHES = (1, 7, 256)  # sizes it is run with, the last of them again and again


class ExportError(Exception):
    """A network that cannot become an ONNX file, or a file that does not do what the network does."""


class Normalized(nn.Module):
    """A network behind the multiplication and addition that its data gets in training.

    Args:
        scale: (C, 1, 1), of each channel
        shift: (C, 1, 1)
    """

    def __init__(self, network: nn.Module, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.network = network
        self.scale, self.shift = nn.Buffer(scale), nn.Buffer(shift)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.float() * self.scale + self.shift)  # (B, C, H, W) of bytes or floats


def require_packages() -> Any:
    """onnxruntime. Raises ConfigError where it, or what writes ONNX files, is not installed."""
    # From 1.29 on it would keep an identifier in the home folder and send its maker the names in each graph. It looks
    # at this once, when it is imported.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"format=onnx: needs {error.name}; in dltrain's checkout: pip install '.[export]'. "
            "Or set format=safetensors"
        ) from error
    return onnxruntime


def build(network: nn.Module, example: Tensor, *, output: str, metadata: Mapping[str, str]) -> bytes:
    """An ONNX file of a network, for batches of any size: input `images`, one output.

    The same network gives the same bytes: what the exporter notes of this machine's source files is taken out.
    Raises Unusable for a network that torch cannot export.
    """
    if sum(each.nbytes for each in network.state_dict().values()) > LARGEST:
        raise ExportError("its weights are more than the 2 GiB that one ONNX file holds")
    network.eval()
    try:
        with _in_silence():
            program = torch.onnx.export(
                network,
                (torch.cat([example, example]),),  # a batch of one would be taken for a fixed size
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=["images"],
                output_names=[output],
                verbose=False,
            )
            assert program is not None
            from onnx_ir.passes.common import ClearMetadataAndDocStringPass

            ClearMetadataAndDocStringPass()(program.model)
            for key, value in metadata.items():
                program.model.metadata_props[key] = value
            return program.model_proto.SerializeToString()
    except Exception as error:  # torch raises nearly anything for a network of somebody's own
        raise ExportError(first_line(error.__cause__ or error)) from error


def difference(file: bytes, inputs: Tensor, expected: Tensor, *, threads: int) -> float:
    """Greatest difference between an ONNX file's outputs and the expected ones (N, ...), over batches of several sizes.

    Raises Unusable where it is more than rounding explains, or where onnxruntime does not run the file.
    """
    onnxruntime = require_packages()
    onnxruntime.set_default_logger_severity(4)  # it writes to the process's own stderr
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, threads
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        parts = [session.run(None, {"images": part.numpy()})[0] for part in _batches(inputs)]
    except Exception as error:  # its own exceptions share no base class
        raise ExportError(f"onnxruntime does not run it: {first_line(error)}") from error
    found = torch.cat([torch.from_numpy(part) for part in parts])
    if found.shape != expected.shape:
        raise ExportError(f"its outputs are {tuple(found.shape)}, the network's {tuple(expected.shape)}")
    greatest = float((found - expected).abs().max())
    limit = TOLERANCE * max(1.0, float(expected.abs().max()))
    if not greatest <= limit:  # NaN is no agreement
        raise ExportError(f"its outputs differ from the network's by {greatest:.2g}, at most {limit:.2g} is rounding")
    return greatest


def _batches(inputs: Tensor) -> Iterator[Tensor]:
    """All inputs, in batches of the sizes in BATCHES."""
    sizes = itertools.chain(BATCHES, itertools.repeat(BATCHES[-1]))
    start = 0
    while start < len(inputs):
        size = next(sizes)
        yield inputs[start : start + size]
        start += size


@contextlib.contextmanager
def _in_silence() -> Iterator[None]:
    """The exporter reports its progress and what it thinks of torch's own code: not for who wants a file."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield
