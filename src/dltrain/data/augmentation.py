"""Random augmentation of training images, for whole batches at once, with parameters sampled for a whole epoch.

They depend on seed, epoch and place in the epoch only: devices, resumed runs and processes get the same images.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import numpy
import torch
from annotated_types import Interval
from torch import Generator, Tensor

from dltrain.data import colour, geometric, mixing

Pixels = Annotated[int, Interval(ge=0, le=8192)]
Degrees = Annotated[float, Interval(ge=0, le=180)]
Size = Annotated[float, Interval(ge=0)]
Fraction = Annotated[float, Interval(ge=0, le=1)]
Batch = tuple[Tensor, Tensor]

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
        augment: set of values for keys that are null: `light` (window, colour), `medium` (policy, erase) or `strong`
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
    """Return the changes that are on, with those of the set, for images of so many channels; the rest is default."""
    given = {key: value for key, value in asdict(augmentation).items() if value is not None}
    merged = SETS[augmentation.augment] | given | {"augment": "none"} | ({} if channels == 3 else {"saturation": 0})
    return Augmentation(**{key: value for key, value in merged.items() if value not in (0, "none")})


def describe(augmentation: Augmentation) -> str:
    """Return the changes that are on, as they are typed."""
    changed = {key: value for key, value in asdict(augmentation).items() if value != getattr(Augmentation, key)}
    return " ".join(f"{key}={str(value).lower()}" for key, value in changed.items())


@dataclass(frozen=True)
class SampledAugmentations:
    """The sampled parameters of an epoch's N images, in the order of the epoch; `levels` are black and white of floats.

    parameters: tensors on the CPU; those of augmentations that are off are missing
        shifts: (N, 2) top and left of the window in the padded image
        flips: (N,) whether the image is mirrored
        maps: (N, 2, 3) from a pixel to where it samples the old image
        factors: (N, 6) of colour.OPERATIONS
        holes, erased, boxes: (N, 4) first, last row, first, last column that is erased or taken from another image
        fractions: (N,) fraction of the image that is left when it is mixed with another
    """

    augmentation: Augmentation
    seed: int
    epoch: int
    batch_size: int
    levels: tuple[Tensor, Tensor] | None
    parameters: dict[str, Tensor]

    def apply(self, images: Tensor, places: Tensor, normalize: Callable[[Tensor], Tensor]) -> Tensor:
        """Return images (B, C, H, W), bytes or floats, at `places` (B,) in the epoch, normalised, not yet mixed."""
        of = self._of(places, images.device)
        images = geometric.random_crop(images, of["shifts"], self.augmentation.crop) if "shifts" in of else images
        images = geometric.random_flip(images, of["flips"]) if "flips" in of else images
        if "maps" in of:
            maps, displacements = self.parameters["maps"][places], self._displacements(places, images)
            images = geometric.warp(images, maps, displacements, repeats_edges=bool(self.augmentation.resized_crop))
        if "factors" in of:
            images = colour.recolour(images, self.parameters["factors"][places], self.levels)
        images = normalize(images)
        for boxes in (of[name] for name in ("holes", "erased") if name in of):
            images = mixing.erase(images, boxes)
        return images

    def apply_mix(self, batch: Batch, others: Batch, places: Tensor) -> Batch:
        """Mix images (B, C, H, W) and targets (B, ...) with the others."""
        (images, targets), (other_images, other_targets) = batch, others
        of = self._of(places, images.device)
        fractions = of["fractions"].view(-1, *[1] * (targets.ndim - 1))
        mixed = mixing.mix_images(images, other_images, of["fractions"], of["boxes"])
        return mixed, fractions * targets + (1 - fractions) * other_targets

    def _of(self, places: Tensor, device: torch.device) -> dict[str, Tensor]:
        return {name: values[places].to(device, non_blocking=True) for name, values in self.parameters.items()}

    def _displacements(self, places: Tensor, images: Tensor) -> Tensor | None:
        """Sample displacements down and right (B, 2, H, W) in pixels; by batch, as an epoch of them is too large."""
        if not self.augmentation.elastic:
            return None
        size, (H, W) = self.batch_size, images.shape[2:]
        first, last = int(places.min()) // size, int(places.max()) // size
        noise = torch.empty(1 + last - first, size, 2, H, W)
        for index, batch_noise in enumerate(noise, first):
            batch_noise.uniform_(-1, 1, generator=seeded_generator(self.seed, self.epoch, 2 + index))
        noise = noise.flatten(0, 1)[places - first * size]
        return geometric.smooth(noise.to(images.device)) * self.augmentation.elastic


def sample_epoch(
    keys: Augmentation, order: Tensor, images: Tensor, batch_size: int, generator: Generator, seed: int, epoch: int
) -> SampledAugmentations:
    """Sample the parameters for an epoch of `images` (N, C, H, W); `order` (N,) holds the examples' indices."""
    count, size = len(order), torch.tensor(images.shape[2:])
    found: dict[str, Tensor] = {}
    strengths = torch.zeros(count, 5 + len(colour.OPERATIONS) + 1)  # of a policy: five move pixels, the last keeps all

    def uniform(columns: int, stream: int) -> Tensor:
        """Sample (N, columns) from 0 to 1; a stream of its own for each key, so that none changes what others get."""
        return torch.rand(count, columns, generator=seeded_generator(seed, epoch, 1, stream))

    if keys.crop:
        found["shifts"] = torch.randint(0, 2 * keys.crop + 1, (count, 2), generator=generator)
    if keys.flip == "alternate":
        flipped_first = torch.rand(count, generator=seeded_generator(seed, 0, 1)) < 0.5
        found["flips"] = (flipped_first ^ bool(epoch % 2))[order]
    elif keys.flip:
        found["flips"] = torch.rand(count, generator=generator) < 0.5
    if keys.policy:
        numbers = uniform(2, 1)
        strengths.scatter_(1, (strengths.shape[1] * numbers[:, :1]).long(), 2 * numbers[:, 1:] - 1)
    if keys.policy or keys.resized_crop or keys.rotate or keys.elastic:
        angles = geometric.ROTATION * strengths[:, 0]
        if keys.rotate:
            angles += torch.empty(count).uniform_(-1, 1, generator=generator) * math.radians(keys.rotate)
        found["maps"] = geometric.affine_maps(angles, strengths[:, 1:5], *images.shape[2:])
    if keys.resized_crop:
        first, sides = _boxes(uniform(4, 2), keys.resized_crop, 1, RATIO)
        found["maps"] = sides.unsqueeze(2) * found["maps"]
        found["maps"][:, :, 2] += (first + sides / 2 - 0.5) * size
    amounts = [keys.brightness or 0, keys.contrast or 0, keys.saturation or 0]
    if keys.policy or any(amounts):
        found["factors"] = 1 + 0.9 * strengths[:, 5:-1]
        found["factors"][:, :3] *= 1 + (2 * uniform(3, 3) - 1) * torch.tensor(amounts)
    if keys.cutout:
        first = (torch.rand(count, 2, generator=generator) * size).long() - keys.cutout // 2
        found["holes"] = torch.stack([first, first + keys.cutout], dim=2).flatten(1)
    if keys.erase:
        numbers = uniform(5, 4)
        first, sides = _boxes(numbers, *ERASED_AREA, ERASED_RATIO)
        boxes = torch.stack([first * size, (first + sides) * size], dim=2).flatten(1).round().long()
        found["erased"] = boxes * (numbers[:, 4:] < keys.erase)
    if keys.mixup or keys.cutmix:
        found["fractions"], found["boxes"] = _sample_mix(keys, count, images.shape[2], images.shape[3], seed, epoch)
    levels = images.nan_to_num(0, 0, 0).aminmax() if images.is_floating_point() and "factors" in found else None
    return SampledAugmentations(keys, seed, epoch, min(batch_size, count), levels, found)


def _boxes(numbers: Tensor, smallest: float, largest: float, ratio: float) -> tuple[Tensor, Tensor]:
    """Return first corners and sides (N, 2) of boxes as fractions of the image; numbers (N, 4) in 0..1 choose them."""
    areas, ratios = smallest + (largest - smallest) * numbers[:, 0], ratio ** (2 * numbers[:, 1] - 1)
    sides = torch.stack([areas * ratios, areas / ratios], dim=1).sqrt().clamp(max=1)
    return (1 - sides) * numbers[:, 2:4], sides


def _sample_mix(augmentation: Augmentation, count: int, H: int, W: int, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """Sample fractions (N,) and boxes (N, 4); with both mixup and cutmix each image gets one of them."""
    generator = numpy.random.default_rng([seed, epoch, 1])  # torch has no beta distribution
    cuts = numpy.full(count, not augmentation.mixup)
    if augmentation.mixup and augmentation.cutmix:
        cuts = generator.random(count) < 0.5
    fractions = generator.beta(augmentation.mixup or 1, augmentation.mixup or 1, count)
    areas = 1 - generator.beta(augmentation.cutmix or 1, augmentation.cutmix or 1, count)
    middles = generator.random((count, 2)) * [H, W]
    halves = numpy.sqrt(areas)[:, None] * [H, W] / 2
    first, last = (numpy.clip(it, 0, [H, W]).astype(numpy.int64) for it in (middles - halves, middles + halves))
    boxes = numpy.stack([first[:, 0], last[:, 0], first[:, 1], last[:, 1]], axis=1) * cuts[:, None]
    cut = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2]) / (H * W)  # the part inside the image
    return torch.from_numpy(numpy.where(cuts, 1 - cut, fractions)).float(), torch.from_numpy(boxes)


def seeded_generator(*seeds: int) -> Generator:
    """Return a generator seeded by these numbers; SeedSequence mixes them, so that similar ones differ."""
    return Generator().manual_seed(int(numpy.random.SeedSequence(seeds).generate_state(1)[0]))
