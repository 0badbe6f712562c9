"""Pre-norm transformer encoder on patches or rows of an image, pooled by additive attention.

Vaswani et al.: Attention is all you need. NeurIPS 2017.
Dosovitskiy et al.: An image is worth 16x16 words. ICLR 2021.
"""

from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.nn import functional as F

Size = Annotated[int, Interval(ge=1, le=1_000_000)]
Depth = Annotated[int, Interval(ge=1, le=256)]
Probability = Annotated[float, Interval(ge=0, lt=1)]


class Attention(nn.Module):
    """Multi-head self-attention over patches or rows, learned positions, additive attention pooling.

    Args:
        tokens: `patches` cuts the image into squares, `rows` takes each row of pixels
        patch: side of a square in pixels; must divide both sides of the image
        width: features of a token
        depth: transformer blocks
        heads: attention heads; must divide the width
        dropout: fraction of features dropped after each attention and each MLP

    Raises ValueError if patch does not divide the sides of the image, or heads the width.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        num_classes: int,
        tokens: Literal["patches", "rows"],
        patch: Size,
        width: Size,
        depth: Depth,
        heads: Size,
        dropout: Probability,
    ) -> None:
        super().__init__()
        channels, rows, columns = input_shape
        if tokens == "patches" and (rows % patch or columns % patch):
            raise ValueError(f"model.patch must divide {rows}x{columns}. Received {patch}")
        if width % heads:
            raise ValueError(f"model.heads must divide model.width={width}. Received {heads}")
        kernel = (patch, patch) if tokens == "patches" else (1, columns)
        self.embed = nn.Conv2d(channels, width, kernel, stride=kernel)
        self.grid = rows // kernel[0], columns // kernel[1]
        # Standard deviation 1 as in nn.Embedding: with the usual 0.02 a small network learns positions late.
        self.positions = nn.Parameter(torch.randn(1, self.grid[0] * self.grid[1], width))
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.score = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self._tokens(images)
        return self.classifier((self._weights(x) * x).sum(dim=1))  # (B, K)

    def attention_map(self, images: Tensor) -> Tensor:
        """Return the pooling weights (B, h, w), which add up to 1, of h x w patches or of h x 1 rows."""
        return self._weights(self._tokens(images)).view(-1, *self.grid)

    def _tokens(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2) + self.positions  # (B, C, H, W) -> (B, T, width)
        return self.norm(self.blocks(x))

    def _weights(self, x: Tensor) -> Tensor:
        return self.score(x).softmax(dim=1)  # (B, T, 1), over the tokens


class Block(nn.Module):
    """One pre-norm transformer block: self-attention, then an MLP four times as wide."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        B, T, W = x.shape
        # (B, T, 3*W) -> three of (B, heads, T, W / heads)
        query, key, value = self.query_key_value(self.norm1(x)).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(B, T, W)
        x = x + self.drop(self.project(mixed))
        return x + self.drop(self.mlp(self.norm2(x)))
