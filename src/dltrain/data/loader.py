"""Batches, augmented and normalised as a whole, from a data set that is one tensor on the device, or a mapped file.

Shuffling and augmentation are pure functions of (seed, epoch): a resumed run gets the batches of an uninterrupted one.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice, pairwise
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn import functional as F

from dltrain.data.augmentation import Augmentation, SampledAugmentations, sample_epoch, seeded_generator
from dltrain.data.balance import balanced_order
from dltrain.data.mapped_images import MappedImages, blocks
from dltrain.data.splits import Examples
from dltrain.runtime.errors import ConfigError
from dltrain.runtime.torchrun import SINGLE_PROCESS, Processes

Positive = Annotated[float, Interval(gt=0)]
# Small batches are prepared together up to so many examples and bytes: fewer operations, still within the CPU cache.
GATHERED, GATHERED_BYTES, ON_GPU = 512, 2 << 20, 32  # ON_GPU: times as many there, as every operation is a launch
UNCHANGED = Augmentation()
Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each channel


class TensorLoader:
    """Batches of one split: `epoch` for training, `in_order` for evaluation."""

    def __init__(
        self,
        examples: Examples,
        device: torch.device,
        *,
        batch_size: int,
        statistics: Statistics,
        augmentation: Augmentation = UNCHANGED,
        balance: float = 0.0,  # how much more often rare classes come in an epoch, see balance.py
        seed: int = 0,
        processes: Processes = SINGLE_PROCESS,  # the ranks that divide each training batch among themselves
    ) -> None:
        self.images = examples.images.to(device)
        self.targets = examples.targets.to(device)
        self.batch_size = batch_size
        # One multiply and one add: a byte x becomes (x / 255 - mean) / std, a float (x - mean) / std.
        mean, std = statistics
        largest = 255 if self.images.dtype == torch.uint8 else 1
        # Expanded to (C, H, W): the CPU would broadcast a number per channel one pixel at a time.
        shape = self.images.shape[1:]
        scale = torch.tensor([1 / (largest * s) for s in std]).view(-1, 1, 1)
        shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).view(-1, 1, 1)
        self.scale, self.shift = (value.expand(shape).contiguous().to(device) for value in (scale, shift))
        self.classes = len(examples.classes)
        self.augmentation, self.seed, self.processes = augmentation, seed, processes
        shuffled = partial(torch.randperm, len(self.images))
        self.order = partial(balanced_order, examples.targets.cpu(), balance=balance) if balance else shuffled

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def epoch(self, epoch: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield shuffled, augmented images (B, C, H, W) and targets, (B, K) of mixed ones, from batch `first` on."""
        # Sampled on the CPU for the whole epoch, so that every device and every resumed run gets the same.
        generator = seeded_generator(self.seed, epoch)
        order = self.order(generator=generator)
        draws = None
        if self.augmentation != UNCHANGED:
            draws = sample_epoch(self.augmentation, order, self.images, self.batch_size, generator, self.seed, epoch)
        order = order.to(self.images.device)
        slices = [self._rank_slice(start) for start in range(0, len(order), self.batch_size)]
        batch_bytes = self.batch_size * self.images[0].numel() * 4  # as float32
        most = 1 if self.images.device.type == "cpu" else ON_GPU
        together = max(1, min(most * GATHERED // self.batch_size, most * GATHERED_BYTES // batch_bytes))
        # Grouped as in an uninterrupted run: where in memory a batch begins affects the rounding of matrix products.
        with ThreadPoolExecutor(1) as pool:
            for at in range(first - first % together, len(slices), together):
                parts = slices[at : at + together]
                images, targets = self._plain(order, parts) if draws is None else self._augmented(order, parts, draws)
                following = [order[part] for part in slices[at + together : at + 2 * together]]
                if isinstance(self.images, MappedImages) and following:
                    # A thread reads the next group from the disk, so that it is in memory when it is copied.
                    pool.submit(self.images.to("cpu").__getitem__, torch.cat(following))
                sizes = [part.stop - part.start for part in parts]
                ready = zip(images.split(sizes), targets.split(sizes), strict=True)
                yield from islice(ready, max(0, first - at), None)

    def _plain(self, order: Tensor, parts: list[slice]) -> tuple[Tensor, Tensor]:
        """Return the normalised images and the targets of some batches."""
        contiguous = all(one.stop == other.start for one, other in pairwise(parts))  # with a single process
        chosen = order[parts[0].start : parts[-1].stop] if contiguous else torch.cat([order[part] for part in parts])
        # For bytes twelve times as fast as images[chosen]. From a mapped file, [:] reads them.
        return self.normalize(self.images.index_select(0, chosen)[:]), self.targets.index_select(0, chosen)

    def _augmented(self, order: Tensor, parts: list[slice], draws: SampledAugmentations) -> tuple[Tensor, Tensor]:
        """Return the augmented images and the targets of some batches."""
        places = torch.cat([torch.arange(part.start, part.stop) for part in parts])
        images, targets = self._unmixed(order, places, draws)
        if "fractions" not in draws.parameters:  # nothing is mixed
            return images, targets
        # Mixed with the next image of the whole batch, which may belong to the part of another rank.
        starts = places - places % self.batch_size
        others = starts + (places - starts + 1) % (len(order) - starts).clamp(max=self.batch_size)
        other_images, other_targets = self._unmixed(order, others, draws)
        if not targets.is_floating_point():
            targets, other_targets = (F.one_hot(labels, self.classes).float() for labels in (targets, other_targets))
        return draws.apply_mix((images, targets), (other_images, other_targets), places)

    def _unmixed(self, order: Tensor, places: Tensor, draws: SampledAugmentations) -> tuple[Tensor, Tensor]:
        """Return normalised images, with all augmentations except mixing, and their targets, at places on the CPU."""
        chosen = order[places.to(order.device, non_blocking=True)]
        images = self.images.index_select(0, chosen)[:]
        return draws.apply(images, places, self.normalize), self.targets.index_select(0, chosen)

    def _rank_slice(self, start: int) -> slice:
        """Return this rank's part of the batch that begins at `start`; if it has none, the batch's first example."""
        rank, world = self.processes.rank, self.processes.world_size
        size = min(self.batch_size, len(self.images) - start)
        first, last = size * rank // world, size * (rank + 1) // world
        return slice(start + first, start + last) if first < last else slice(start, start + 1)

    def rank_weight(self, index: int) -> tuple[int, float]:
        """Return the size of batch `index` over all ranks, and this rank's weight in the mean over ranks."""
        rank, world = self.processes.rank, self.processes.world_size
        size = min(self.batch_size, len(self.images) - index * self.batch_size)
        part = size * (rank + 1) // world - size * rank // world
        return size, part * world / size

    def in_order(self, first: int = 0, every: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every `every`-th whole batch from batch `first` on, neither shuffled nor augmented."""
        for start in range(0, len(self.images), self.batch_size)[first::every]:
            part = slice(start, start + self.batch_size)
            yield self.normalize(self.images[part]), self.targets[part]

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise bytes or floats (B, C, H, W) to float32 with mean 0 and standard deviation 1 over the data set."""
        floats = images.float()
        # In place if the floats are new: a second tensor of their size would evict the first from the CPU cache.
        into = floats if floats is not images else None
        return torch.addcmul(self.shift, floats, self.scale, out=into)


def normalization(images: Tensor, *, mean: list[float] | None, std: list[Positive] | None) -> Statistics:
    """Return mean and standard deviation of each channel: the given ones, else those of the images; 0 and 1 for floats.

    Args:
        mean: subtracted from each channel (as a fraction of 255), one number or one per channel; null: the data's mean
        std: divisor of each channel; null: the data's standard deviation

    Raises ConfigError for a wrong number of values.
    """
    channels = images.shape[1]
    for key, given in (("mean", mean), ("std", std)):
        if given is not None and len(given) not in (1, channels):
            wanted = f"1 or {channels} numbers, one for each channel" if channels > 1 else "1 number"
            raise ConfigError(f"data.{key}={given}: must have {wanted}")
    is_computed = images.dtype == torch.uint8 and (mean is None or std is None)
    means, stds = channel_statistics(images) if is_computed else ((0.0,) * channels, (1.0,) * channels)
    means = means if mean is None else tuple(mean) * (channels // len(mean))
    return means, stds if std is None else tuple(std) * (channels // len(std))


def channel_statistics(images: Tensor) -> Statistics:
    """Return the exact mean and standard deviation of each channel of bytes (N, C, H, W), as fractions of 255."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.zeros(images.shape[1], 256, dtype=torch.float64)
    for block in blocks(images):  # bincount converts to int64: eight times the memory
        counts += torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in block.unbind(1)])
    weights = counts / counts.sum(1, keepdim=True)
    mean = (weights * levels).sum(1, keepdim=True)
    # At least one grey level, so that a channel of one colour is not divided by zero.
    std = (weights * (levels - mean) ** 2).sum(1).sqrt().clamp(min=1 / 255)
    return tuple(mean.flatten().tolist()), tuple(std.tolist())
