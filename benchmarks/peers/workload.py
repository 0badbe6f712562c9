"""What every peer is asked to train, the data for it, and the line in which it answers."""

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
# Of the training sets, per channel.
STATISTICS = {
    "mnist": ((0.1307,), (0.3081,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}


@dataclass(frozen=True)
class Workload:
    """SGD at a constant rate over the first `examples` pictures; the test set once, at the end."""

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
        """Pictures that are tested at once: as many as dltrain takes."""
        return 4 * self.batch


def asked(about: str | None) -> Workload:
    """The workload of the command line; seeds torch."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, choices=("mlp", "lenet", "cnn", "lstm", "attention"))
    parser.add_argument("--data", required=True, choices=SETS, help="is read from the folder that DLTRAIN_DATA names")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--examples", type=int, default=60_000)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="processes of a DataLoader")
    parser.add_argument("--variant", default="", help="what a peer does otherwise, where it has a choice")
    workload = Workload(**vars(parser.parse_args()))
    torch.manual_seed(workload.seed)
    return workload


def built(workload: Workload) -> nn.Module:
    """Its network, at its start."""
    return network(workload.model, workload.data)


def pictures(workload: Workload, *, train: bool) -> Dataset[tuple[Tensor, int]]:
    """torchvision's data set, each picture turned into a normalised tensor when it is asked for."""
    turn = transforms.Compose([transforms.ToTensor(), transforms.Normalize(*STATISTICS[workload.data])])
    found = SETS[workload.data](os.environ["DLTRAIN_DATA"], train=train, transform=turn)
    return Subset(found, range(workload.examples)) if train and workload.examples < len(found) else found


def loaders(workload: Workload) -> tuple[DataLoader[tuple[Tensor, Tensor]], DataLoader[tuple[Tensor, Tensor]]]:
    """DataLoaders of the training and the test set."""
    options = {"num_workers": workload.workers, "persistent_workers": workload.workers > 0}
    return (
        DataLoader(pictures(workload, train=True), batch_size=workload.batch, shuffle=True, **options),
        DataLoader(pictures(workload, train=False), batch_size=workload.test_batch, **options),
    )


def tensors(workload: Workload, *, train: bool) -> tuple[Tensor, Tensor]:
    """All images (N, C, H, W), normalised, in float32, and labels (N,), in memory."""
    found = SETS[workload.data](os.environ["DLTRAIN_DATA"], train=train)
    count = workload.examples if train else len(found)
    images, labels = torch.as_tensor(found.data)[:count], torch.as_tensor(found.targets)[:count]
    images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in STATISTICS[workload.data])
    return images.float().div_(255).sub_(mean).div_(std).contiguous(), labels


def answer(workload: Workload, seconds: list[float], accuracy: float) -> None:
    """Print the line that benchmarks/training.py reads: images/s of each epoch, share of the test set that is right."""
    rates = [workload.examples / each for each in seconds]
    print("\n" + json.dumps({"images_per_second": rates, "accuracy": accuracy}), flush=True)
