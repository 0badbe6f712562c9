"""The workload of every peer: its command line, its data, and the line that reports its result."""

import argparse
import json
import os
from dataclasses import dataclass

import torch
from networks import network
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import datasets, transforms

SETS = {"mnist": datasets.MNIST, "cifar10": datasets.CIFAR10}
# Mean and standard deviation of the training sets, per channel.
STATISTICS = {
    "mnist": ((0.1307,), (0.3081,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}


@dataclass(frozen=True)
class Workload:
    """SGD at a constant rate over the first `examples` images; the test set once, at the end."""

    model: str
    data: str
    batch: int
    epochs: int
    examples: int
    lr: float
    momentum: float
    seed: int
    workers: int
    variant: str

    @property
    def test_batch(self) -> int:
        """Batch size of the test, the same as dltrain's."""
        return 4 * self.batch


def parsed_workload(about: str | None) -> Workload:
    """Parse the workload from the command line and seed torch."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, choices=("mlp", "lenet", "cnn", "lstm", "attention"))
    parser.add_argument("--data", required=True, choices=SETS, help="read from the folder DLTRAIN_DATA")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--examples", type=int, default=60_000)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="processes of a DataLoader")
    parser.add_argument("--variant", default="", help="variant of a peer that has several")
    workload = Workload(**vars(parser.parse_args()))
    torch.manual_seed(workload.seed)
    return workload


def build_network(workload: Workload) -> nn.Module:
    """Build the network with its initial weights."""
    return network(workload.model, workload.data)


def dataset(workload: Workload, *, train: bool) -> Dataset[tuple[Tensor, int]]:
    """Return torchvision's data set, which converts an image to a normalized tensor when it is accessed."""
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(*STATISTICS[workload.data])])
    images = SETS[workload.data](os.environ["DLTRAIN_DATA"], train=train, transform=transform)
    return Subset(images, range(workload.examples)) if train and workload.examples < len(images) else images


def loaders(workload: Workload) -> tuple[DataLoader[tuple[Tensor, Tensor]], DataLoader[tuple[Tensor, Tensor]]]:
    """Return DataLoaders of the training and the test set."""
    options = {"num_workers": workload.workers, "persistent_workers": workload.workers > 0}
    return (
        DataLoader(dataset(workload, train=True), batch_size=workload.batch, shuffle=True, **options),
        DataLoader(dataset(workload, train=False), batch_size=workload.test_batch, **options),
    )


def tensors(workload: Workload, *, train: bool) -> tuple[Tensor, Tensor]:
    """Return all images (N, C, H, W), normalized float32, and labels (N,), in memory."""
    source = SETS[workload.data](os.environ["DLTRAIN_DATA"], train=train)
    count = workload.examples if train else len(source)
    images, labels = torch.as_tensor(source.data)[:count], torch.as_tensor(source.targets)[:count]
    images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in STATISTICS[workload.data])
    return images.float().div_(255).sub_(mean).div_(std).contiguous(), labels


def answer(workload: Workload, seconds: list[float], accuracy: float) -> None:
    """Print the line that benchmarks/training.py reads: images/s of each epoch and the test accuracy."""
    rates = [workload.examples / each for each in seconds]
    print("\n" + json.dumps({"images_per_second": rates, "accuracy": accuracy}), flush=True)
