"""Random augmentation of training images, for whole batches at once, with parameters sampled for a whole epoch.

The parameters of an image depend only on the seed, the epoch and its position in the epoch's order, so that every
device, every resumed run and every number of processes sees the same images.
"""

import math
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
# Standard deviation of the smoothing as a fraction of the image's side: 4 pixels of 28 (Simard et al., 2003).
SMOOTH = 1 / 7


@dataclass(frozen=True)
class Augmentation:
    """Random changes of the training images, applied in the order of the keys.

    Args:
        crop: pixels of black padding on each side, from which a window of the old size is cut at random; 0 for none
        flip: mirror a random half of the images left to right; `alternate` mirrors each image in every second epoch
        rotate: maximum rotation in degrees, to either side
        elastic: standard deviation in pixels of a smooth distortion (Simard et al., 2003); 0 for none
        cutout: side in pixels of a square that is erased in each image (DeVries, Taylor, 2017); 0 for none
        mixup: blend pairs of images and of targets, by Beta(mixup, mixup) (Zhang et al., 2018); 0 for none
        cutmix: replace a box of each image by that of another, by Beta(cutmix, cutmix) (Yun et al., 2019); 0 for none
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
    """The sampled parameters of an epoch's N images, in the order of the epoch; None for augmentations that are off.

    shifts: (N, 2) top and left of the window in the padded image
    flips: (N,) whether the image is mirrored
    angles: (N,) in radians
    holes: (N, 2) row and column of the centre of the erased square
    fractions: (N,) fraction of the image that is left when it is mixed with another
    boxes: (N, 4) first and last row, first and last column taken from the other image; empty for a blend
    """

    augmentation: Augmentation
    seed: int
    epoch: int
    batch_size: int
    shifts: Tensor | None
    flips: Tensor | None
    angles: Tensor | None
    holes: Tensor | None
    fractions: Tensor | None
    boxes: Tensor | None

    def apply_geometric(self, images: Tensor, places: Tensor) -> Tensor:
        """Crop, mirror, rotate and distort images (B, C, H, W), bytes or floats, at `places` (B,) in the epoch."""
        if self.shifts is not None:
            images = random_crop(images, self.shifts[places], self.augmentation.crop)
        if self.flips is not None:
            images = random_flip(images, self.flips[places])
        if self.angles is not None or self.augmentation.elastic:
            angles = torch.zeros(len(places), device=images.device) if self.angles is None else self.angles[places]
            images = warp(images, angles, self._displacements(places, images))
        return images

    def apply_cutout(self, images: Tensor, places: Tensor) -> Tensor:
        """Erase a square of each normalised image."""
        return images if self.holes is None else cutout(images, self.holes[places], self.augmentation.cutout)

    def apply_mix(
        self, images: Tensor, targets: Tensor, other_images: Tensor, other_targets: Tensor, places: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mix images (B, C, H, W) and targets (B, ...) with the others."""
        assert self.fractions is not None and self.boxes is not None
        images = mix_images(images, other_images, self.fractions[places], self.boxes[places])
        fractions = self.fractions[places].view(-1, *[1] * (targets.ndim - 1))
        return images, fractions * targets + (1 - fractions) * other_targets

    def _displacements(self, places: Tensor, images: Tensor) -> Tensor | None:
        """Sample displacements down and right (B, 2, H, W) in pixels; by batch, as an epoch of them is too large."""
        if not self.augmentation.elastic:
            return None
        H, W = images.shape[2:]
        size, places = self.batch_size, places.cpu()
        first, last = int(places.min()) // size, int(places.max()) // size
        noise = torch.empty(1 + last - first, size, 2, H, W)
        for index, batch_noise in enumerate(noise, first):
            batch_noise.uniform_(-1, 1, generator=seeded_generator(self.seed, self.epoch, 2 + index))
        return smooth(noise.flatten(0, 1)[places - first * size].to(images.device)) * self.augmentation.elastic


def sample_augmentations(
    augmentation: Augmentation,
    order: Tensor,
    images: Tensor,
    generator: torch.Generator,
    seed: int,
    epoch: int,
    *,
    batch_size: int,
) -> SampledAugmentations:
    """Sample the parameters for an epoch of `images` (N, C, H, W); `order` (N,) holds the examples' indices."""
    count, (H, W) = len(order), images.shape[2:]
    shifts = flips = angles = holes = fractions = boxes = None
    if augmentation.crop:
        shifts = torch.randint(0, 2 * augmentation.crop + 1, (count, 2), generator=generator)
    if augmentation.flip == "alternate":
        flipped_first = torch.rand(count, generator=seeded_generator(seed, 0, 1)) < 0.5
        flips = (flipped_first ^ bool(epoch % 2))[order]
    elif augmentation.flip:
        flips = torch.rand(count, generator=generator) < 0.5
    if augmentation.rotate:
        angles = torch.empty(count).uniform_(-1, 1, generator=generator) * math.radians(augmentation.rotate)
    if augmentation.cutout:
        holes = (torch.rand(count, 2, generator=generator) * torch.tensor([H, W])).long()
    if augmentation.mixup or augmentation.cutmix:
        fractions, boxes = _sample_mix(augmentation, count, H, W, seed, epoch)
    on_device = [x if x is None else x.to(images.device) for x in (shifts, flips, angles, holes, fractions, boxes)]
    return SampledAugmentations(augmentation, seed, epoch, min(batch_size, count), *on_device)


def _sample_mix(augmentation: Augmentation, count: int, H: int, W: int, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """Sample fractions (N,) and boxes (N, 4); with both mixup and cutmix each image gets one of them."""
    generator = numpy.random.default_rng([seed, epoch, 1])  # torch.Generator has no beta distribution
    cuts = numpy.full(count, not augmentation.mixup)
    if augmentation.mixup and augmentation.cutmix:
        cuts = generator.random(count) < 0.5
    fractions = generator.beta(augmentation.mixup or 1, augmentation.mixup or 1, count)
    areas = 1 - generator.beta(augmentation.cutmix or 1, augmentation.cutmix or 1, count)
    middles = generator.random((count, 2)) * [H, W]
    halves = numpy.sqrt(areas)[:, None] * [H, W] / 2
    first = numpy.clip(middles - halves, 0, [H, W]).astype(numpy.int64)
    last = numpy.clip(middles + halves, 0, [H, W]).astype(numpy.int64)
    boxes = numpy.stack([first[:, 0], last[:, 0], first[:, 1], last[:, 1]], axis=1) * cuts[:, None]
    cut = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2]) / (H * W)  # the part inside the image
    return torch.from_numpy(numpy.where(cuts, 1 - cut, fractions)).float(), torch.from_numpy(boxes)


def seeded_generator(*seeds: int) -> torch.Generator:
    """Return a generator seeded by these numbers; SeedSequence mixes them, so that similar ones differ."""
    seed = numpy.random.SeedSequence(seeds).generate_state(1)[0]
    return torch.Generator().manual_seed(int(seed))


def random_crop(images: Tensor, shifts: Tensor, padding: int) -> Tensor:
    """Cut windows out of images (B, C, H, W) padded with zeros; shifts (B, 2) are top and left, 0..2*padding."""
    B, _, H, W = images.shape
    windows = F.pad(images, [padding] * 4).unfold(2, H, 1).unfold(3, W, 1)  # (B, C, 2p+1, 2p+1, H, W), a view
    return windows[torch.arange(B, device=images.device), :, shifts[:, 0], shifts[:, 1]]


def random_flip(images: Tensor, flips: Tensor) -> Tensor:
    """Mirror images (B, C, H, W) left to right where flips (B,) is true."""
    return torch.where(flips.view(-1, 1, 1, 1), images.flip(3), images)


def warp(images: Tensor, angles: Tensor, displacements: Tensor | None) -> Tensor:
    """Rotate images (B, C, H, W) about their centre and distort them, as floats; bilinear, and zero outside.

    A pixel samples the old image at its own position, rotated by the angle (B,) in radians (on screen the image turns
    counterclockwise) and then moved by its displacement (B, 2, H, W) down and to the right.
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
    """Smooth noise (B, 2, H, W), uniform in -1..1, to a field with standard deviation 1 at its centre."""
    down, right = (_gaussian(side, noise.device) for side in noise.shape[2:])
    deviation = math.sqrt(1 / 3) * down[len(down) // 2].norm() * right[len(right) // 2].norm()
    return down @ noise @ right.T / deviation


def _gaussian(side: int, device: torch.device) -> Tensor:
    """Return a smoothing matrix (side, side): each row is a Gaussian about its pixel."""
    pixels = torch.arange(side, dtype=torch.float32, device=device)
    return torch.exp(-(((pixels.view(-1, 1) - pixels) / (SMOOTH * side)) ** 2) / 2)


def cutout(images: Tensor, middles: Tensor, side: int) -> Tensor:
    """Set a square of images (B, C, H, W) to zero, centred at `middles` (B, 2), as far as it is inside the image."""
    return images.masked_fill(_inside(images, middles - side // 2, middles + (side - side // 2)), 0.0)


def mix_images(images: Tensor, others: Tensor, fractions: Tensor, boxes: Tensor) -> Tensor:
    """Paste boxes (B, 4) of the others into images (B, C, H, W); blend the two where the box is empty."""
    inside = _inside(images, boxes[:, 0::2], boxes[:, 1::2])
    is_cut = (boxes[:, 1] > boxes[:, 0]).view(-1, 1, 1, 1)
    fractions = fractions.view(-1, 1, 1, 1)
    return torch.where(is_cut, torch.where(inside, others, images), fractions * images + (1 - fractions) * others)


def _inside(images: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Return masks (B, 1, H, W) of boxes from `first` (included) to `last` (excluded), both (B, 2): row, column."""
    H, W = images.shape[2:]
    rows, columns = torch.arange(H, device=images.device), torch.arange(W, device=images.device)
    down = (rows >= first[:, :1]) & (rows < last[:, :1])
    right = (columns >= first[:, 1:]) & (columns < last[:, 1:])
    return (down.unsqueeze(2) & right.unsqueeze(1)).unsqueeze(1)
