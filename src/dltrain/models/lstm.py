"""A recurrent network that reads an image row by row, top to bottom.

Hochreiter, Schmidhuber: Long short-term memory. Neural Computation, 1997.
Additive attention over time: Bahdanau, Cho, Bengio: Neural machine translation by jointly learning to align and
translate. ICLR 2015.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from annotated_types import Interval
from torch import Tensor, nn
from torch.nn import functional as F

CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class LSTM(nn.Module):
    """LSTM, GRU or plain RNN over the rows of an image, with last-step or attention pooling.

    Args:
        cell: kind of recurrent cell
        hidden: units of each layer and direction
        layers: number of stacked recurrent layers
        bidirectional: also read the rows from bottom to top
        pool: `last` takes the state after the last row, `attention` a learned weighting of all rows
        dropout: fraction of units dropped between the layers and before the classifier
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        num_classes: int,
        cell: Literal["lstm", "gru", "rnn"],
        hidden: Annotated[int, Interval(ge=1, le=1_000_000)],
        layers: Annotated[int, Interval(ge=1, le=1000)],
        bidirectional: bool,
        pool: Literal["last", "attention"],
        dropout: Annotated[float, Interval(ge=0, lt=1)],
    ) -> None:
        super().__init__()
        channels, _, width = input_shape
        self.recurrent = CELLS[cell](
            channels * width,
            hidden,
            layers,
            batch_first=True,
            bidirectional=bidirectional,
            dropout=dropout if layers > 1 else 0.0,
        )
        self.layers: list[nn.RNNBase] = []
        self.directions = 2 if bidirectional else 1
        features = hidden * self.directions
        self.score = (
            nn.Sequential(nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, 1)) if pool == "attention" else None
        )
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(features, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        states, final = self._states(images)
        if self.score is not None:
            pooled = (_weights(self.score, states) * states).sum(dim=1)  # (B, features)
        else:
            # Not states[:, -1]: its gradient would be as large as all states, and the upward direction ends at row 0.
            pooled = final[-self.directions :].transpose(0, 1).flatten(1)  # of the top layer: (B, features)
        return self.classifier(pooled)

    def attention_map(self, images: Tensor) -> Tensor | None:
        """Return the attention weights of the rows (B, H, 1), which add up to 1; None with another pooling."""
        return None if self.score is None else _weights(self.score, self._states(images)[0])

    def _states(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return states after each row (B, H, features), and last ones of at least the top layer (L * D, B, hidden)."""
        rows = images.transpose(1, 2).flatten(2)  # (B, C, H, W) -> (B, H, C*W)
        for number, layer in enumerate(self.layers or [self.recurrent]):
            rows = F.dropout(rows, self.recurrent.dropout, self.training) if number else rows
            rows, final = layer(rows)
        return rows, final[0] if isinstance(final, tuple) else final  # an LSTM adds its cell states

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> "LSTM":
        """Split the layers on a GPU: between them cuDNN would draw dropout from a state that no checkpoint has."""
        super()._apply(function, recurse)
        self.layers = split(self.recurrent) if self.recurrent.dropout and not next(self.parameters()).is_cpu else []
        return self


def split(recurrent: nn.RNNBase) -> list[nn.RNNBase]:
    """Return the layers of a recurrent network as networks of one layer, which share its weights."""
    cell: Any = type(recurrent)
    layers = []
    for number in range(recurrent.num_layers):
        width = getattr(recurrent, f"weight_ih_l{number}").shape[1]
        layer = cell(
            width, recurrent.hidden_size, batch_first=True, bidirectional=recurrent.bidirectional, device="meta"
        )
        for name, _ in list(layer.named_parameters()):
            setattr(layer, name, getattr(recurrent, name.replace("_l0", f"_l{number}")))
        layers.append(layer.to(next(recurrent.parameters()).device))  # in memory as cuDNN wants it
    return layers


def _weights(score: nn.Module, states: Tensor) -> Tensor:
    return score(states).softmax(dim=1)  # (B, H, 1), over the rows
