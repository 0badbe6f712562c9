"""LeNet-5 with max pooling and ReLU.

LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document recognition. Proc. IEEE, 1998.
"""

from torch import Tensor, nn


class LeNet(nn.Module):
    """LeNet-5: two 5x5 convolutions and three linear layers (LeCun et al., 1998).

    Raises ValueError for images too small for two 5x5 convolutions and two pools.
    """

    def __init__(self, *, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        # LeNet expects 32x32 images; with padding, 28x28 also reaches the linear layers as 16x5x5.
        padding = 2 if min(height, width) < 32 else 0
        rows, columns = (((side + 2 * padding - 4) // 2 - 4) // 2 for side in (height, width))
        if min(rows, columns) < 1:
            raise ValueError(f"lenet needs images of at least 12x12 pixels, the data has {height}x{width}")
        # Pooling before ReLU gives the same result as after it, for a quarter of the ReLU's work.
        self.features = nn.Sequential(
            nn.Conv2d(channels, 6, 5, padding=padding),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(6, 16, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(16 * rows * columns, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))  # (B, C, H, W) -> (B, 16, 5, 5) -> (B, K)
