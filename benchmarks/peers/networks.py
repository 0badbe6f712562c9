"""The five networks of the benchmark, written by hand; with equal seeds they start with the weights of dltrain's.

tests/test_benchmarks.py compares them. B images, C channels, H x W pixels, T tokens.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}


class LSTM(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(features, 128, batch_first=True)
        self.classifier = nn.Linear(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        states, _ = self.recurrent(images.transpose(1, 2).flatten(2))  # (B, C, H, W) -> (B, H, C*W) -> (B, H, 128)
        return self.classifier(states[:, -1])


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        B, T, W = x.shape
        query, key, value = self.query_key_value(self.norm1(x)).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = x + self.project(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(B, T, W))
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """A pre-norm transformer on patches of 4x4, pooled by learned weights."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, 64, 4, stride=4)
        self.positions = nn.Parameter(torch.randn(1, (side // 4) ** 2, 64))
        self.blocks = nn.Sequential(Block(64, 4), Block(64, 4))
        self.norm = nn.LayerNorm(64)
        self.score = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
        self.classifier = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2) + self.positions  # (B, T, 64)
        x = self.norm(self.blocks(x))
        return self.classifier((self.score(x).softmax(dim=1) * x).sum(dim=1))


def network(name: str, data: str) -> nn.Module:
    """Build a new network for the images of a data set."""
    channels, side, _ = SHAPES[data]
    if name == "mlp":
        return nn.Sequential(
            nn.Flatten(), nn.Linear(channels * side**2, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(),
            nn.Linear(64, 10),
        )  # fmt: skip
    if name == "lenet":
        return nn.Sequential(
            nn.Conv2d(channels, 6, 5, padding=2 if side < 32 else 0), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
        )  # fmt: skip
    if name == "cnn":
        return nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(64 * (side // 4) ** 2, 128), nn.ReLU(), nn.Linear(128, 10),
        )  # fmt: skip
    return LSTM(channels * side) if name == "lstm" else Attention(channels, side)
