"""Pre-norm transformer encoder on patches, rows or convolutions of an image, pooled by additive attention.

Vaswani et al.: Attention is all you need. NeurIPS 2017.
Dosovitskiy et al.: An image is worth 16x16 words. ICLR 2021.
Hassani et al.: Escaping the big data paradigm with compact transformers. arXiv 2104.05704 (convolutional tokens).
Huang et al.: Deep networks with stochastic depth. ECCV 2016.
"""

from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.nn import functional as F

Size = Annotated[int, Interval(ge=1, le=1_000_000)]
Depth = Annotated[int, Interval(ge=1, le=256)]
Probability = Annotated[float, Interval(ge=0, lt=1)]
LONGEST = 256  # most tokens for which the T x T attention weights are kept in memory


class Attention(nn.Module):
    """Multi-head self-attention over patches, rows or convolutions, learned positions, additive attention pooling.

    Args:
        tokens: `patches` cuts the image into squares, `rows` takes each row of pixels, `convolutions` uses 3x3
            convolutions with max pooling, so that neighbouring tokens see overlapping pixels
        patch: side of a square in pixels; must divide both sides of the image; with `convolutions` 2, 4, 8 or 16,
            which gives 1, 2, 3 or 4 convolutions
        width: features of a token
        depth: transformer blocks
        heads: attention heads; must divide the width
        dropout: fraction of features dropped after each attention and each MLP
        drop_path: stochastic depth: probability that an image skips a branch (attention or MLP) of the last block; it
            rises linearly from 0 in the first block; a single block has the full value

    Raises ValueError if patch does not divide the sides of the image, or is not 2, 4, 8 or 16 with convolutions, or if
    heads does not divide the width.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        num_classes: int,
        tokens: Literal["patches", "rows", "convolutions"],
        patch: Size,
        width: Size,
        depth: Depth,
        heads: Size,
        dropout: Probability,
        drop_path: Probability,
    ) -> None:
        super().__init__()
        channels, rows, columns = input_shape
        if tokens != "rows" and (rows % patch or columns % patch):
            raise ValueError(f"model.patch must divide {rows}x{columns}. Received {patch}")
        if tokens == "convolutions" and patch not in (2, 4, 8, 16):
            raise ValueError(f"model.patch must be 2, 4, 8 or 16 with model.tokens=convolutions. Received {patch}")
        if width % heads:
            raise ValueError(f"model.heads must divide model.width={width}. Received {heads}")
        kernel = (1, columns) if tokens == "rows" else (patch, patch)
        self.embed: nn.Module
        if tokens == "convolutions":
            self.embed = convolutions(channels, width, patch)
        else:
            self.embed = nn.Conv2d(channels, width, kernel, stride=kernel)
        self.grid = rows // kernel[0], columns // kernel[1]
        self.faster_in_bf16 = self.grid[0] * self.grid[1] <= LONGEST  # for device.precision=auto
        # Standard deviation 1 as in nn.Embedding: with the usual 0.02 a small network learns positions late.
        self.positions = nn.Parameter(torch.randn(1, self.grid[0] * self.grid[1], width))
        rates = [drop_path * number / (depth - 1) for number in range(depth)] if depth > 1 else [drop_path]
        self.blocks = nn.Sequential(*(Block(width, heads, dropout, rate) for rate in rates))
        self.norm = nn.LayerNorm(width)
        self.score = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self._tokens(images)
        return self.classifier((self._weights(x) * x).sum(dim=1))  # (B, K)

    def attention_map(self, images: Tensor) -> Tensor:
        """Return the pooling weights (B, h, w), which add up to 1, of h x w patches or squares, or of h x 1 rows."""
        return self._weights(self._tokens(images)).view(-1, *self.grid)

    def _tokens(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2) + self.positions  # (B, C, H, W) -> (B, T, width)
        return self.norm(self.blocks(x))

    def _weights(self, x: Tensor) -> Tensor:
        return self.score(x).softmax(dim=1)  # (B, T, 1), over the tokens


def convolutions(channels: int, width: int, patch: int) -> nn.Sequential:
    """Return 3x3 convolutions that each halve the image, down to 1 / patch, and double the channels, up to width."""
    layers: list[nn.Module] = []
    while patch > 1:
        patch //= 2
        out_channels = max(1, width // patch)
        layers += [
            nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, padding=1),
        ]
        channels = out_channels
    return nn.Sequential(*layers)


class Block(nn.Module):
    """One pre-norm transformer block: self-attention, then an MLP four times as wide."""

    def __init__(self, width: int, heads: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.heads, self.drop_path = heads, drop_path
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        B, T, W = x.shape
        # (B, T, 3*W) -> three of (B, heads, T, W / heads)
        query, key, value = self.query_key_value(self.norm1(x)).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = attend(query, key, value).transpose(1, 2).reshape(B, T, W)
        x = x + self._skip(self.drop(self.project(mixed)))
        return x + self._skip(self.drop(self.mlp(self.norm2(x))))

    def _skip(self, branch: Tensor) -> Tensor:
        """Zero the branch (B, T, W) of some images in training, and scale the others by as much as is lost."""
        if not self.drop_path:
            return branch
        return branch * F.dropout(branch.new_ones(len(branch), 1, 1), self.drop_path, self.training)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return softmax(QK' / sqrt(d)) V of queries, keys and values (B, heads, T, d): equation 1 of Vaswani et al."""
    # On a CPU, torch's fused kernel makes a step in bf16 up to 3.3 times as long.
    if query.dtype == torch.bfloat16 and query.device.type == "cpu" and query.shape[2] <= LONGEST:
        return (query * query.shape[3] ** -0.5 @ key.mT).softmax(dim=3) @ value
    return F.scaled_dot_product_attention(query, key, value)
