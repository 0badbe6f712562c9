"""Augmentation: each way equals a loop over pixels; what is drawn depends on seed, epoch and place alone."""

import math
from itertools import product
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dltrain.data import loader as batches_module
from dltrain.data.augmentation import Augmentation, SampledAugmentations, sample_epoch
from dltrain.data.geometric import SMOOTH, affine_maps, random_crop, random_flip, smooth, warp
from dltrain.data.loader import TensorLoader
from dltrain.data.mixing import mix_images
from dltrain.data.splits import Examples
from dltrain.optim.tasks import Classification
from dltrain.runtime.torchrun import Processes

CPU = torch.device("cpu")
COUNT, SIZE, CLASSES = 23, 5, 4
WAYS: list[dict[str, Any]] = [
    {"crop": 2},
    {"flip": True},
    {"flip": "alternate"},
    {"rotate": 20},
    {"elastic": 1.5},
    {"cutout": 3},
    {"mixup": 0.8},
    {"cutmix": 1},
    {"resized_crop": 0.5},
    {"policy": "trivial"},
    {"brightness": 0.5},
    {"contrast": 0.5},
    {"saturation": 0.5},
    {"erase": 0.7},
    {"crop": 1, "flip": True, "rotate": 10, "elastic": 0.5, "cutout": 2, "mixup": 0.4, "cutmix": 1.0},
    {"resized_crop": 0.5, "rotate": 10, "policy": "trivial", "brightness": 0.3, "saturation": 0.3, "erase": 0.5},
]
EACH = pytest.mark.parametrize(
    "ways", WAYS, ids=lambda ways: "-".join(ways) if len(ways) > 1 else "-".join(map(str, *ways.items()))
)


def random_bytes(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def batches(ways: dict[str, Any], *, processes: Processes = Processes(), seed: int = 3) -> TensorLoader:  # noqa: B008
    examples = Examples(random_bytes(COUNT, 3, 8, 6), torch.arange(COUNT) % CLASSES, tuple("abcd"))
    statistics = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    settings = {"batch_size": SIZE, "statistics": statistics, "seed": seed, "processes": processes}
    return TensorLoader(examples, CPU, augmentation=Augmentation(**ways), **settings)


def epoch(source: TensorLoader, number: int = 0, first: int = 0) -> list[tuple[Tensor, Tensor]]:
    return list(source.epoch(number, first))


def same(one: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in pairs)


# --- what is drawn


@EACH
def test_each_epoch_augments_images_differently(ways: dict[str, Any]) -> None:
    plain = torch.cat([images for images, _ in epoch(batches({}))])
    changed = torch.cat([images for images, _ in epoch(batches(ways))])
    assert plain.shape == changed.shape
    assert not torch.allclose(plain, changed)
    seen = {tuple(images.flatten().tolist()) for number in range(3) for images, _ in epoch(batches(ways), number)[:1]}
    assert len(seen) == 3


@EACH
@pytest.mark.parametrize("first", range(5))
def test_an_epoch_started_at_a_later_batch_has_the_same_batches(ways: dict[str, Any], first: int) -> None:
    assert same(epoch(batches(ways), 1, first), epoch(batches(ways), 1)[first:])


@EACH
def test_how_many_batches_are_made_ready_at_once_changes_nothing(
    ways: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = epoch(batches(ways), 2)
    monkeypatch.setattr(batches_module, "GATHERED", 1)
    for (images, targets), (alone, wanted) in zip(together, epoch(batches(ways), 2), strict=True):
        torch.testing.assert_close(images, alone, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(targets, wanted)


@EACH
@pytest.mark.parametrize("world", [2, 3])
def test_the_parts_of_several_processes_are_the_batch_of_one(ways: dict[str, Any], world: int) -> None:
    parts = [epoch(batches(ways, processes=Processes(rank, world)), 1) for rank in range(world)]
    for index, (images, targets) in enumerate(epoch(batches(ways), 1)):
        torch.testing.assert_close(torch.cat([part[index][0] for part in parts]), images, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.cat([part[index][1] for part in parts]), targets)


@EACH
def test_other_generators_neither_matter_nor_move(ways: dict[str, Any]) -> None:
    torch.manual_seed(1)
    numpy.random.seed(1)
    one = epoch(batches(ways))
    torch.manual_seed(2)
    numpy.random.seed(2)
    before = torch.get_rng_state(), numpy.random.get_state()[1].tolist()
    assert same(one, epoch(batches(ways)))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == numpy.random.get_state()[1].tolist()


@EACH
def test_evaluation_images_are_not_augmented(ways: dict[str, Any]) -> None:
    assert same(list(batches(ways).in_order()), list(batches({}).in_order()))


@EACH
def test_every_seed_draws_otherwise(ways: dict[str, Any]) -> None:
    one, other = (batches(ways, seed=seed) for seed in (3, 4))
    other.images, other.targets = one.images[:1].expand_as(one.images), one.targets[:1].expand_as(one.targets)
    one.images, one.targets = other.images, other.targets  # of one picture alone the order does not matter
    if {"mixup", "cutmix"} & ways.keys() and len(ways) == 1:
        return  # a picture mixed with itself is itself
    assert not same(epoch(one), epoch(other))


# --- crop and flip


@pytest.mark.parametrize("padding", [1, 2, 4])
def test_random_crop_equals_a_loop_over_the_images(padding: int) -> None:
    corners = list(product(range(2 * padding + 1), repeat=2))
    pictures = random_bytes(len(corners), 3, 5, 4)
    found = random_crop(pictures, torch.tensor(corners), padding)
    for picture, (top, left), cut in zip(pictures, corners, found, strict=True):
        padded = numpy.zeros((3, 5 + 2 * padding, 4 + 2 * padding), dtype=numpy.uint8)
        padded[:, padding : padding + 5, padding : padding + 4] = picture.numpy()
        assert numpy.array_equal(cut, padded[:, top : top + 5, left : left + 4])


def test_random_flip_equals_a_loop_over_the_images() -> None:
    pictures = random_bytes(6, 3, 5, 4)
    flips = torch.tensor([True, False, False, True, True, False])
    found = random_flip(pictures, flips)
    for picture, flip, turned in zip(pictures, flips.tolist(), found, strict=True):
        expected = picture.numpy()[:, :, ::-1] if flip else picture.numpy()
        assert numpy.array_equal(turned, expected)


def mirrored(number: int) -> Tensor:
    """Which of 400 examples, each its own number as a picture of two pixels, `alternate` mirrors in an epoch."""
    count = 400
    pictures = torch.stack([torch.arange(count) % 200, torch.full((count,), 255)], dim=1).byte().view(count, 1, 1, 2)
    source = TensorLoader(
        Examples(pictures, torch.arange(count), tuple(map(str, range(count)))),
        CPU,
        batch_size=32,
        statistics=((0.0,), (1 / 255,)),
        augmentation=Augmentation(flip="alternate"),
    )
    images, targets = (torch.cat(each) for each in zip(*source.epoch(number, 0), strict=True))
    return (images[:, 0, 0, 0] == 255)[targets.argsort()]


def test_alternate_flips_each_image_in_every_second_epoch_and_half_of_them_first() -> None:
    epochs = [mirrored(number) for number in range(4)]
    assert 160 < int(epochs[0].sum()) < 240
    assert torch.equal(epochs[1], ~epochs[0])
    assert torch.equal(epochs[2], epochs[0])
    assert torch.equal(epochs[3], epochs[1])


# --- rotation and elastic deformation


def rotations(angles: Tensor) -> Tensor:
    return affine_maps(angles, torch.zeros(len(angles), 4), 8, 6)


def warped_by_loops(image: Tensor, angle: float, displacement: Tensor) -> Tensor:
    """One picture (C, H, W), point by point: turned about its middle, moved, and read between four pixels."""
    C, H, W = image.shape
    found = torch.zeros(C, H, W, dtype=torch.float64)
    for row, column in product(range(H), range(W)):
        down, right = row - (H - 1) / 2, column - (W - 1) / 2
        y = math.cos(angle) * down + math.sin(angle) * right + (H - 1) / 2 + float(displacement[0, row, column])
        x = math.cos(angle) * right - math.sin(angle) * down + (W - 1) / 2 + float(displacement[1, row, column])
        for near_y, near_x in product((math.floor(y), math.floor(y) + 1), (math.floor(x), math.floor(x) + 1)):
            if 0 <= near_y < H and 0 <= near_x < W:
                share = (1 - abs(y - near_y)) * (1 - abs(x - near_x))
                found[:, row, column] += share * image[:, near_y, near_x].double()
    return found


def test_warped_equals_a_loop_over_the_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    images, angles = random_bytes(5, 2, 9, 7), torch.tensor([0.0, 0.3, -0.7, 2.0, 0.0])
    displacements = torch.empty(5, 2, 9, 7).uniform_(-2, 2, generator=generator)
    displacements[0] = 0
    found = warp(images, rotations(angles), displacements)
    for image, angle, displacement, bent in zip(images, angles.tolist(), displacements, found, strict=True):
        torch.testing.assert_close(bent.double(), warped_by_loops(image, angle, displacement), rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(found[0], images[0].float(), rtol=0, atol=1e-3)


def test_a_quarter_turn_is_rot90() -> None:
    images = random_bytes(3, 2, 6, 6)
    angles = torch.tensor([math.pi / 2, -math.pi / 2, math.pi])
    expected = torch.stack([image.rot90(turns, (1, 2)) for image, turns in zip(images, (1, -1, 2), strict=True)])
    torch.testing.assert_close(warp(images, rotations(angles), None), expected.float(), rtol=0, atol=1e-2)


def test_angles_are_uniform_in_the_requested_range() -> None:
    source = batches({"rotate": 30})
    maps = torch.cat([drawn_of(source, number).parameters["maps"] for number in range(40)])
    angles = torch.atan2(maps[:, 0, 1], maps[:, 0, 0]) * 180 / math.pi
    assert float(angles.abs().max()) <= 30
    assert float(angles.mean()) == pytest.approx(0, abs=3)
    assert float(angles.std()) == pytest.approx(60 / math.sqrt(12), rel=0.1)


def drawn_of(source: TensorLoader, number: int) -> SampledAugmentations:
    """What is drawn for an epoch, without the pictures."""
    generator = torch.Generator().manual_seed(number)
    return sample_epoch(source.augmentation, torch.arange(COUNT), source.images, SIZE, generator, 0, number)


def test_smoothed_noise_is_noise_weighed_by_a_bell() -> None:
    noise = torch.empty(2, 2, 7, 14).uniform_(-1, 1, generator=torch.Generator().manual_seed(0)).double()
    expected = torch.zeros_like(noise)
    norm = 0.0
    for row, column, near_row, near_column in product(range(7), range(14), range(7), range(14)):
        distance = ((row - near_row) / (SMOOTH * 7)) ** 2 + ((column - near_column) / (SMOOTH * 14)) ** 2
        expected[:, :, row, column] += math.exp(-distance / 2) * noise[:, :, near_row, near_column]
        norm += math.exp(-distance) if (row, column) == (3, 7) else 0.0
    torch.testing.assert_close(smooth(noise.float()).double(), expected / math.sqrt(norm / 3), rtol=1e-4, atol=1e-4)


def test_elastic_moves_the_middle_by_as_many_pixels_as_asked_for() -> None:
    examples = Examples(random_bytes(500, 1, 28, 28), torch.zeros(500, dtype=torch.int64), ("one",))
    source = TensorLoader(
        examples, CPU, batch_size=100, statistics=((0.0,), (1.0,)), augmentation=Augmentation(elastic=1.4)
    )
    draws = sample_epoch(source.augmentation, torch.arange(500), source.images, 100, torch.Generator(), 0, 0)
    found = draws._displacements(torch.arange(500), source.images)
    assert float(found[..., 14, 14].std()) == pytest.approx(1.4, rel=0.1)
    neighbours = torch.corrcoef(torch.stack([found[:, 0, 14, 14], found[:, 0, 14, 15]]))[0, 1]
    assert float(neighbours) > 0.95


# --- cutout, mixup, cutmix


@pytest.mark.parametrize("side", [1, 2, 3, 12])
def test_cutout_equals_a_loop_over_the_pixels(side: int) -> None:
    images = torch.randn(COUNT, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    middles = (torch.rand(COUNT, 2, generator=torch.Generator().manual_seed(7)) * torch.tensor([8, 6])).long()
    generator = torch.Generator().manual_seed(7)
    draws = sample_epoch(Augmentation(cutout=side), torch.arange(COUNT), images, SIZE, generator, 0, 0)
    found = draws.apply(images, torch.arange(COUNT), lambda floats: floats)
    for image, (down, right), wiped in zip(images, middles.tolist(), found, strict=True):
        expected = image.clone()
        for row, column in product(range(8), range(6)):
            if 0 <= row - (down - side // 2) < side and 0 <= column - (right - side // 2) < side:
                expected[:, row, column] = 0
        assert torch.equal(wiped, expected)


def test_mixed_images_equal_a_loop_over_the_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    images, others = (torch.randn(4, 2, 5, 6, generator=generator) for _ in range(2))
    shares = torch.tensor([0.25, 0.6, 1.0, 0.8])
    boxes = torch.tensor([[0, 0, 0, 0], [1, 4, 2, 6], [2, 2, 0, 6], [0, 2, 0, 3]])
    found = mix_images(images, others, shares, boxes)
    torch.testing.assert_close(found[0], 0.25 * images[0] + 0.75 * others[0])
    assert torch.equal(found[2], images[2])
    for number in (1, 3):
        top, bottom, left, right = boxes[number].tolist()
        expected = images[number].clone()
        expected[:, top:bottom, left:right] = others[number][:, top:bottom, left:right]
        assert torch.equal(found[number], expected)


@pytest.mark.parametrize("ways", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.3, "cutmix": 0.7}], ids=str)
def test_targets_are_mixed_like_the_images(ways: dict[str, Any]) -> None:
    """Each example is a picture of one grey, so that the mean of its pixels tells what it was mixed from."""
    greys = torch.tensor([0, 50, 100, 250], dtype=torch.uint8)[torch.arange(COUNT) % CLASSES]
    examples = Examples(greys.view(-1, 1, 1, 1).expand(-1, 1, 9, 11), torch.arange(COUNT) % CLASSES, tuple("abcd"))
    augmentation = Augmentation(**ways)
    source = TensorLoader(examples, CPU, batch_size=SIZE, statistics=((0.0,), (1 / 255,)), augmentation=augmentation)
    for images, targets in source.epoch(0, 0):
        assert targets.shape == (len(images), CLASSES)
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(len(images)))
        expected = targets @ torch.tensor([0.0, 50.0, 100.0, 250.0])
        torch.testing.assert_close(images.mean(dim=(1, 2, 3)), expected, rtol=1e-3, atol=1e-2)


def test_each_image_is_mixed_with_the_next_one_of_its_batch() -> None:
    plain, mixed = epoch(batches({})), epoch(batches({"mixup": 1}))
    for (images, targets), (blended, shares) in zip(plain, mixed, strict=True):
        share = (shares * F.one_hot(targets, CLASSES)).sum(dim=1)
        others = images.roll(-1, 0)
        for number, other in enumerate(targets.roll(-1, 0)):
            if other != targets[number]:
                expected = share[number] * images[number] + (1 - share[number]) * others[number]
                torch.testing.assert_close(blended[number], expected)


@pytest.mark.parametrize("shape", [0.2, 1.0, 4.0])
def test_mixup_weights_have_a_beta_distribution(shape: float) -> None:
    shares = torch.cat([drawn_of(batches({"mixup": shape}), number).parameters["fractions"] for number in range(100)])
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(shares.var()) == pytest.approx(1 / (4 * (2 * shape + 1)), rel=0.1)


def test_cutmix_boxes_are_as_large_as_the_target_weights() -> None:
    for number in range(20):
        draws = drawn_of(batches({"cutmix": 1}), number)
        top, bottom, left, right = draws.parameters["boxes"].T
        torch.testing.assert_close(
            1 - draws.parameters["fractions"], ((bottom - top) * (right - left) / (8 * 6)).float()
        )
        assert int(bottom.max()) <= 8
        assert int(right.max()) <= 6


def test_mixup_and_cutmix_together_take_half_of_the_images_each() -> None:
    drawn = [drawn_of(batches({"mixup": 1, "cutmix": 1}), number).parameters["boxes"] for number in range(40)]
    boxes = torch.cat(drawn)
    assert 0.35 < float((boxes[:, 1] > boxes[:, 0]).double().mean()) < 0.55  # some boxes are empty


def test_numbers_to_predict_are_mixed_too() -> None:
    examples = Examples(torch.rand(COUNT, 1, 2, 2), torch.arange(COUNT).float().view(-1, 1), ())
    source = TensorLoader(
        examples, CPU, batch_size=COUNT, statistics=((0.0,), (1.0,)), augmentation=Augmentation(mixup=1.0)
    )
    (_, targets), (_, plain) = next(source.epoch(0, 0)), next(TensorLoader.epoch(batches({}), 0, 0))
    assert targets.shape == (COUNT, 1)
    assert len(plain) == SIZE
    assert not torch.equal(targets.round(), targets)


def test_a_number_for_each_example_is_mixed_as_one() -> None:
    draws = drawn_of(batches({"mixup": 1.0}), 0)
    targets = torch.arange(COUNT).float()
    places = torch.arange(6)
    images, fractions = torch.zeros(6, 3, 8, 6), draws.parameters["fractions"][:6]
    _, found = draws.apply_mix((images, targets[:6]), (images, targets[6:12]), places)
    torch.testing.assert_close(found, fractions * targets[:6] + (1 - fractions) * targets[6:12])


def test_loss_and_accuracy_of_soft_targets_equal_their_definitions() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(6, CLASSES, generator=generator)
    targets = torch.rand(6, CLASSES, generator=generator).softmax(dim=1)
    task = Classification(label_smoothing=0.0)
    loss = task.loss(outputs, outputs, targets)
    torch.testing.assert_close(loss, -(targets * outputs.log_softmax(dim=1)).sum(dim=1).mean())
    ((count, total, right),) = task.sums(loss[None], outputs[None], targets[None]).tolist()
    assert (count, total) == (6, pytest.approx(6 * float(loss)))
    assert right == sum(int(a.argmax() == b.argmax()) for a, b in zip(outputs, targets, strict=True))
