"""EMA: an exponential moving average of the weights, often better than the latest ones (Polyak, Juditsky, 1992)."""

import contextlib
from collections.abc import Iterator

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from dltrain.optim.step import TrainState, copy_flat, flattened


@torch.no_grad()
def update_ema(state: TrainState, decay: float) -> None:
    """Update the EMA of the weights and of the norms' statistics after a step; the first call copies them.

    After n steps the decay is at most (1 + n) / (10 + n), so that the EMA soon forgets the initial weights.
    """
    weights = state.model.state_dict()
    if state.ema_weights is None:
        state.ema_weights = {key: value.clone() for key, value in weights.items()}
        return
    decay = min(decay, (1 + state.step) / (10 + state.step))
    averaged = dict.fromkeys(key for key, value in weights.items() if value.is_floating_point() or value.is_complex())
    update = get_ema_multi_avg_fn(decay)
    update([state.ema_weights[key] for key in averaged], [weights[key] for key in averaged], 0)
    if counts := [key for key in weights if key not in averaged]:  # such as a batch norm's count of batches
        torch._foreach_copy_([state.ema_weights[key] for key in counts], [weights[key] for key in counts])
    buffers = [key for key, _ in state.model.named_buffers() if key in averaged]  # masks may be infinite
    for kind, (latest, _) in flattened(weights[key] for key in buffers).items():
        if not latest.is_cpu or not latest.isfinite().all():  # on a GPU looking takes longer
            ema, averages = flattened(state.ema_weights[key] for key in buffers)[kind]
            copy_flat(torch.where(latest.isfinite(), ema, latest), averages)


@contextlib.contextmanager
def swapped_in_ema(state: TrainState) -> Iterator[None]:
    """Load the EMA, if there is one, into the network inside the `with` block; then restore its weights exactly."""
    if state.ema_weights is None:
        yield
        return
    weights = {key: value.clone() for key, value in state.model.state_dict().items()}
    state.model.load_state_dict(state.ema_weights)
    try:
        yield
    finally:
        state.model.load_state_dict(weights)
