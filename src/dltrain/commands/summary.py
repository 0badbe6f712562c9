"""`dltrain train --summary`: lists the layers of a network with shapes, parameters and FLOPs."""

import contextlib
import logging
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dltrain.config import registry
from dltrain.config.resolution import Config
from dltrain.data.loader import normalization
from dltrain.report import console
from dltrain.runtime.devices import memory_errors
from dltrain.runtime.errors import ConfigError, first_line, printable
from dltrain.training import build
from dltrain.training.setup import prepare

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layer:
    """A module of a network without its submodules, so that the numbers of all add up to those of the network."""

    name: str
    type: str
    output_shape: list[int] | None  # of its last call, for a batch of one; None if it was not called or gave no tensor
    parameters: int  # shared ones count for the first module only
    flops: int  # of a forward pass of one example; a multiplication and an addition count as two


def summarize(config: Config) -> dict[str, Any]:
    """Check a config as a run would, reading only the training set; print and return layers. Raises UserError."""
    values = config.values
    run = prepare(config, None, _training_set)
    model, shape = run.state.model.cpu(), run.data.input_shape
    with memory_errors("Choose a smaller model, or smaller images"):
        rows = layers(model, shape, str(values["model"]["name"]))
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}.values()
    summary = {
        "model": values["model"]["name"],
        "data": values["data"]["name"],
        "input_shape": [min(run.settings.batch_size, len(run.data.train.images)), *shape],
        "layers": [asdict(layer) for layer in rows],
        "parameters": sum(layer.parameters for layer in rows),
        "trainable": build.count_parameters(model),
        "bytes": sum(tensor.nbytes for tensor in tensors),
        "flops": sum(layer.flops for layer in rows),
    }
    _show(rows, summary)
    return summary


def _training_set(node: dict[str, Any], seed: int) -> build.Data:
    """Load the training and validation sets as a run does; the statistics are checked, not computed."""
    train, val = build.train_and_val(node, seed, registry.partial_call("data", node))
    return build.Data(train, val, None, normalization(train.images[:1], mean=node["mean"], std=node["std"]))


def layers(model: nn.Module, input_shape: tuple[int, ...], name: str) -> list[Layer]:
    """Return the modules with parameters, operations or no submodules. Raises ConfigError if a batch of one fails."""
    shapes: dict[nn.Module, list[int] | None] = {}
    flops = dict.fromkeys(model.modules(), 0)
    calls: list[nn.Module] = []  # the running calls, the innermost last
    counter = FlopCounterMode(display=False)
    counted = 0

    def note() -> None:
        """Add the operations since the last call of `note` to the innermost module."""
        nonlocal counted
        if calls:
            flops[calls[-1]] += counter.get_total_flops() - counted
        counted = counter.get_total_flops()

    def enter(module: nn.Module, inputs: Any) -> None:
        note()
        calls.append(module)

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        note()
        calls.pop()
        first = output[0] if isinstance(output, tuple | list) and output else output  # LSTM: (states, last states)
        shapes[module] = list(first.shape) if isinstance(first, Tensor) else None

    model.eval()
    with contextlib.ExitStack() as stack:
        for module in flops:
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "TF32 acceleration", UserWarning)  # torch warns about its own flags
        # Fused recurrent layers and fused attention are not counted; these flags split them into matrix products.
        stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.no_grad())
        stack.enter_context(counter)
        try:
            model(torch.zeros(1, *input_shape))
        except Exception as error:
            raise ConfigError(f"model={name} does not take a batch of one: {first_line(error)}") from error
    seen: set[int] = set()
    rows = []
    for key, module in model.named_modules():
        parameters = [weight for weight in module.parameters(recurse=False) if id(weight) not in seen]
        seen |= {id(weight) for weight in parameters}
        if parameters or flops[module] or not list(module.children()):
            count = sum(weight.numel() for weight in parameters)
            rows.append(Layer(key, type(module).__name__, shapes.get(module), count, flops[module]))
    return rows


def _show(rows: list[Layer], summary: dict[str, Any]) -> None:
    table = Table(title=f"{printable(summary['model'])} on {printable(summary['data'])}", title_justify="left")
    for column in ("layer", "type", "output shape", "parameters", "FLOPs"):
        table.add_column(column, justify="right" if column in ("parameters", "FLOPs") else "left")
    for layer in rows:
        shape = "" if layer.output_shape is None else str(tuple(layer.output_shape))
        numbers = f"{layer.parameters:,}", f"{layer.flops:,}"
        table.add_row(printable(layer.name) or "(itself)", printable(layer.type), shape, *numbers)
    table.add_section()
    table.add_row("all", "", "", f"{summary['parameters']:,}", f"{summary['flops']:,}")
    console.show_table(table)
    frozen = summary["parameters"] - summary["trainable"]
    not_trained = f", {frozen:,} parameters are not trained" if frozen else ""
    log.info("weights  %s bytes%s", f"{summary['bytes']:,}", not_trained)
    log.info("input    %s, a batch", tuple(summary["input_shape"]))
