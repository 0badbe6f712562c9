"""Batches from a data set that lies on the device as one tensor.

Shuffling and augmentation are pure functions of (seed, epoch): a resumed run draws what an unbroken one draws, and
nothing depends on workers. Augmentation and normalisation work on whole batches.
"""

from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn import functional as F

from dltrain.data.augmentation import Augmentation, SampledAugmentations, sample_augmentations, seeded_generator
from dltrain.data.splits import Examples
from dltrain.runtime.errors import ConfigError
from dltrain.runtime.torchrun import SINGLE_PROCESS, Processes

Positive = Annotated[float, Interval(gt=0)]
# Made ready at once where batches are smaller: fewer operations, and what a batch needs is still in the cache.
GATHERED, GATHERED_BYTES = 512, 2 << 20
UNCHANGED = Augmentation()
Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each channel


class TensorLoader:
    """Batches of one split: `epoch` for training, `in_order` for evaluation.

    Args:
        processes: of a batch of training each takes its own part
    """

    def __init__(
        self,
        examples: Examples,
        device: torch.device,
        *,
        batch_size: int,
        statistics: Statistics,
        augmentation: Augmentation = UNCHANGED,
        seed: int = 0,
        processes: Processes = SINGLE_PROCESS,
    ) -> None:
        self.images = examples.images.to(device)
        self.targets = examples.targets.to(device)
        self.batch_size = batch_size
        # One multiply and one add: a byte x becomes (x / 255 - mean) / std, a float (x - mean) / std.
        mean, std = statistics
        largest = 255 if self.images.dtype == torch.uint8 else 1
        # Written out to (C, H, W): with one number to be spread over a picture the CPU computes one pixel at a time.
        shape = self.images.shape[1:]
        scale = torch.tensor([1 / (largest * s) for s in std]).view(-1, 1, 1)
        shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).view(-1, 1, 1)
        self.scale, self.shift = (each.expand(shape).contiguous().to(device) for each in (scale, shift))
        self.classes = len(examples.classes)
        self.augmentation, self.seed, self.processes = augmentation, seed, processes

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def epoch(self, epoch: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled, augmented batches (B, C, H, W) and targets of an epoch, from batch `first` on.

        Targets of mixed pictures are shares (B, K) of each class.
        """
        device, count = self.images.device, len(self.images)
        # Drawn on the CPU and for the whole epoch, so that every device and every resume sees the same.
        generator = seeded_generator(self.seed, epoch)
        order = torch.randperm(count, generator=generator)
        draws = None
        if self.augmentation != UNCHANGED:
            draws = sample_augmentations(
                self.augmentation,
                order,
                self.images.shape[1:],
                generator,
                seed=self.seed,
                epoch=epoch,
                batch_size=self.batch_size,
                device=device,
            )
        order = order.to(device)
        own = [self._rank_slice(start) for start in range(0, count, self.batch_size)]
        of_batch = self.batch_size * self.images[0].numel() * 4  # bytes, as floats
        together = max(1, min(GATHERED // self.batch_size, GATHERED_BYTES // of_batch))
        # From where an unbroken run would: products round by where in memory a batch begins.
        for at in range(first - first % together, len(own), together):
            parts = own[at : at + together]
            images, targets = self._plain(order, parts) if draws is None else self._augmented(order, parts, draws)
            sizes = [part.stop - part.start for part in parts]
            ready = zip(images.split(sizes), targets.split(sizes), strict=True)
            yield from islice(ready, max(0, first - at), None)

    def _plain(self, order: Tensor, parts: list[slice]) -> tuple[Tensor, Tensor]:
        """Normalised pictures and targets of some batches."""
        follow_on = all(one.stop == other.start for one, other in pairwise(parts))  # where one process is alone
        chosen = order[parts[0].start : parts[-1].stop] if follow_on else torch.cat([order[part] for part in parts])
        # Of bytes twelve times as fast as images[chosen].
        return self.normalize(self.images.index_select(0, chosen)), self.targets.index_select(0, chosen)

    def _augmented(self, order: Tensor, parts: list[slice], draws: SampledAugmentations) -> tuple[Tensor, Tensor]:
        """The same, augmented."""
        places = torch.cat([torch.arange(part.start, part.stop, device=order.device) for part in parts])
        images, targets = self._augmented_images(order, places, draws), self.targets.index_select(0, order[places])
        if not draws.mixes:
            return images, targets
        # Each with the next one of its batch, of which another process may have its part.
        starts = places - places % self.batch_size
        others = starts + (places - starts + 1) % (len(order) - starts).clamp(max=self.batch_size)
        other_targets = self.targets.index_select(0, order[others])
        if not targets.is_floating_point():
            targets, other_targets = (F.one_hot(each, self.classes).float() for each in (targets, other_targets))
        return draws.apply_mix(images, targets, self._augmented_images(order, others, draws), other_targets, places)

    def _augmented_images(self, order: Tensor, places: Tensor, draws: SampledAugmentations) -> Tensor:
        """Normalised pictures, augmented one by one."""
        images = draws.apply_geometric(self.images.index_select(0, order[places]), places)
        return draws.apply_cutout(self.normalize(images), places)

    def _rank_slice(self, start: int) -> slice:
        """This process's part of the batch from `start` on; the batch's first example where it has none."""
        rank, world = self.processes.rank, self.processes.world_size
        size = min(self.batch_size, len(self.images) - start)
        first, last = size * rank // world, size * (rank + 1) // world
        return slice(start + first, start + last) if first < last else slice(start, start + 1)

    def rank_weight(self, index: int) -> tuple[int, float]:
        """Examples of batch `index` of an epoch, and what this process's part counts in the mean over all."""
        rank, world = self.processes.rank, self.processes.world_size
        size = min(self.batch_size, len(self.images) - index * self.batch_size)
        own = size * (rank + 1) // world - size * rank // world
        return size, own * world / size

    def in_order(self, first: int = 0, every: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches as they lie, neither shuffled nor augmented; each `every`-th from `first` on."""
        parts = zip(self.images.split(self.batch_size), self.targets.split(self.batch_size), strict=True)
        for images, targets in islice(parts, first, None, every):
            yield self.normalize(images), targets

    def normalize(self, images: Tensor) -> Tensor:
        """Bytes or floats (B, C, H, W) to float32 with the data set's mean 0 and standard deviation 1."""
        floats = images.float()
        # Into the new floats themselves: a second tensor of their size would take the place of what is in the cache.
        into = floats if floats is not images else None  # of a data set of floats they are its own
        return torch.addcmul(self.shift, floats, self.scale, out=into)


def normalization(images: Tensor, *, mean: list[float] | None, std: list[Positive] | None) -> Statistics:
    """Mean and standard deviation of each channel: those given, else those of the images; numbers stay as they are.

    Args:
        mean: what is taken from each channel (as a share of 255), one number or one a channel; null: the data's own
        std: what each channel is divided by; null: the data's own

    Raises ConfigError where there is not one number for each channel.
    """
    channels = images.shape[1]
    for key, given in (("mean", mean), ("std", std)):
        if given is not None and len(given) not in (1, channels):
            wanted = f"1 or {channels} numbers, one for each channel" if channels > 1 else "1 number"
            raise ConfigError(f"data.{key}={given}: must have {wanted}")
    own: Statistics = (0.0,) * channels, (1.0,) * channels
    if images.dtype == torch.uint8 and (mean is None or std is None):
        own = channel_statistics(images)
    return (
        own[0] if mean is None else tuple(mean) * (channels // len(mean)),
        own[1] if std is None else tuple(std) * (channels // len(std)),
    )


def channel_statistics(images: Tensor) -> Statistics:
    """Mean and standard deviation of each channel of uint8 images (N, C, H, W), as shares of 255; exact."""
    mean, std = [], []
    levels = torch.arange(256, dtype=torch.float64) / 255
    for channel in images.unbind(1):
        counts = torch.zeros(256, dtype=torch.float64)
        for part in channel.split(10_000):  # bincount works on int64, eight times the memory
            counts += torch.bincount(part.flatten(), minlength=256)
        share = counts / counts.sum()
        center = (share * levels).sum()
        mean.append(float(center))
        # One grey level at least: a channel of one colour must not be divided by zero.
        std.append(max(float((share * (levels - center) ** 2).sum().sqrt()), 1 / 255))
    return tuple(mean), tuple(std)
