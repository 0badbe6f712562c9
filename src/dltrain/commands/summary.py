"""`dltrain train --summary`: the layers of a network as a run would train it, with shapes, parameters and FLOPs."""

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
from dltrain.data.splits import split_train_val
from dltrain.report import console
from dltrain.runtime.devices import memory_errors
from dltrain.runtime.errors import ConfigError, first_line, printable
from dltrain.training import build
from dltrain.training.setup import prepare

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layer:
    """A part of a network, without its own parts: what all of them have adds up to what the network has.

    Args:
        output_shape: of its last call, for a batch of one; None where it was not called or returned no tensor
        parameters: numbers in its parameters; those that several share are the first one's
        flops: of a forward pass of one example; a multiplication and its addition are two
    """

    name: str
    type: str
    output_shape: list[int] | None
    parameters: int
    flops: int


def summarize(config: Config) -> dict[str, Any]:
    """Check a config as a run would, print the layers of its network and what they add up to, and return that.

    Of the data only the training set is read; nothing is trained or written.
    Raises UserError, whose `exit_code` says of which kind.
    """
    values = config.values
    if values["resume"] is not None:
        raise ConfigError("--summary: shows what a new run would train. Leave out resume, or use dltrain inspect")
    planned = prepare(config, None, _training_set)
    model, shape = planned.state.model.cpu(), planned.data.input_shape
    with memory_errors("Set a smaller model, or smaller pictures"):
        found = layers(model, shape, str(values["model"]["name"]))
    tensors = {id(each): each for each in (*model.parameters(), *model.buffers())}.values()
    summary = {
        "model": values["model"]["name"],
        "data": values["data"]["name"],
        "input_shape": [min(planned.settings.batch_size, len(planned.data.train.images)), *shape],
        "layers": [asdict(layer) for layer in found],
        "parameters": sum(layer.parameters for layer in found),
        "trainable": build.count_parameters(model),
        "bytes": sum(each.nbytes for each in tensors),
        "flops": sum(layer.flops for layer in found),
    }
    _show(found, summary)
    return summary


def _training_set(node: dict[str, Any], seed: int) -> build.Data:
    """The training set and what is held back of it, as a run has them; statistics are checked and not computed."""
    train, val = split_train_val(registry.partial_call("data", node), val=node["val"], limit=node["limit"], seed=seed)
    return build.Data(train, val, None, normalization(train.images[:1], mean=node["mean"], std=node["std"]))


def layers(model: nn.Module, input_shape: tuple[int, ...], name: str) -> list[Layer]:
    """The parts of a network that have parameters, operations or no parts of their own, in the order they are built.

    Raises ConfigError for a network that takes no batch of one.
    """
    shapes: dict[nn.Module, list[int] | None] = {}
    flops = dict.fromkeys(model.modules(), 0)
    calls: list[nn.Module] = []  # those that are running, the innermost last
    counter = FlopCounterMode(display=False)
    counted = 0

    def note() -> None:
        """Give the operations since the last note to the innermost call."""
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
        first = output[0] if isinstance(output, tuple | list) and output else output  # of an LSTM: (states, last ones)
        shapes[module] = list(first.shape) if isinstance(first, Tensor) else None

    model.eval()
    with contextlib.ExitStack() as stack:
        for module in flops:
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "TF32 acceleration", UserWarning)  # torch's own, on its own flags
        # Recurrent layers and attention in one piece are not counted; these make products of matrices of them.
        stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.no_grad())
        stack.enter_context(counter)
        try:
            model(torch.zeros(1, *input_shape))
        except Exception as error:
            raise ConfigError(f"model={name} does not take a batch of one: {first_line(error)}") from error
    seen: set[int] = set()
    found = []
    for key, module in model.named_modules():
        own = [each for each in module.parameters(recurse=False) if id(each) not in seen]
        seen |= {id(each) for each in own}
        if own or flops[module] or not list(module.children()):
            count = sum(each.numel() for each in own)
            found.append(Layer(key, type(module).__name__, shapes.get(module), count, flops[module]))
    return found


def _show(found: list[Layer], summary: dict[str, Any]) -> None:
    batch = tuple(summary["input_shape"])
    table = Table(title=f"{printable(summary['model'])} on {printable(summary['data'])}", title_justify="left")
    for column in ("layer", "type", "output of one", "parameters", "FLOPs"):
        table.add_column(column, justify="right" if column in ("parameters", "FLOPs") else "left")
    for layer in found:
        shape = "" if layer.output_shape is None else str(tuple(layer.output_shape))
        numbers = f"{layer.parameters:,}", f"{layer.flops:,}"
        table.add_row(printable(layer.name) or "(itself)", printable(layer.type), shape, *numbers)
    table.add_section()
    table.add_row("all", "", "", f"{summary['parameters']:,}", f"{summary['flops']:,}")
    console.show_table(table)
    frozen = summary["parameters"] - summary["trainable"]
    log.info(
        "weights  %s bytes%s", f"{summary['bytes']:,}", f", {frozen:,} parameters are not trained" if frozen else ""
    )
    log.info("input    %s, a batch", batch)
