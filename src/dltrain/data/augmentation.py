"""Pictures of training, changed at random: whole batches at once, by numbers that were drawn for a whole epoch.

What is drawn for a picture depends on seed, epoch and its place in the epoch's order alone: every device, every resume
and every number of processes sees the same pictures.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy
import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn import functional as F

Pixels = Annotated[int, Interval(ge=0, le=8192)]
Degrees = Annotated[float, Interval(ge=0, le=180)]
Size = Annotated[float, Interval(ge=0)]
# How far, in parts of a picture's side, displacements of neighbours are alike: 4 pixels of 28 (Simard et al., 2003).
SMOOTH = 1 / 7


@dataclass(frozen=True)
class Augmentation:
    """What is done to the pictures of training, in the order of its keys.

    Args:
        crop: pixels of black on each side, from which a window of the old size is cut at random; 0 for none
        flip: mirror every other picture left to right, at random; `alternate` for each picture in every second epoch
        rotate: degrees by which pictures are turned at most, to either side
        elastic: pixels by which points are moved, smoothly (standard deviation; Simard et al., 2003); 0 for none
        cutout: side of a square that is wiped out in each picture, in pixels (DeVries, Taylor, 2017); 0 for none
        mixup: pairs of pictures and their targets are blended, by Beta(mixup, mixup) (Zhang et al., 2018); 0 for none
        cutmix: a box of each picture is that of another, by Beta(cutmix, cutmix) (Yun et al., 2019); 0 for none
    """

    crop: Pixels = 0
    flip: bool | Literal["alternate"] = False
    rotate: Degrees = 0.0
    elastic: Size = 0.0
    cutout: Pixels = 0
    mixup: Size = 0.0
    cutmix: Size = 0.0


@dataclass(frozen=True)
class SampledAugmentations:
    """What was drawn for the N pictures of an epoch, by their places in its order; None for what is not done.

    shifts: (N, 2) top and left of the window in the padded picture
    flips: (N,) whether it is mirrored
    angles: (N,) in radians
    holes: (N, 2) row and column of the middle of what is wiped out
    shares: (N,) what is left of a picture when it is mixed with another
    boxes: (N, 4) first and last row, first and last column of what is taken from the other one; empty for a blend
    """

    augmentation: Augmentation
    seed: int
    epoch: int
    batch_size: int
    shifts: Tensor | None
    flips: Tensor | None
    angles: Tensor | None
    holes: Tensor | None
    shares: Tensor | None
    boxes: Tensor | None

    @property
    def mixes(self) -> bool:
        """Whether each picture is mixed with another one."""
        return self.shares is not None

    def apply_geometric(self, images: Tensor, places: Tensor) -> Tensor:
        """Pictures (B, C, H, W), bytes or floats, that stand in these places (B,): cropped, mirrored, turned, bent."""
        if self.shifts is not None:
            images = random_crop(images, self.shifts[places], self.augmentation.crop)
        if self.flips is not None:
            images = random_flip(images, self.flips[places])
        if self.angles is not None or self.augmentation.elastic:
            angles = torch.zeros(len(places), device=images.device) if self.angles is None else self.angles[places]
            images = warp(images, angles, self._displacements(places, images))
        return images

    def apply_cutout(self, images: Tensor, places: Tensor) -> Tensor:
        """Normalised pictures without what is wiped out of them."""
        if self.holes is None:
            return images
        return cutout(images, self.holes[places], self.augmentation.cutout)

    def apply_mix(
        self, images: Tensor, targets: Tensor, other_images: Tensor, other_targets: Tensor, places: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Pictures and targets (B, …) mixed with others'."""
        assert self.shares is not None
        assert self.boxes is not None
        images = mix_images(images, other_images, self.shares[places], self.boxes[places])
        shares = self.shares[places].view(-1, *[1] * (targets.ndim - 1))
        return images, shares * targets + (1 - shares) * other_targets

    def _displacements(self, places: Tensor, images: Tensor) -> Tensor | None:
        """Down and to the right (B, 2, H, W), in pixels; drawn batch by batch, as an epoch of them is too much."""
        if not self.augmentation.elastic:
            return None
        H, W = images.shape[2:]
        whole, own = self.batch_size, places.cpu()
        first, last = int(own.min()) // whole, int(own.max()) // whole
        noise = torch.empty(1 + last - first, whole, 2, H, W)
        for index, of_batch in enumerate(noise, first):
            of_batch.uniform_(-1, 1, generator=seeded_generator(self.seed, self.epoch, 2 + index))
        return smooth(noise.flatten(0, 1)[own - first * whole].to(images.device)) * self.augmentation.elastic


def sample_augmentations(
    augmentation: Augmentation,
    order: Tensor,
    shape: Sequence[int],
    generator: torch.Generator,
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    device: torch.device,
) -> SampledAugmentations:
    """Draw for all pictures of an epoch, of `shape` (C, H, W); `order` (N,) holds the numbers of the examples."""
    count, (_, H, W) = len(order), shape
    shifts = flips = angles = holes = shares = boxes = None
    if augmentation.crop:
        shifts = torch.randint(0, 2 * augmentation.crop + 1, (count, 2), generator=generator)
    if augmentation.flip == "alternate":
        begins = torch.rand(count, generator=seeded_generator(seed, 0, 1)) < 0.5
        flips = (begins ^ bool(epoch % 2))[order]
    elif augmentation.flip:
        flips = torch.rand(count, generator=generator) < 0.5
    if augmentation.rotate:
        angles = torch.empty(count).uniform_(-1, 1, generator=generator) * math.radians(augmentation.rotate)
    if augmentation.cutout:
        holes = (torch.rand(count, 2, generator=generator) * torch.tensor([H, W])).long()
    if augmentation.mixup or augmentation.cutmix:
        shares, boxes = _sample_mix(augmentation, count, H, W, seed, epoch)
    on_device = [each if each is None else each.to(device) for each in (shifts, flips, angles, holes, shares, boxes)]
    return SampledAugmentations(augmentation, seed, epoch, min(batch_size, count), *on_device)


def _sample_mix(augmentation: Augmentation, count: int, H: int, W: int, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """Shares (N,) and boxes (N, 4); where both ways are asked for each picture goes one of them."""
    generator = numpy.random.default_rng([seed, epoch, 1])  # torch's own has no beta distribution
    cuts = numpy.full(count, not augmentation.mixup)
    if augmentation.mixup and augmentation.cutmix:
        cuts = generator.random(count) < 0.5
    shares = generator.beta(augmentation.mixup or 1, augmentation.mixup or 1, count)
    areas = 1 - generator.beta(augmentation.cutmix or 1, augmentation.cutmix or 1, count)
    middles = generator.random((count, 2)) * [H, W]
    halves = numpy.sqrt(areas)[:, None] * [H, W] / 2
    first = numpy.clip(middles - halves, 0, [H, W]).astype(numpy.int64)
    last = numpy.clip(middles + halves, 0, [H, W]).astype(numpy.int64)
    boxes = numpy.stack([first[:, 0], last[:, 0], first[:, 1], last[:, 1]], axis=1) * cuts[:, None]
    cut = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2]) / (H * W)  # what is left of it inside the picture
    return torch.from_numpy(numpy.where(cuts, 1 - cut, shares)).float(), torch.from_numpy(boxes)


def seeded_generator(*words: int) -> torch.Generator:
    """A generator that depends on these numbers alone; SeedSequence mixes them so that near ones differ."""
    word = numpy.random.SeedSequence(words).generate_state(1)[0]
    return torch.Generator().manual_seed(int(word))


def random_crop(images: Tensor, shifts: Tensor, padding: int) -> Tensor:
    """Windows of images (B, C, H, W) padded with zeros; shifts (B, 2) are their top and left, 0..2*padding."""
    B, _, H, W = images.shape
    windows = F.pad(images, [padding] * 4).unfold(2, H, 1).unfold(3, W, 1)  # (B, C, 2p+1, 2p+1, H, W), a view
    return windows[torch.arange(B, device=images.device), :, shifts[:, 0], shifts[:, 1]]


def random_flip(images: Tensor, flips: Tensor) -> Tensor:
    """Images (B, C, H, W) mirrored left to right where flips (B,) is true."""
    return torch.where(flips.view(-1, 1, 1, 1), images.flip(3), images)


def warp(images: Tensor, angles: Tensor, displacements: Tensor | None) -> Tensor:
    """Images (B, C, H, W) turned about their middle and bent, as floats; between pixels bilinear, outside zero.

    Each pixel shows the point of the old picture that lies at its own place, turned by its angle (B,) in radians (seen
    by eye the picture turns counterclockwise), and moved by its displacement (B, 2, H, W) down and to the right.
    """
    H, W = images.shape[2:]
    down = (torch.arange(H, device=images.device) - (H - 1) / 2).view(1, H, 1)
    right = (torch.arange(W, device=images.device) - (W - 1) / 2).view(1, 1, W)
    cos, sin = angles.cos().view(-1, 1, 1), angles.sin().view(-1, 1, 1)
    rows, columns = cos * down + sin * right, cos * right - sin * down
    if displacements is not None:
        rows, columns = rows + displacements[:, 0], columns + displacements[:, 1]
    grid = torch.stack([columns * (2 / W), rows * (2 / H)], dim=3)  # (B, H, W, 2), from -1 to 1
    return F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def smooth(noise: Tensor) -> Tensor:
    """Noise (B, 2, H, W), even between -1 and 1, as a smooth field of standard deviation 1 in its middle."""
    down, right = (_gaussian(side, noise.device) for side in noise.shape[2:])
    deviation = math.sqrt(1 / 3) * down[len(down) // 2].norm() * right[len(right) // 2].norm()
    return down @ noise @ right.T / deviation


def _gaussian(side: int, device: torch.device) -> Tensor:
    """A matrix (side, side) whose product smooths: each row is a bell about its own pixel."""
    at = torch.arange(side, dtype=torch.float32, device=device)
    return torch.exp(-(((at.view(-1, 1) - at) / (SMOOTH * side)) ** 2) / 2)


def cutout(images: Tensor, middles: Tensor, side: int) -> Tensor:
    """Images (B, C, H, W) with zeros in a square about its middle (B, 2), cut where it leaves the picture."""
    return images.masked_fill(_inside(images, middles - side // 2, middles + (side - side // 2)), 0.0)


def mix_images(images: Tensor, others: Tensor, shares: Tensor, boxes: Tensor) -> Tensor:
    """Images (B, C, H, W) with those parts of the others that boxes (B, 4) say; where they are empty, both blended."""
    inside = _inside(images, boxes[:, 0::2], boxes[:, 1::2])
    is_cut = (boxes[:, 1] > boxes[:, 0]).view(-1, 1, 1, 1)
    shares = shares.view(-1, 1, 1, 1)
    return torch.where(is_cut, torch.where(inside, others, images), shares * images + (1 - shares) * others)


def _inside(images: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Masks (B, 1, H, W) of what lies from `first` to before `last`, both (B, 2) of rows and columns."""
    H, W = images.shape[2:]
    rows, columns = torch.arange(H, device=images.device), torch.arange(W, device=images.device)
    down = (rows >= first[:, :1]) & (rows < last[:, :1])
    right = (columns >= first[:, 1:]) & (columns < last[:, 1:])
    return (down.unsqueeze(2) & right.unsqueeze(1)).unsqueeze(1)
