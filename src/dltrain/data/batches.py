"""Batches from a data set that lies on the device as one tensor.

Shuffling and augmentation are pure functions of (seed, epoch): a resumed run draws what an unbroken one draws, and
nothing depends on workers. Crop, flip and normalisation work on whole batches.
"""

from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Annotated

import numpy
import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn import functional as F

from dltrain.data.examples import Examples
from dltrain.errors import ConfigError
from dltrain.launch import ALONE, Processes

Positive = Annotated[float, Interval(gt=0)]
# Made ready at once where batches are smaller: fewer operations, and what a batch needs is still in the cache.
GATHERED, GATHERED_BYTES = 512, 2 << 20
Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each channel


class Batches:
    """Batches of one split: `epoch` for training, `in_order` for evaluation.

    Args:
        crop: pixels of zero padding on each side, from which a window of the old size is cut at random; 0 for none
        flip: mirror every other picture left to right, at random
        processes: of a batch of training each takes its own part
    """

    def __init__(
        self,
        examples: Examples,
        device: torch.device,
        *,
        batch_size: int,
        statistics: Statistics,
        crop: Annotated[int, Interval(ge=0, le=8192)] = 0,
        flip: bool = False,
        seed: int = 0,
        processes: Processes = ALONE,
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
        self.crop, self.flip, self.seed, self.processes = crop, flip, seed, processes

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def epoch(self, epoch: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled, augmented batches (B, C, H, W) and targets of an epoch, from batch `first` on."""
        device, count = self.images.device, len(self.images)
        # Drawn on the CPU and for the whole epoch, so that every device and every resume sees the same.
        generator = epoch_generator(self.seed, epoch)
        order = torch.randperm(count, generator=generator).to(device)
        shifts = torch.randint(0, 2 * self.crop + 1, (count, 2), generator=generator).to(device) if self.crop else None
        flips = (torch.rand(count, generator=generator) < 0.5).to(device) if self.flip else None
        own = [self._own(start) for start in range(0, count, self.batch_size)]
        of_batch = self.batch_size * self.images[0].numel() * 4  # bytes, as floats
        together = max(1, min(GATHERED // self.batch_size, GATHERED_BYTES // of_batch))
        # From where an unbroken run would: products round by where in memory a batch begins.
        for at in range(first - first % together, len(own), together):
            parts = own[at : at + together]
            chosen = _joined(order, parts)
            images = self.images.index_select(0, chosen)  # of bytes twelve times as fast as images[chosen]
            if shifts is not None:
                images = random_crop(images, _joined(shifts, parts), self.crop)
            if flips is not None:
                images = random_flip(images, _joined(flips, parts))
            sizes = [part.stop - part.start for part in parts]
            targets = self.targets.index_select(0, chosen)
            ready = zip(self.normalize(images).split(sizes), targets.split(sizes), strict=True)
            yield from islice(ready, max(0, first - at), None)

    def _own(self, start: int) -> slice:
        """This process's part of the batch from `start` on; the batch's first example where it has none."""
        rank, world = self.processes.rank, self.processes.world
        size = min(self.batch_size, len(self.images) - start)
        first, last = size * rank // world, size * (rank + 1) // world
        return slice(start + first, start + last) if first < last else slice(start, start + 1)

    def share(self, index: int) -> tuple[int, float]:
        """Examples of batch `index` of an epoch, and what this process's part counts in the mean over all."""
        rank, world = self.processes.rank, self.processes.world
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
        return torch.addcmul(self.shift, images.float(), self.scale)


def _joined(drawn: Tensor, parts: list[slice]) -> Tensor:
    """The parts of what was drawn for an epoch, one after another."""
    follow_on = all(one.stop == other.start for one, other in pairwise(parts))  # where there is one process alone
    return drawn[parts[0].start : parts[-1].stop] if follow_on else torch.cat([drawn[part] for part in parts])


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """A generator that depends on seed and epoch alone; SeedSequence mixes the two so that near ones differ."""
    word = numpy.random.SeedSequence([seed, epoch]).generate_state(1)[0]
    return torch.Generator().manual_seed(int(word))


def random_crop(images: Tensor, shifts: Tensor, padding: int) -> Tensor:
    """Windows of images (B, C, H, W) padded with zeros; shifts (B, 2) are their top and left, 0..2*padding."""
    B, _, H, W = images.shape
    windows = F.pad(images, [padding] * 4).unfold(2, H, 1).unfold(3, W, 1)  # (B, C, 2p+1, 2p+1, H, W), a view
    return windows[torch.arange(B, device=images.device), :, shifts[:, 0], shifts[:, 1]]


def random_flip(images: Tensor, flips: Tensor) -> Tensor:
    """Images (B, C, H, W) mirrored left to right where flips (B,) is true."""
    return torch.where(flips.view(-1, 1, 1, 1), images.flip(3), images)


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
