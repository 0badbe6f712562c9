"""Resized crops, colour, erasing, the policy: each equals Pillow or torchvision; parameters have their distribution."""

import math
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from dltrain.data import colour
from dltrain.data.augmentation import SETS, Augmentation, describe, effective, sample_epoch
from dltrain.data.geometric import ROTATION, SHEAR, SHIFT, affine_maps, warp
from dltrain.data.loader import TensorLoader
from dltrain.data.mixing import erase
from dltrain.data.splits import Examples

CPU = torch.device("cpu")
FACTORS = torch.tensor([0.1, 0.7, 1.0, 1.3, 1.9])
EVERYTHING = Augmentation(
    resized_crop=0.5, policy="trivial", brightness=0.2, contrast=0.3, saturation=0.4, erase=0.5, mixup=0.3
)


def photographs(count: int = 5, channels: int = 3, H: int = 20, W: int = 16) -> Tensor:
    """Smooth random bytes, so that half a pixel more or less matters little."""
    noise = torch.rand(count, channels, 5, 4, generator=torch.Generator().manual_seed(0))
    return (torch.nn.functional.interpolate(noise, (H, W), mode="bicubic") * 255).clamp(0, 255).byte()


def sampled(
    count: int = 4000, shape: tuple[int, int, int] = (3, 20, 16), epoch: int = 0, **keys: Any
) -> dict[str, Tensor]:
    images = torch.zeros(1, *shape, dtype=torch.uint8).expand(count, -1, -1, -1)
    order = torch.arange(count)
    return sample_epoch(
        Augmentation(**keys), order, images, 64, torch.Generator().manual_seed(epoch), 5, epoch
    ).parameters


# --- colour, against torchvision on single images


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_change_of_colour_equals_torchvision_image_by_image(name: str, channels: int) -> None:
    images = photographs(channels=channels).float()
    found = getattr(colour, name)(images, FACTORS)
    for image, factor, changed in zip(images, FACTORS.tolist(), found, strict=True):
        expected = getattr(reference, f"adjust_{name}")(image / 255, factor) * 255
        torch.testing.assert_close(changed, expected, rtol=1e-4, atol=0.02)


def test_other_numbers_of_channels_have_their_mean_as_grey_and_keep_their_saturation() -> None:
    images = photographs(channels=2).float()
    mean = images.mean((1, 2, 3), keepdim=True)
    expected = ((images - mean) * FACTORS.view(-1, 1, 1, 1) + mean).clamp(0, 255)
    torch.testing.assert_close(colour.contrast(images, FACTORS), expected)
    assert torch.equal(colour.saturation(images, FACTORS), images)


@pytest.mark.parametrize(("factor", "bits"), [(1.0, 8), (1.26, 7), (0.5, 6), (1.75, 5), (0.1, 4), (1.9, 4)])
def test_posterize_equals_torchvision(factor: float, bits: int) -> None:
    images = photographs()
    found = colour.posterize(images.float(), torch.full((5,), factor))
    assert torch.equal(found.byte(), reference.posterize(images, bits))


def test_solarize_and_autocontrast_equal_torchvision() -> None:
    images = photographs()
    for image, factor, found in zip(images, FACTORS, colour.solarize(images.float(), FACTORS), strict=True):
        expected = reference.solarize(image, float(255 * (1 - (factor - 1).abs())))
        assert torch.equal(found.byte(), expected)
    plain = torch.full((1, 3, 20, 16), 70, dtype=torch.uint8)
    images = torch.cat([images // 2 + 30, plain])
    found = colour.autocontrast(images.float(), torch.zeros(6))
    expected = reference.autocontrast(images.float() / 255) * 255
    torch.testing.assert_close(found, expected, rtol=0, atol=0.01)


def test_only_images_with_a_factor_other_than_one_are_changed() -> None:
    images, factors = photographs(), torch.ones(5, 6)
    factors[1, 0], factors[3, 4] = 0.5, 0.4
    found = colour.recolour(images, factors, None)
    assert [torch.equal(found[index], images[index].float()) for index in range(5)] == [True, False, True, False, True]
    torch.testing.assert_close(found[1], images[1] * 0.5)


@pytest.mark.parametrize(("low", "high"), [(-3.0, 5.0), (0.0, 1.0), (100.0, 100.5)])
def test_floats_are_changed_like_bytes_between_their_smallest_and_largest_number(low: float, high: float) -> None:
    images, factors = photographs(), torch.full((5, 6), 1.0)
    factors[:, :3] = torch.rand(5, 3, generator=torch.Generator().manual_seed(0)) + 0.5
    scale = (high - low) / 255
    found = colour.recolour(images * scale + low, factors, (torch.tensor(low), torch.tensor(high)))
    torch.testing.assert_close((found - low) / scale, colour.recolour(images, factors, None), rtol=0, atol=0.05)


def test_floats_of_one_value_stay_finite() -> None:
    images, level = torch.full((5, 1, 4, 4), 7.0), torch.tensor(7.0)
    factors = FACTORS.view(-1, 1).expand(-1, 6)
    assert torch.isfinite(colour.recolour(images, factors, (level, level))).all()


# --- places of pixels


def test_a_resized_crop_equals_that_of_pillow() -> None:
    images = photographs(count=9)
    maps = sampled(9, resized_crop=0.3)["maps"]
    found = warp(images, maps, repeats_edges=True)
    for image, map_, resized in zip(images, maps, found, strict=True):
        sides = map_[[0, 1], [0, 1]] * torch.tensor([20, 16])
        top, left = (map_[:, 2] + torch.tensor([20, 16]) / 2 - sides / 2).tolist()
        box = (left, top, left + float(sides[1]), top + float(sides[0]))
        box = (max(box[0], 0), max(box[1], 0), min(box[2], 16), min(box[3], 20))  # but for rounding it is inside
        for channel, changed in zip(image, resized, strict=True):
            pillow = Image.fromarray(channel.numpy().astype(numpy.float32))
            expected = numpy.asarray(pillow.resize((16, 20), Image.Resampling.BILINEAR, box=box))
            torch.testing.assert_close(changed, torch.tensor(expected), rtol=0, atol=0.05)


@pytest.mark.parametrize("index", range(5))
@pytest.mark.parametrize("strength", [-1.0, -0.3, 0.6])
def test_a_geometric_operation_of_the_policy_equals_torchvision(index: int, strength: float) -> None:
    image = photographs(count=1, H=24, W=24).float()
    strengths = torch.zeros(1, 5)
    strengths[0, index] = strength
    found = warp(image, affine_maps(ROTATION * strengths[:, 0], strengths[:, 1:], 24, 24))
    angle, shear_x, shear_y, x, y = strengths[0].tolist()
    expected = reference.affine(
        image,
        angle=-math.degrees(ROTATION * angle),  # torchvision turns clockwise
        translate=[0, 0],
        scale=1.0,
        shear=[0.0, 0.0],
        interpolation=InterpolationMode.BILINEAR,
    )
    if shear_x or shear_y:
        rows, columns = torch.meshgrid(torch.arange(24) - 11.5, torch.arange(24) - 11.5, indexing="ij")
        grid = torch.stack([columns + SHEAR * shear_x * rows, rows + SHEAR * shear_y * columns], dim=2) / 12
        expected = torch.nn.functional.grid_sample(image, grid[None], align_corners=False)
    if x or y:
        expected = shifted(image, SHIFT * 24 * y, SHIFT * 24 * x)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.3)


def shifted(image: Tensor, down: float, right: float) -> Tensor:
    """Each pixel is that `down` and `right` of it, between two pixels their weighted mean."""
    padded = torch.nn.functional.pad(image, [24] * 4)
    top, left = math.floor(down), math.floor(right)
    parts = [
        (1 - abs(down - row)) * (1 - abs(right - column)) * padded[..., 24 + row : 48 + row, 24 + column : 48 + column]
        for row in (top, top + 1)
        for column in (left, left + 1)
        if abs(down - row) < 1 and abs(right - column) < 1
    ]
    return torch.stack(parts).sum(0)


def test_images_that_a_policy_does_not_move_keep_their_bits() -> None:
    images = photographs()
    maps = torch.eye(2, 3).repeat(5, 1, 1)
    maps[2, 0, 2] = 3
    found = warp(images, maps)
    assert [torch.equal(found[index], images[index].float()) for index in range(5)] == [True, True, False, True, True]
    torch.testing.assert_close(found[2, :, :-3], images[2, :, 3:].float(), rtol=0, atol=0.01)


def test_erase_equals_a_loop() -> None:
    images, boxes = torch.rand(3, 2, 6, 5) + 1, torch.tensor([[1, 4, 0, 5], [0, 0, 0, 0], [5, 6, 4, 5]])
    expected = images.clone()
    expected[0, :, 1:4] = 0
    expected[2, :, 5, 4] = 0
    assert torch.equal(erase(images, boxes), expected)


# --- what is sampled


def test_factors_are_uniform_and_independent() -> None:
    factors = sampled(brightness=0.2, contrast=0.4, saturation=0.8)["factors"]
    assert (factors[:, 3:] == 1).all()
    for column, amount in zip(factors[:, :3].unbind(1), (0.2, 0.4, 0.8), strict=True):
        assert 1 - amount <= float(column.min()) < 1 - 0.98 * amount
        assert 1 + 0.98 * amount < float(column.max()) <= 1 + amount
        assert float(column.std()) == pytest.approx(2 * amount / math.sqrt(12), rel=0.05)
    correlations = torch.corrcoef(factors[:, :3].T).abs()
    assert float(correlations.fill_diagonal_(0).max()) < 0.05
    assert float(torch.corrcoef(torch.stack([factors[:-1, 0], factors[1:, 0]]))[0, 1].abs()) < 0.05


def test_windows_have_the_stated_areas_and_ratios_and_lie_in_the_image() -> None:
    maps = sampled(resized_crop=0.25)["maps"]
    sides = maps[:, [0, 1], [0, 1]]
    areas, ratios = sides.prod(1), sides[:, 1] / sides[:, 0]
    assert 0.25 <= float(areas.min()) < 0.26
    assert 0.95 < float(areas.max()) <= 1
    assert float(ratios.log().abs().max()) <= math.log(4 / 3) + 1e-5
    free = sides.max(1).values < 1  # else the ratio may be cut
    assert float(ratios[free].log().std()) == pytest.approx(2 * math.log(4 / 3) / math.sqrt(12), rel=0.1)
    ends = maps[:, :, 2].abs() + sides * torch.tensor([20, 16]) / 2
    assert (ends <= torch.tensor([10, 8]) + 1e-4).all()
    assert (maps[:, 0, 1] == 0).all()


def test_erased_boxes_have_the_stated_probability_areas_and_ratios() -> None:
    boxes = sampled(shape=(3, 100, 100), erase=0.3)["erased"]
    heights, widths = boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]
    erased = heights > 0
    assert float(erased.float().mean()) == pytest.approx(0.3, abs=0.03)
    areas = (heights * widths)[erased] / 10_000
    assert 0.015 < float(areas.min()) < 0.03
    assert 0.3 < float(areas.max()) < 0.34
    ratios = (heights / widths)[erased].log()
    assert float(ratios.abs().max()) <= math.log(3.3) + 0.1
    assert float(ratios.std()) == pytest.approx(2 * math.log(3.3) / math.sqrt(12), rel=0.1)
    assert int(boxes.min()) >= 0
    assert int(boxes.max()) <= 100


def test_the_policy_takes_each_operation_equally_often_and_one_for_each_image() -> None:
    drawn = sampled(24_000, policy="trivial")
    moved = (drawn["maps"] != torch.eye(2, 3)).flatten(1).any(1)
    recoloured = drawn["factors"] != 1
    assert not (moved & recoloured.any(1)).any()
    assert int(recoloured.sum(1).max()) == 1
    total = 1 + 5 + 6  # one of them keeps the image
    assert float(moved.float().mean()) == pytest.approx(5 / total, rel=0.05)
    for column in recoloured.unbind(1):
        assert float(column.float().mean()) == pytest.approx(1 / total, rel=0.1)
    factors = drawn["factors"][recoloured]
    assert 0.1 <= float(factors.min()) < 0.11
    assert 1.89 < float(factors.max()) <= 1.9
    angles = torch.atan2(drawn["maps"][:, 0, 1], drawn["maps"][:, 0, 0]).abs()
    assert math.radians(29) < float(angles.max()) <= math.radians(30) + 1e-5


@pytest.mark.parametrize("key", ["resized_crop", "policy", "brightness", "contrast", "saturation", "erase"])
def test_a_new_key_leaves_what_others_sample_as_it_was(key: str) -> None:
    old = {"crop": 2, "flip": True, "cutout": 3, "mixup": 0.3}
    before = sampled(50, **old, erase=0.5 if key != "erase" else 0)
    after = sampled(50, **(old | {"erase": 0.5, key: "trivial" if key == "policy" else 0.5}))
    for name, values in before.items():
        assert torch.equal(values, after[name]), name


def test_seed_and_epoch_change_every_stream() -> None:
    keys = {"resized_crop": 0.5, "policy": "trivial", "brightness": 0.2, "erase": 0.9}
    one, again, other = sampled(50, **keys), sampled(50, **keys), sampled(50, epoch=1, **keys)
    for name, values in one.items():
        assert torch.equal(values, again[name])
        assert not torch.equal(values, other[name])


# --- sets


def test_keys_win_over_their_set_and_an_explicit_zero_switches_off() -> None:
    assert effective(Augmentation(), 3) == Augmentation()
    assert effective(Augmentation(augment="medium"), 3) == Augmentation(policy="trivial", erase=0.1)
    chosen = Augmentation(augment="strong", resized_crop=0.0, erase=0.5, crop=2)
    assert effective(chosen, 3) == Augmentation(crop=2, policy="trivial", erase=0.5)
    assert effective(Augmentation(augment="medium", policy="none"), 3) == Augmentation(erase=0.1)


def test_no_set_crops_or_flips_and_grey_images_have_no_saturation() -> None:
    for name, keys in SETS.items():
        changed = effective(Augmentation(augment=name), 1)  # type: ignore[arg-type]
        assert not {"crop", "flip", "rotate", "mixup", "cutmix"} & keys.keys()
        assert (changed.crop, changed.flip, changed.saturation) == (0, False, None)
    assert effective(Augmentation(augment="light"), 3).saturation == 0.2


def test_the_changes_are_described_as_they_are_typed() -> None:
    changes = effective(Augmentation(augment="medium", crop=4, flip=True, rotate=7.5), 3)
    assert describe(changes) == "crop=4 flip=true rotate=7.5 policy=trivial erase=0.1"
    assert describe(Augmentation()) == ""


# --- whole batches


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["bytes", "floats"])
def test_all_kinds_of_images_can_be_augmented(channels: int, dtype: str) -> None:
    images = photographs(40, channels)
    images = images if dtype == "bytes" else images.float() / 50 - 2
    examples = Examples(images, torch.arange(40) % 2, ("a", "b"))
    source = TensorLoader(
        examples, CPU, batch_size=16, statistics=((0.0,) * channels, (1.0,) * channels), augmentation=EVERYTHING
    )
    before = images.clone()
    found = torch.cat([part for part, _ in source.epoch(0, 0)])
    assert found.shape == images.shape
    assert torch.isfinite(found).all()
    low, high = (0, 1) if dtype == "bytes" else (float(images.min()), float(images.max()))
    assert min(low, 0) - 1e-3 <= float(found.min())
    assert float(found.max()) <= max(high, 0) + 1e-3
    assert torch.equal(images, before)


def test_an_image_is_changed_alike_whatever_else_is_in_its_batch() -> None:
    images = photographs(30)
    drawn = sample_epoch(EVERYTHING, torch.arange(30), images, 30, torch.Generator(), 0, 0)
    whole = drawn.apply(images, torch.arange(30), lambda floats: floats.float())
    for index in (0, 7, 29):
        alone = drawn.apply(images[index : index + 1], torch.tensor([index]), lambda floats: floats.float())
        torch.testing.assert_close(alone[0], whole[index], rtol=0, atol=0.01)


def test_without_colour_bytes_stay_bytes_until_they_are_normalised() -> None:
    seen: list[torch.dtype] = []

    def normalize(images: Tensor) -> Tensor:
        seen.append(images.dtype)
        return images.float()

    drawn = sample_epoch(Augmentation(crop=1, erase=0.5), torch.arange(5), photographs(), 5, torch.Generator(), 0, 0)
    drawn.apply(photographs(), torch.arange(5), normalize)
    assert seen == [torch.uint8]
