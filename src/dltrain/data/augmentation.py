"""Random augmentation of training images, for whole batches at once, with parameters sampled for a whole epoch.

The parameters of an image depend only on the seed, the epoch and its position in the epoch's order, so that every
device, every resumed run and every number of processes sees the same images.
"""

import math
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal

import numpy
import torch
from annotated_types import Interval
from torch import Tensor

from dltrain.data import colour, trivial
from dltrain.data.geometric import random_crop, random_flip, rotations, smooth, warp, zooms
from dltrain.data.mixing import cutout, erase, mix_images
from dltrain.runtime.errors import ConfigError

Pixels = Annotated[int, Interval(ge=0, le=8192)]
Degrees = Annotated[float, Interval(ge=0, le=180)]
Size = Annotated[float, Interval(ge=0)]
Fraction = Annotated[float, Interval(ge=0, le=1)]

# What a key that is null has in each set. None of them crops or flips: how far depends on the data, and digits have
# no mirror images.
SETS: dict[str, dict[str, Any]] = {
    "none": {},
    "light": {"resized_crop": 0.8, "brightness": 0.2, "contrast": 0.2, "saturation": 0.2},
    "medium": {"policy": "trivial", "erase": 0.1},
    "strong": {"resized_crop": 0.5, "policy": "trivial", "erase": 0.25},
}
RATIO, ERASED_RATIO, ERASED_AREA = 4 / 3, 3.3, (0.02, 0.33)  # largest ratio of two sides; fractions of the image


@dataclass(frozen=True)
class Augmentation:
    """Random changes of the training images, applied in the order of the keys.

    Args:
        augment: a set for the keys that are null: `light` crops and recolours; `medium` has policy and erase; `strong` all
        crop: pixels of black padding on each side, from which a window of the old size is cut at random; 0 for none
        flip: mirror a random half of the images left to right; `alternate` mirrors each image in every second epoch
        resized_crop: smallest fraction of the area that a window has, which is enlarged to the whole; 0 for none
        rotate: maximum rotation in degrees, to either side
        elastic: standard deviation in pixels of a smooth distortion (Simard et al., 2003); 0 for none
        policy: `trivial` changes each image in one way, at random strength (Müller, Hutter, 2021); `none` for none
        brightness: largest change of the brightness, as a fraction; 0 for none
        contrast: largest change of the contrast, as a fraction; 0 for none
        saturation: largest change of the saturation of colour images, as a fraction; 0 for none
        cutout: side in pixels of a square that is erased in each image (DeVries, Taylor, 2017); 0 for none
        erase: fraction of the images in which a box of any shape is erased (Zhong et al., 2020); 0 for none
        mixup: blend pairs of images and of targets, by Beta(mixup, mixup) (Zhang et al., 2018); 0 for none
        cutmix: replace a box of each image by that of another, by Beta(cutmix, cutmix) (Yun et al., 2019); 0 for none
    """

    augment: Literal["none", "light", "medium", "strong"] = "none"
    crop: Pixels = 0
    flip: bool | Literal["alternate"] = False
    resized_crop: Fraction | None = None
    rotate: Degrees = 0.0
    elastic: Size = 0.0
    policy: Literal["none", "trivial"] | None = None
    brightness: Fraction | None = None
    contrast: Fraction | None = None
    saturation: Fraction | None = None
    cutout: Pixels = 0
    erase: Fraction | None = None
    mixup: Size = 0.0
    cutmix: Size = 0.0


def effective(augmentation: Augmentation, channels: int) -> Augmentation:
    """Return the changes that `augmentation` means for images of so many channels, without a set; others are off.

    Raises ConfigError for a saturation of images without colour.
    """
    if augmentation.saturation and channels != 3:
        raise ConfigError(f"data.saturation={augmentation.saturation}: needs images of 3 channels, these have {channels}")
    given = {key: value for key, value in asdict(augmentation).items() if value is not None}
    merged = SETS[augmentation.augment] | given | {"augment": "none"} | ({} if channels == 3 else {"saturation": 0})
    return Augmentation(**{key: value for key, value in merged.items() if value not in (0, "none")})


def describe(augmentation: Augmentation) -> str:
    """Return the changes that are on, as they are typed."""
    return " ".join(
        f"{key.name}={str(value).lower()}"
        for key in fields(augmentation)
        if (value := getattr(augmentation, key.name)) != key.default
    )


@dataclass(frozen=True)
class SampledAugmentations:
    """The sampled parameters of an epoch's N images, in the order of the epoch; None for augmentations that are off.

    shifts: (N, 2) top and left of the window in the padded image
    flips: (N,) whether the image is mirrored
    maps: (N, 3, 3) from a pixel to where it samples the old image
    factors: (N, 3) of brightness, contrast and saturation
    holes: (N, 2) row and column of the centre of the erased square
    erased: (N, 4) first and last row, first and last column of the erased box; empty if none is
    fractions: (N,) fraction of the image that is left when it is mixed with another
    boxes: (N, 4) first and last row, first and last column taken from the other image; empty for a blend
    operations, strengths: (N,) of the policy, on the CPU
    levels: black and white of floats
    """

    augmentation: Augmentation
    seed: int
    epoch: int
    batch_size: int
    shifts: Tensor | None
    flips: Tensor | None
    maps: Tensor | None
    factors: Tensor | None
    holes: Tensor | None
    erased: Tensor | None
    fractions: Tensor | None
    boxes: Tensor | None
    operations: Tensor | None
    strengths: Tensor | None
    levels: tuple[float, float] | None

    def apply_geometric(self, images: Tensor, places: Tensor) -> Tensor:
        """Crop, mirror and resample images (B, C, H, W), bytes or floats, at `places` (B,) in the epoch, on the CPU."""
        on_device = places.to(images.device, non_blocking=True)
        if self.shifts is not None:
            images = random_crop(images, self.shifts[on_device], self.augmentation.crop)
        if self.flips is not None:
            images = random_flip(images, self.flips[on_device])
        if self.maps is None:
            return images
        options = self.augmentation
        if not (options.rotate or options.elastic or options.resized_crop) and self.operations is not None:
            operations = self.operations[places]  # the policy alone: most images stay where they are
            moved = ((operations > 0) & (operations <= len(trivial.GEOMETRIC))).nonzero().flatten()
            moved = moved.to(images.device, non_blocking=True)
            return images.float().index_copy(0, moved, warp(images[moved], self.maps[on_device[moved]], None))
        displacements = self._displacements(places, images)
        return warp(images, self.maps[on_device], displacements, repeats_edges=bool(options.resized_crop))

    def apply_colour(self, images: Tensor, places: Tensor) -> Tensor:
        """Change the colours of images (B, C, H, W), bytes or floats."""
        if self.factors is None and self.operations is None:
            return images
        black, white = self.levels or (0.0, 255.0)
        images = images.float() if self.levels is None else (images - black) * (255 / (white - black))
        if self.operations is not None and self.strengths is not None:
            images = trivial.recolour(images, self.operations[places], self.strengths[places])
        if self.factors is not None:
            factors = self.factors[places.to(images.device, non_blocking=True)]
            for column, change in enumerate((colour.brightness, colour.contrast, colour.saturation)):
                if getattr(self.augmentation, change.__name__):
                    images = change(images, factors[:, column])
        return images if self.levels is None else images * ((white - black) / 255) + black

    def apply_erasing(self, images: Tensor, places: Tensor) -> Tensor:
        """Erase a square and a box of each normalised image."""
        on_device = places.to(images.device, non_blocking=True)
        if self.holes is not None:
            images = cutout(images, self.holes[on_device], self.augmentation.cutout)
        return images if self.erased is None else erase(images, self.erased[on_device])

    def apply_mix(
        self, images: Tensor, targets: Tensor, other_images: Tensor, other_targets: Tensor, places: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mix images (B, C, H, W) and targets (B, ...) with the others."""
        assert self.fractions is not None and self.boxes is not None
        places = places.to(images.device, non_blocking=True)
        images = mix_images(images, other_images, self.fractions[places], self.boxes[places])
        fractions = self.fractions[places].view(-1, *[1] * (targets.ndim - 1))
        return images, fractions * targets + (1 - fractions) * other_targets

    def _displacements(self, places: Tensor, images: Tensor) -> Tensor | None:
        """Sample displacements down and right (B, 2, H, W) in pixels; by batch, as an epoch of them is too large."""
        if not self.augmentation.elastic:
            return None
        H, W = images.shape[2:]
        size = self.batch_size
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
    shifts = flips = maps = factors = holes = erased = fractions = boxes = operations = strengths = None

    def uniform(columns: int, stream: int) -> Tensor:
        """Sample (N, columns) from 0 to 1; a stream of its own for each key, so that none changes what others get."""
        return torch.rand(count, columns, generator=seeded_generator(seed, epoch, 1, stream))

    if augmentation.crop:
        shifts = torch.randint(0, 2 * augmentation.crop + 1, (count, 2), generator=generator)
    if augmentation.flip == "alternate":
        flipped_first = torch.rand(count, generator=seeded_generator(seed, 0, 1)) < 0.5
        flips = (flipped_first ^ bool(epoch % 2))[order]
    elif augmentation.flip:
        flips = torch.rand(count, generator=generator) < 0.5
    angles = torch.zeros(count)
    if augmentation.rotate:
        angles = angles.uniform_(-1, 1, generator=generator) * math.radians(augmentation.rotate)
    if augmentation.rotate or augmentation.elastic or augmentation.resized_crop or augmentation.policy:
        maps = rotations(angles)
    if augmentation.resized_crop:
        maps = zooms(_windows(uniform(4, 1), augmentation.resized_crop, H, W)) @ maps
    if augmentation.policy:
        chosen, strengths = uniform(2, 2).unbind(1)
        operations, strengths = (chosen * len(trivial.OPERATIONS)).long(), 2 * strengths - 1
        maps = maps @ trivial.maps(operations, strengths, H, W)
    if augmentation.brightness or augmentation.contrast or augmentation.saturation:
        amounts = [augmentation.brightness or 0, augmentation.contrast or 0, augmentation.saturation or 0]
        factors = 1 + (2 * uniform(3, 3) - 1) * torch.tensor(amounts)
    if augmentation.cutout:
        holes = (torch.rand(count, 2, generator=generator) * torch.tensor([H, W])).long()
    if augmentation.erase:
        erased = _erased(uniform(5, 4), augmentation.erase, H, W)
    if augmentation.mixup or augmentation.cutmix:
        fractions, boxes = _sample_mix(augmentation, count, H, W, seed, epoch)
    sampled = (shifts, flips, maps, factors, holes, erased, fractions, boxes)
    on_device = [x if x is None else x.to(images.device) for x in sampled]
    levels = None
    if (factors is not None or operations is not None) and images.dtype != torch.uint8:
        black, white = map(float, images.nan_to_num(0, 0, 0).aminmax())
        levels = black, white if white > black else black + 1
    size = min(batch_size, count)
    return SampledAugmentations(augmentation, seed, epoch, size, *on_device, operations, strengths, levels)


def _windows(numbers: Tensor, smallest: float, H: int, W: int) -> Tensor:
    """Return windows (N, 4) as `zooms` takes them, from numbers (N, 4): area, ratio of the sides, row, column."""
    areas, ratios = smallest + (1 - smallest) * numbers[:, 0], RATIO ** (2 * numbers[:, 1] - 1)
    sides = torch.stack([areas / ratios, areas * ratios], dim=1).sqrt().clamp(max=1)
    return torch.cat([sides, (1 - sides) * torch.tensor([H, W]) * (numbers[:, 2:] - 0.5)], dim=1)


def _erased(numbers: Tensor, probability: float, H: int, W: int) -> Tensor:
    """Return boxes (N, 4) within the image, from numbers (N, 5): whether, area, ratio of the sides, row, column."""
    low, high = ERASED_AREA
    areas, ratios = low + (high - low) * numbers[:, 1], ERASED_RATIO ** (2 * numbers[:, 2] - 1)
    size = torch.tensor([H, W])
    sides = (torch.stack([areas * ratios, areas / ratios], dim=1).sqrt() * math.sqrt(H * W)).round().clamp(min=1)
    sides = sides.minimum(size)
    first = (numbers[:, 3:] * (size - sides + 1)).floor()
    boxes = torch.stack([first, first + sides], dim=2).flatten(1).long()
    return boxes * (numbers[:, :1] < probability)


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
