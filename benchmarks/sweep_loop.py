"""Hand-written training loops: images through torchvision and a DataLoader, or from tensors in memory.

Both train the same network on all of MNIST with SGD at a constant rate and test it at the end, like dltrain.
"""

import functools
import os
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

ROOT = os.environ["DLTRAIN_DATA"]
MEAN, STD = 0.1307, 0.3081


def network(name: str) -> nn.Module:
    """Build dltrain's mlp or lenet with the default keys."""
    if name == "mlp":
        return nn.Sequential(
            nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
        )
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


@functools.cache
def tensors(train: bool) -> tuple[Tensor, Tensor]:
    """Return normalized images (N, 1, 28, 28) and labels (N,); read once per process."""
    mnist = datasets.MNIST(ROOT, train=train)
    return ((mnist.data.float() / 255 - MEAN) / STD).unsqueeze(1), mnist.targets


def batches_of_tensors(train: bool, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    images, labels = tensors(train)
    order = torch.randperm(len(labels)) if train else torch.arange(len(labels))
    for chosen in order.split(size):
        yield images[chosen], labels[chosen]


def batches_of_loader(train: bool, size: int) -> Iterable[tuple[Tensor, Tensor]]:
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    return DataLoader(datasets.MNIST(ROOT, train=train, transform=transform), batch_size=size, shuffle=train)


def train(loop: str, model: str, lr: float, momentum: float, seed: int, epochs: int) -> float:
    """Train a network and return its accuracy on the test set."""
    torch.manual_seed(seed)
    batches = {"loader": batches_of_loader, "tensors": batches_of_tensors}[loop]
    net = network(model)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum)
    for _ in range(epochs):
        for images, labels in batches(True, 64):
            optimizer.zero_grad()
            functional.cross_entropy(net(images), labels).backward()
            optimizer.step()
    correct = 0
    with torch.no_grad():
        for images, labels in batches(False, 256):
            correct += int((net(images).argmax(1) == labels).sum())
    return correct / 10_000
