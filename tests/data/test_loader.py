"""Batches: pure functions of (seed, epoch), each example once, augmentations and normalisation equal to references."""

from itertools import product

import pytest
import torch
from torch import Tensor

from dltrain.data.augmentation import Augmentation
from dltrain.data.loader import TensorLoader, channel_statistics, normalization
from dltrain.data.splits import Examples
from dltrain.runtime.errors import ConfigError

CPU = torch.device("cpu")
COUNT, SIZE = 23, 5  # four full batches and one of three
AS_BYTES = (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)  # statistics that leave bytes as they are


def random_bytes(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def batches(*, crop: int = 0, flip: bool = False, seed: int = 0) -> TensorLoader:
    """Random pictures, higher than wide, with their number as target."""
    examples = Examples(random_bytes(COUNT, 3, 8, 6), torch.arange(COUNT), tuple(map(str, range(COUNT))))
    augmentation = Augmentation(crop=crop, flip=flip)
    return TensorLoader(examples, CPU, batch_size=SIZE, statistics=AS_BYTES, augmentation=augmentation, seed=seed)


def targets(source: TensorLoader, epoch: int) -> list[int]:
    return torch.cat([target for _, target in source.epoch(epoch, 0)]).tolist()


def images(source: TensorLoader, epoch: int) -> Tensor:
    return torch.cat([image for image, _ in source.epoch(epoch, 0)])


# --- order


def test_an_epoch_is_the_same_twice() -> None:
    source = batches(crop=2, flip=True)
    assert torch.equal(images(source, 3), images(source, 3))


def test_an_epoch_does_not_depend_on_earlier_epochs() -> None:
    used = batches(crop=2, flip=True)
    for epoch in range(3):
        images(used, epoch)
    torch.manual_seed(99)
    assert torch.equal(images(used, 3), images(batches(crop=2, flip=True), 3))


def test_an_epoch_does_not_use_the_global_generator_of_torch() -> None:
    before = torch.get_rng_state()
    images(batches(crop=2, flip=True), 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_pair_of_seed_and_epoch_has_a_different_order() -> None:
    orders = {tuple(targets(batches(seed=seed), epoch)) for seed, epoch in product(range(4), range(4))}
    assert len(orders) == 16


def test_every_epoch_has_different_crops() -> None:
    source = batches(crop=2)
    first, second = (images(source, epoch)[torch.tensor(targets(source, epoch)).argsort()] for epoch in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("first", range(6))
def test_an_epoch_started_at_a_later_batch_has_the_same_batches(first: int) -> None:
    whole = list(batches(crop=2, flip=True, seed=5).epoch(2, 0))[first:]
    rest = list(batches(crop=2, flip=True, seed=5).epoch(2, first))
    assert len(rest) == 5 - first
    for (image, target), (expected_image, expected_target) in zip(rest, whole, strict=True):
        assert torch.equal(image, expected_image)
        assert torch.equal(target, expected_target)


@pytest.mark.parametrize("epoch", range(3))
def test_an_epoch_has_every_example_once(epoch: int) -> None:
    assert sorted(targets(batches(crop=1, flip=True), epoch)) == list(range(COUNT))


def test_an_epoch_is_shuffled() -> None:
    assert targets(batches(), 0) != list(range(COUNT))


def test_images_and_targets_stay_together() -> None:
    source = batches()
    assert torch.equal(images(source, 1).round().byte(), source.images[targets(source, 1)])


def test_augmentation_does_not_change_the_order() -> None:
    assert targets(batches(crop=2, flip=True), 4) == targets(batches(), 4)


def test_the_last_partial_batch_is_kept() -> None:
    source = batches()
    assert [len(target) for _, target in source.epoch(0, 0)] == [5, 5, 5, 5, 3]
    assert len(source) == 5


def test_a_batch_larger_than_the_data_set_is_the_data_set() -> None:
    examples = Examples(random_bytes(3, 1, 2, 2), torch.arange(3), ("a", "b", "c"))
    source = TensorLoader(examples, CPU, batch_size=100, statistics=((0.0,), (1.0,)))
    assert [len(target) for _, target in source.epoch(0, 0)] == [3]


def test_evaluation_is_in_order_whole_and_not_augmented() -> None:
    source = batches(crop=2, flip=True)
    found = list(source.in_order())
    assert torch.cat([target for _, target in found]).tolist() == list(range(COUNT))
    assert torch.equal(torch.cat([image for image, _ in found]).round().byte(), source.images)


# --- normalisation

MEAN, STD = (0.4914, 0.4822, 0.0), (0.2470, 0.2435, 1.0)


def by_channel(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)


def test_bytes_are_scaled_to_0_to_1_and_standardized() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    source = TensorLoader(Examples(levels, torch.arange(2), ("a", "b")), CPU, batch_size=2, statistics=(MEAN, STD))
    found, _ = next(source.in_order())
    expected = (levels.double() / 255 - by_channel(MEAN)) / by_channel(STD)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 1e-6


def test_floats_become_less_mean_over_std() -> None:
    values = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    source = TensorLoader(Examples(values, torch.arange(2), ("a", "b")), CPU, batch_size=2, statistics=(MEAN, STD))
    found, _ = next(source.in_order())
    expected = (values.double() - by_channel(MEAN)) / by_channel(STD)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_normalization_does_not_change_the_data_set(dtype: torch.dtype) -> None:
    pictures = random_bytes(4, 3, 6, 6).to(dtype)
    source = TensorLoader(Examples(pictures, torch.arange(4), tuple("abcd")), CPU, batch_size=4, statistics=(MEAN, STD))
    before = pictures.clone()
    once, _ = next(source.in_order())
    again, _ = next(source.in_order())
    assert torch.equal(pictures, before)
    assert torch.equal(once, again)


def test_statistics_of_the_data_set_standardize_it_to_mean_0_and_std_1() -> None:
    pictures = random_bytes(50, 3, 6, 6)
    source = TensorLoader(
        Examples(pictures, torch.arange(50), tuple(map(str, range(50)))),
        CPU,
        batch_size=50,
        statistics=normalization(pictures, mean=None, std=None),
    )
    found, _ = next(source.in_order())
    std, mean = torch.std_mean(found.double(), dim=(0, 2, 3), correction=0)
    assert mean.abs().max() < 1e-6
    assert (std - 1).abs().max() < 1e-6


def test_given_mean_and_std_are_used() -> None:
    given = normalization(random_bytes(2, 3, 4, 4), mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    assert given == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_one_given_number_goes_for_every_channel() -> None:
    assert normalization(random_bytes(2, 3, 4, 4), mean=[0.5], std=[0.25]) == ((0.5,) * 3, (0.25,) * 3)


def test_missing_statistics_are_computed_from_the_images() -> None:
    pictures = random_bytes(2, 3, 4, 4)
    mean, std = channel_statistics(pictures)
    assert normalization(pictures, mean=None, std=None) == (mean, std)
    assert normalization(pictures, mean=[0.5], std=None) == ((0.5,) * 3, std)
    assert normalization(pictures, mean=None, std=[0.5]) == (mean, (0.5,) * 3)


def test_numbers_without_given_statistics_stay_as_they_are() -> None:
    assert normalization(torch.full((4, 2, 1, 1), 7.0), mean=None, std=None) == ((0.0, 0.0), (1.0, 1.0))


@pytest.mark.parametrize("key", ["mean", "std"])
@pytest.mark.parametrize("given", [[], [0.5, 0.5], [0.5] * 4])
def test_a_wrong_number_of_channels_is_refused(key: str, given: list[float]) -> None:
    keys: dict[str, list[float] | None] = {"mean": None, "std": None, key: given}
    with pytest.raises(ConfigError, match=rf"data\.{key}=.* must have 1 or 3 numbers") as caught:
        normalization(random_bytes(2, 3, 4, 4), mean=keys["mean"], std=keys["std"])
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("shape", [(7, 3, 5, 4), (20_001, 2, 1, 2)])  # the second is counted in three parts
def test_channel_statistics_equal_torch_mean_and_std(shape: tuple[int, ...]) -> None:
    pictures = random_bytes(*shape)
    pictures[:, 0] //= 3  # channels that differ
    std, mean = torch.std_mean(pictures.double() / 255, dim=(0, 2, 3), correction=0)
    found_mean, found_std = channel_statistics(pictures)
    assert found_mean == pytest.approx(mean.tolist(), abs=1e-9)
    assert found_std == pytest.approx(std.tolist(), abs=1e-9)


@pytest.mark.parametrize("level", [0, 100, 255])
def test_a_channel_of_one_colour_has_no_std_of_0(level: int) -> None:
    pictures = random_bytes(3, 2, 4, 4)
    pictures[:, 1] = level
    mean, std = channel_statistics(pictures)
    assert mean[1] == pytest.approx(level / 255)
    assert std[1] == 1 / 255


# --- augmentation


def one_picture(picture: Tensor, *, crop: int = 0, flip: bool = False, count: int = 400) -> Tensor:
    """The same picture (H, W) count times, augmented in batches of 20: (count, H, W)."""
    examples = Examples(picture.repeat(count, 1, 1, 1), torch.zeros(count, dtype=torch.int64), ("one",))
    augmentation = Augmentation(crop=crop, flip=flip)
    source = TensorLoader(
        examples, CPU, batch_size=20, statistics=((0.0,), (1 / 255,)), augmentation=augmentation, seed=0
    )
    return images(source, 0).squeeze(1).round().byte()


def shifted_dot() -> list[tuple[int, ...]]:
    """Where a dot in the middle of 7x7 pixels comes to lie in each of 400 crops by up to two pixels."""
    dot = torch.zeros(7, 7, dtype=torch.uint8)
    dot[3, 3] = 200
    return [tuple(place.tolist()) for picture in one_picture(dot, crop=2) for place in (picture == 200).nonzero()]


def test_every_allowed_shift_occurs_and_no_other() -> None:
    assert set(shifted_dot()) == set(product(range(1, 6), repeat=2))


def test_each_image_of_a_batch_is_shifted_independently() -> None:
    assert len(set(shifted_dot()[:20])) > 5


def test_each_batch_has_different_shifts() -> None:
    places = shifted_dot()
    assert len({tuple(places[start : start + 20]) for start in range(0, 400, 20)}) == 20


def test_a_crop_is_filled_with_black() -> None:
    values = one_picture(torch.full((4, 4), 90, dtype=torch.uint8), crop=1).unique()
    assert values.tolist() == [0, 90]


def mirrored() -> list[bool]:
    """Which of 400 pictures come out mirrored, the others being as they were."""
    picture = torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.uint8)
    found = one_picture(picture, flip=True)
    assert all(torch.equal(turned, picture) or torch.equal(turned, picture.flip(1)) for turned in found)
    return [torch.equal(turned, picture.flip(1)) for turned in found]


def test_about_half_of_the_images_are_flipped() -> None:
    assert 150 < sum(mirrored()) < 250


def test_each_batch_flips_different_images() -> None:
    flips = mirrored()
    assert len({tuple(flips[start : start + 20]) for start in range(0, 400, 20)}) == 20


def test_without_augmentation_training_images_are_unchanged() -> None:
    picture = random_bytes(5, 4)
    assert torch.equal(one_picture(picture, count=3), picture.expand(3, 5, 4))
