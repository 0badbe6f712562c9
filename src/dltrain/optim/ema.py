"""A moving average of the weights, often better than they are (Polyak, Juditsky, 1992). Knows tensors alone."""

import contextlib
from collections.abc import Iterator

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from dltrain.optim.step import TrainState


@torch.no_grad()
def update_ema(state: TrainState, decay: float) -> None:
    """Take the weights, and the statistics of norms, after a step into their average.

    After n steps it keeps at most (1 + n) / (10 + n) of itself, so that it soon forgets the start.
    """
    own = state.model.state_dict()
    if state.ema_weights is None:
        state.ema_weights = {key: value.clone() for key, value in own.items()}
        return
    kept = min(decay, (1 + state.step) / (10 + state.step))
    of_numbers = [key for key, value in own.items() if value.is_floating_point() or value.is_complex()]
    update = get_ema_multi_avg_fn(kept)
    update([state.ema_weights[key] for key in of_numbers], [own[key] for key in of_numbers], 0)
    for key in own.keys() - set(of_numbers):  # such as how many batches a norm has seen
        state.ema_weights[key].copy_(own[key])
    for key in set(of_numbers) & {name for name, _ in state.model.named_buffers()}:  # masks may be infinite
        state.ema_weights[key].copy_(torch.where(own[key].isfinite(), state.ema_weights[key], own[key]))


@contextlib.contextmanager
def swapped_in_ema(state: TrainState) -> Iterator[None]:
    """Let the network have the averages, where there are any, and then its own weights again, to the bit."""
    if state.ema_weights is None:
        yield
        return
    own = {key: value.clone() for key, value in state.model.state_dict().items()}
    state.model.load_state_dict(state.ema_weights)
    try:
        yield
    finally:
        state.model.load_state_dict(own)
