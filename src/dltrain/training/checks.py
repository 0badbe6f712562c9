"""Do model, task and data fit each other? Asked before the first step."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dltrain.data.splits import Examples
from dltrain.optim.step import Task
from dltrain.runtime import devices
from dltrain.runtime.errors import ConfigError, InputError, first_line


def check_classes(classes: Sequence[str], examples: Examples, split: str) -> None:
    """Raise InputError where a split has other classes than the training had: its figures would be wrong."""
    strangers = [name for name in examples.classes if name not in classes]
    if strangers or examples.classes != tuple(classes)[: len(examples.classes)]:
        raise InputError(
            f"data: the {split} split has classes {', '.join(examples.classes[:20])}; "
            f"trained are {', '.join(classes[:20])}, in that order"
        )


def check_fit(
    network: nn.Module, node: dict[str, Any], task: Task, targets: Tensor, shape: Sequence[int], outputs: int
) -> None:
    """Raise ConfigError where model, task and data (`shape` of an input) do not fit; costs a pass of two examples."""
    network.eval()
    device = next(network.parameters(), targets).device
    try:
        with torch.no_grad():
            output = network(torch.zeros(2, *shape, device=device))
        output_shape = tuple(output.shape[1:])
    except Exception as error:
        raise ConfigError(f"model={node['name']} does not fit data of {tuple(shape)}: {first_line(error)}") from error
    finally:
        network.train()
    if problem := task.mismatch(targets, tuple(shape), output_shape, outputs):
        raise ConfigError(problem)


def check_last_batch(
    network: nn.Module, shape: Sequence[int], examples: int, batch_size: int, accumulate: int, processes: int = 1
) -> None:
    """Raise ConfigError where an epoch ends with one example alone, of which batch norm has no variance.

    It has one where a picture still has several pixels; so the network is asked, about an example of `shape`.
    """
    whole = batch_size * accumulate
    last = examples % whole or min(whole, examples)
    # With several processes the parts of whole batches can be as small.
    batches = {last} if processes == 1 else {last, min(whole, examples)}
    owned = {
        max(1, batch * (rank + 1) // processes - batch * rank // processes)
        for batch in batches
        for rank in range(processes)
    }
    alone = any((own % -(-own // accumulate) or -(-own // accumulate)) == 1 for own in owned)
    if alone and has_batch_norm(network) and not _takes_one(network, shape):
        where = "the last batch" if processes == 1 else f"a batch that {processes} processes share"
        raise ConfigError(
            f"batch_size={batch_size}: of {examples} examples one is left alone in {where}, "
            "which batch norm cannot use; choose another"
        )


def _takes_one(network: nn.Module, shape: Sequence[int]) -> bool:
    try:
        with devices.preserved_state(network), torch.no_grad():
            network.train()
            network(torch.zeros(1, *shape))
    except ValueError as error:
        return "more than 1 value per channel" not in str(error)
    except Exception:  # a fault of another kind: the first step will tell
        return True
    return True


def has_batch_norm(network: nn.Module) -> bool:
    """Whether what it computes of an example depends on the others of its batch."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())
