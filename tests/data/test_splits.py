"""Data sets as tensors: what a source may return, and how limit and validation cut it without bias or overlap."""

import functools
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from dltrain.config import registry
from dltrain.data.splits import Examples, Source, by_rules, read_split, rules, split_train_val, stratified
from dltrain.runtime.errors import ConfigError, InputError

CLASS_SIZES = [50, 30, 17, 3]
TOTAL = sum(CLASS_SIZES)


def numbered(count: int = TOTAL) -> Examples:
    """Pictures that carry their number in their one pixel, and labels of classes of different sizes, mixed."""
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor(CLASS_SIZES))
    labels = labels[torch.randperm(TOTAL, generator=torch.Generator().manual_seed(0))][:count]
    return Examples(torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1), labels, ("a", "b", "c", "d"))


def source_of(**splits: Any) -> Source:
    """A data set's function that has these splits."""
    return splits.get


def numbers(examples: Examples) -> list[int]:
    """Which of the numbered pictures these are, in order."""
    return examples.images.flatten().tolist()


def byte_images(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


class Pictures(Dataset[Any]):
    """A map-style data set of whatever pictures it is given, labelled 0, 1, 2, ..."""

    def __init__(self, *pictures: Any) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.pictures[index], index


# --- how many


@pytest.mark.parametrize(("limit", "left"), [(0.25, 25), (25, 25), (1, 1), (0.999, 100), (100, 100), (None, 100)])
def test_limit_is_a_fraction_or_a_count_of_the_training_examples(limit: float | None, left: int) -> None:
    train, _ = split_train_val(source_of(train=numbered()), val=0, limit=limit, seed=0)
    assert len(train.images) == left


@pytest.mark.parametrize(("val", "held"), [(0.1, 10), (10, 10), (1, 1), (0.99, 99), (99, 99)])
def test_val_is_a_fraction_or_a_count_of_the_training_examples(val: float, held: int) -> None:
    train, own = split_train_val(source_of(train=numbered()), val=val, limit=None, seed=0)
    assert own is not None
    assert (len(train.images), len(own.images)) == (TOTAL - held, held)


def test_val_0_takes_no_validation_set() -> None:
    train, val = split_train_val(source_of(train=numbered(), val=numbered(5)), val=0, limit=None, seed=0)
    assert len(train.images) == TOTAL
    assert val is None


def test_val_is_a_fraction_of_the_limited_examples() -> None:
    train, val = split_train_val(source_of(train=numbered()), val=0.2, limit=50, seed=0)
    assert val is not None
    assert (len(train.images), len(val.images)) == (40, 10)


@pytest.mark.parametrize("val", [0.001, 0.999, 100, 101])
def test_a_val_that_leaves_no_training_or_no_validation_examples_is_refused(val: float) -> None:
    with pytest.raises(ConfigError, match=rf"data\.val={val} .* 100 training examples") as caught:
        split_train_val(source_of(train=numbered()), val=val, limit=None, seed=0)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("limit", [0, 0.001, 101])
def test_a_limit_of_zero_or_above_the_number_of_examples_is_refused(limit: float) -> None:
    with pytest.raises(ConfigError, match=rf"data\.limit={limit} .* 100 training examples") as caught:
        split_train_val(source_of(train=numbered()), val=0, limit=limit, seed=0)
    assert caught.value.exit_code == 2


def test_a_val_that_the_limit_makes_too_large_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.val=20 is more than the 10 training examples"):
        split_train_val(source_of(train=numbered()), val=20, limit=10, seed=0)


# --- which


@pytest.mark.parametrize("seed", [0, 1, 2**40 + 3])
@pytest.mark.parametrize("count", [1, 4, 7, 10, 33, 50, 99, 100])
def test_a_stratified_subset_keeps_each_class_fraction_to_within_one_example(count: int, seed: int) -> None:
    labels = numbered().targets
    found = torch.bincount(labels[stratified(labels, count, seed)], minlength=4)
    assert all(abs(have - size * count / TOTAL) < 1 for have, size in zip(found.tolist(), CLASS_SIZES, strict=True))


@pytest.mark.parametrize("count", [1, 7, 50, 99, 100])
def test_a_stratified_subset_has_count_distinct_examples_in_their_order(count: int) -> None:
    indices = stratified(numbered().targets, count, seed=3).tolist()
    assert len(indices) == count
    assert indices == sorted(set(indices) & set(range(TOTAL)))


def test_a_subset_of_examples_with_numbers_is_distinct_and_random() -> None:
    indices = stratified(torch.linspace(0, 1, 200).view(-1, 1), 50, seed=0).tolist()
    assert len(set(indices)) == 50
    assert len({after - before for before, after in pairwise(indices)}) > 2  # not evenly spaced


def test_the_validation_set_keeps_each_class_fraction() -> None:
    _, val = split_train_val(source_of(train=numbered()), val=0.2, limit=None, seed=0)
    assert val is not None
    found = torch.bincount(val.targets, minlength=4).tolist()
    assert all(abs(have - 0.2 * size) < 1 for have, size in zip(found, CLASS_SIZES, strict=True))


def test_a_limited_training_set_keeps_each_class_fraction() -> None:
    train, _ = split_train_val(source_of(train=numbered()), val=0, limit=0.5, seed=0)
    found = torch.bincount(train.targets, minlength=4).tolist()
    assert all(abs(have - 0.5 * size) < 1 for have, size in zip(found, CLASS_SIZES, strict=True))


@pytest.mark.parametrize("limit", [None, 50])
def test_training_and_validation_set_divide_the_limited_examples(limit: int | None) -> None:
    whole, _ = split_train_val(source_of(train=numbered()), val=0, limit=limit, seed=4)
    train, val = split_train_val(source_of(train=numbered()), val=0.2, limit=limit, seed=4)
    assert val is not None
    assert sorted(numbers(train) + numbers(val)) == numbers(whole)


def test_images_keep_their_labels_and_class_names() -> None:
    everything = numbered()
    for part in split_train_val(source_of(train=everything), val=0.3, limit=0.7, seed=1):
        assert part is not None
        assert part.targets.tolist() == everything.targets[numbers(part)].tolist()
        assert part.classes == everything.classes


def test_the_same_seed_draws_the_same_validation_set() -> None:
    first, second = (split_train_val(source_of(train=numbered()), val=0.2, limit=0.5, seed=7)[1] for _ in range(2))
    assert first is not None and second is not None
    assert numbers(first) == numbers(second)


def test_another_seed_draws_another_validation_set() -> None:
    first, second = (split_train_val(source_of(train=numbered()), val=0.2, limit=None, seed=seed)[1] for seed in (7, 8))
    assert first is not None and second is not None
    assert numbers(first) != numbers(second)


def test_another_seed_draws_another_limited_training_set() -> None:
    first, second = (split_train_val(source_of(train=numbered()), val=0, limit=0.5, seed=seed)[0] for seed in (7, 8))
    assert numbers(first) != numbers(second)


def test_the_split_does_not_depend_on_the_seed_of_torch() -> None:
    torch.manual_seed(1)
    first = stratified(numbered().targets, 20, seed=7)
    torch.manual_seed(2)
    assert torch.equal(first, stratified(numbered().targets, 20, seed=7))


def test_a_predefined_validation_split_is_used_and_nothing_is_held_back() -> None:
    own = numbered(5)
    train, val = split_train_val(source_of(train=numbered(), val=own), val=0.2, limit=None, seed=0)
    assert len(train.images) == TOTAL
    assert val is not None
    assert numbers(val) == numbers(own)


# --- folds


def folds_of(source: Source, folds: int, limit: int | None = None, seed: int = 0) -> list[tuple[Examples, Examples]]:
    """The training and the validation set of each fold."""
    divided = [
        split_train_val(source, val=0.3, limit=limit, seed=seed, folds=folds, fold=fold) for fold in range(folds)
    ]
    return [(train, val) for train, val in divided if val is not None]


@pytest.mark.parametrize("limit", [None, 53])
@pytest.mark.parametrize("folds", [2, 3, 5, 7, 50])
def test_each_example_is_in_exactly_one_fold_and_in_training_otherwise(folds: int, limit: int | None) -> None:
    whole, _ = split_train_val(source_of(train=numbered()), val=0, limit=limit, seed=4)
    divided = folds_of(source_of(train=numbered()), folds, limit, seed=4)
    assert sorted(number for _, val in divided for number in numbers(val)) == numbers(whole)
    for train, val in divided:
        assert sorted(numbers(train) + numbers(val)) == numbers(whole)
        assert numbers(val) == sorted(numbers(val))
        assert torch.equal(val.targets, numbered().targets[numbers(val)])


@pytest.mark.parametrize("folds", [2, 3, 5, 7, 50])
def test_the_sizes_of_folds_differ_by_at_most_one_in_all_and_in_each_class(folds: int) -> None:
    divided = folds_of(source_of(train=numbered()), folds)
    counts = torch.stack([torch.bincount(val.targets, minlength=4) for _, val in divided])
    assert int((counts.amax(0) - counts.amin(0)).max()) <= 1
    assert int(counts.sum(1).max() - counts.sum(1).min()) <= 1


def test_folds_of_numbers_are_random_and_of_one_size() -> None:
    source = source_of(train=Examples(torch.arange(100.0).view(-1, 1, 1, 1), torch.linspace(0, 1, 100).view(-1, 1), ()))
    divided = [sorted(int(it) for it in val.images.flatten()) for _, val in folds_of(source, 4)]
    assert sorted(number for fold in divided for number in fold) == list(range(100))
    assert [len(fold) for fold in divided] == [25] * 4
    assert len({after - before for before, after in pairwise(divided[0])}) > 2


def test_the_seed_does_not_change_folds() -> None:
    first, other = (folds_of(source_of(train=numbered()), 5, seed=seed) for seed in (0, 9))
    assert [numbers(val) for _, val in first] == [numbers(val) for _, val in other]


def test_folds_of_a_data_set_with_its_own_validation_set_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.folds=5: the data set has a validation set of its own"):
        folds_of(source_of(train=numbered(), val=numbered(5)), 5)


def test_more_folds_than_examples_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.folds=101 takes 0 of 100 training examples"):
        split_train_val(source_of(train=numbered()), val=0, limit=None, seed=0, folds=101, fold=100)


def test_a_data_set_without_a_train_split_is_refused() -> None:
    with pytest.raises(InputError, match="no train split") as caught:
        split_train_val(source_of(test=numbered()), val=0, limit=None, seed=0)
    assert caught.value.exit_code == 66


# --- what a source may return


def test_a_tuple_of_tensors_is_used_unchanged() -> None:
    images, labels = byte_images(3, 1, 2, 2), torch.tensor([0, 1, 0])
    found = read_split(source_of(train=(images, labels, ("cat", "dog"))), "train")
    assert found is not None
    assert found.images is images and found.targets is labels
    assert found.classes == ("cat", "dog")


@pytest.mark.parametrize("classes", [None, (), []])
def test_classes_without_names_are_named_by_their_numbers(classes: Any) -> None:
    found = read_split(source_of(train=(byte_images(3, 1, 2, 2), torch.tensor([0, 2, 1]), classes)), "train")
    assert found is not None
    assert found.classes == ("0", "1", "2")


def test_numbers_to_predict_have_no_classes() -> None:
    found = read_split(source_of(train=(torch.zeros(3, 1, 1, 1), torch.zeros(3, 2), None)), "train")
    assert found is not None
    assert found.classes == ()


def test_a_split_that_a_source_does_not_have_is_none() -> None:
    assert read_split(source_of(train=numbered()), "test") is None


def test_a_torch_data_set_of_tensors_is_read_whole_and_in_order() -> None:
    images = torch.rand(5, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 1, 0])
    found = read_split(source_of(train=TensorDataset(images, labels)), "train")
    assert found is not None
    assert torch.equal(found.images, images)
    assert torch.equal(found.targets, labels)
    assert found.classes == ("0", "1", "2")


def test_grey_pil_images_become_one_channel() -> None:
    pixels = numpy.arange(12, dtype=numpy.uint8).reshape(3, 4)
    found = read_split(source_of(train=Pictures(Image.fromarray(pixels))), "train")
    assert found is not None
    assert found.images.dtype == torch.uint8
    assert numpy.array_equal(found.images, pixels[None, None])


def test_colour_pil_images_become_channels_first() -> None:
    pixels = numpy.arange(36, dtype=numpy.uint8).reshape(3, 4, 3)
    found = read_split(source_of(train=Pictures(Image.fromarray(pixels))), "train")
    assert found is not None
    assert found.images.dtype == torch.uint8
    assert numpy.array_equal(found.images[0], pixels.transpose(2, 0, 1))


def test_arrays_with_channels_last_become_channels_first() -> None:
    pixels = numpy.arange(24, dtype=numpy.float32).reshape(3, 4, 2)
    found = read_split(source_of(train=Pictures(pixels)), "train")
    assert found is not None
    assert numpy.array_equal(found.images[0], pixels.transpose(2, 0, 1))


def test_a_torch_data_set_gives_labels_and_class_names() -> None:
    dataset = Pictures(Image.new("L", (2, 2)), Image.new("L", (2, 2)))
    dataset.classes = ["cat", "dog", "bird"]  # type: ignore[attr-defined]
    found = read_split(source_of(train=dataset), "train")
    assert found is not None
    assert found.targets.tolist() == [0, 1]
    assert found.classes == ("cat", "dog", "bird")


# --- what it may not

LABELS = torch.tensor([0, 1])
PROBLEMS: dict[str, tuple[Callable[[], Any], str]] = {
    "flat images": (lambda: (byte_images(2, 9), LABELS, None), r"must be .* \(N, C, H, W\), got torch.uint8 \(2, 9\)"),
    "float64 images": (
        lambda: (torch.zeros(2, 1, 3, 3, dtype=torch.float64), LABELS, None),
        r"must be uint8 or float32 images .*, got torch.float64 \(2, 1, 3, 3\)",
    ),
    "1-bit pictures": (lambda: Pictures(Image.new("1", (2, 2))), "must be uint8 or float32 images .*, got torch.bool"),
    "no examples": (lambda: (byte_images(0, 1, 2, 2), torch.zeros(0, dtype=torch.int64), ("a",)), "is empty"),
    "a label too few": (lambda: (byte_images(3, 1, 2, 2), LABELS, None), "has 3 images but 2 labels"),
    "int32 labels": (
        lambda: (byte_images(2, 1, 2, 2), LABELS.int(), None),
        r"must have int64 labels \(N,\), got torch.int32 \(2,\)",
    ),
    "labels in a column": (
        lambda: (byte_images(2, 1, 2, 2), LABELS.view(2, 1), None),
        r"must have int64 labels \(N,\), got torch.int64 \(2, 1\)",
    ),
    "a label without a class": (
        lambda: (byte_images(2, 1, 2, 2), LABELS, ("only",)),
        "has labels from 0 to 1 but 1 classes",
    ),
    "a negative label": (
        lambda: (byte_images(2, 1, 2, 2), LABELS - 1, ("a", "b")),
        "has labels from -1 to 0 but 2 classes",
    ),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_split_that_cannot_be_trained_on_is_refused_by_name(problem: str) -> None:
    returned, message = PROBLEMS[problem]
    with pytest.raises(InputError, match=f"^data: the test split {message}") as caught:
        read_split(source_of(test=returned()), "test")
    assert caught.value.exit_code == 66


@pytest.mark.parametrize(
    "returned",
    [
        (byte_images(2, 1, 2, 2), LABELS),
        (byte_images(2, 1, 2, 2), [0, 1], None),
        (numpy.zeros((2, 1, 2, 2)), LABELS, None),
    ],
    ids=["no class names", "labels in a list", "images in an array"],
)
def test_a_tuple_of_other_things_is_refused_with_what_is_expected(returned: Any) -> None:
    with pytest.raises(InputError, match=r"expected \(images, labels, class names\)") as caught:
        read_split(source_of(train=returned), "train")
    assert caught.value.exit_code == 66


def test_a_torch_data_set_without_examples_is_refused() -> None:
    with pytest.raises(InputError, match="empty") as caught:
        read_split(source_of(train=Pictures()), "train")
    assert caught.value.exit_code == 66


@pytest.mark.parametrize("kind", ["number", "tensor", "tensor of one", "list"])
def test_a_torch_data_set_of_numbers_to_predict_has_a_row_for_each_example(kind: str) -> None:
    made = {
        "number": float,
        "tensor": torch.tensor,
        "tensor of one": lambda x: torch.tensor([x]),
        "list": lambda x: [x],
    }
    items = [(torch.zeros(1, 2, 2), made[kind](number / 2)) for number in range(3)]
    found = read_split(source_of(train=items), "train")
    assert found is not None
    assert found.targets.tolist() == [[0.0], [0.5], [1.0]]
    assert found.targets.dtype == torch.float32


def test_several_numbers_for_each_example_of_a_torch_data_set_are_a_row() -> None:
    items = [(torch.zeros(1, 2, 2), torch.tensor([number, 1.0])) for number in (2.0, 3.0)]
    found = read_split(source_of(train=items), "train")
    assert found is not None
    assert found.targets.tolist() == [[2.0, 1.0], [3.0, 1.0]]


def test_labels_of_several_shapes_are_refused() -> None:
    items = [(torch.zeros(1, 2, 2), torch.zeros(number)) for number in (1, 2)]
    with pytest.raises(InputError, match="labels must be numbers, or tensors of one shape"):
        read_split(source_of(train=items), "train")


def test_a_tuple_with_one_number_for_each_example_has_rows_of_one() -> None:
    found = read_split(source_of(train=(torch.zeros(3, 1, 2, 2), torch.arange(3.0), None)), "train")
    assert found is not None
    assert found.targets.shape == (3, 1)


# --- rare classes


def as_5bb6990(targets: Tensor, count: int, seed: int) -> Tensor:
    """`stratified` of commit 5bb6990."""
    shuffled = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed % 2**32))
    shuffled = shuffled[targets[shuffled].argsort(stable=True)]
    return shuffled[torch.arange(count) * len(targets) // max(1, count)].sort().values


def labels_of(*sizes: int) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))


def left(targets: Tensor, chosen: Tensor, *, is_training: bool) -> list[int]:
    """How many training examples of each class a choice leaves."""
    taken = torch.bincount(targets[chosen], minlength=int(targets.max()) + 1)
    return (taken if is_training else torch.bincount(targets) - taken).tolist()


def some_labels() -> Iterator[tuple[Tensor, int, int, bool]]:
    """Labels of random classes, how many to take, a seed and for what."""
    generator = torch.Generator().manual_seed(0)
    for seed in range(300):
        sizes = torch.randint(1, 2 + seed % 40, (1 + seed % 12,), generator=generator)
        labels = labels_of(*sizes.tolist())
        labels = labels[torch.randperm(len(labels), generator=generator)]
        yield labels, int(torch.randint(0, len(labels) + 1, (1,), generator=generator)), seed, bool(seed % 2)


def test_where_every_class_keeps_an_example_the_same_are_chosen_as_before() -> None:
    same = 0
    for labels, count, seed, is_training in some_labels():
        before = as_5bb6990(labels, count, seed)
        if min(left(labels, before, is_training=is_training)) > 0:
            same += 1
            assert torch.equal(stratified(labels, count, seed, is_training=is_training), before)
    assert same > 100


def test_every_class_keeps_an_example_wherever_there_are_enough() -> None:
    other = 0
    for labels, count, seed, is_training in some_labels():
        chosen = stratified(labels, count, seed, is_training=is_training)
        assert len(chosen) == len(set(chosen.tolist())) == count
        training = count if is_training else len(labels) - count
        other += not torch.equal(chosen, as_5bb6990(labels, count, seed))
        kept = left(labels, chosen, is_training=is_training)
        assert sum(amount > 0 for amount in kept) == min(training, int(labels.max()) + 1)
    assert other > 30


def test_by_the_rules_of_5bb6990_the_same_are_chosen_always() -> None:
    with by_rules(1):
        for labels, count, seed, is_training in some_labels():
            chosen = stratified(labels, count, seed, is_training=is_training)
            assert torch.equal(chosen, as_5bb6990(labels, count, seed))
    assert rules.get() == 2


def test_shares_stay_fair_where_rare_classes_are_kept() -> None:
    sizes = [400, 100, 1, 2, 1, 300]
    kept = left(labels_of(*sizes), stratified(labels_of(*sizes), 161, seed=0), is_training=False)
    assert sum(kept) == 804 - 161
    assert kept[2:5] == [1, 1 + (kept[3] == 2), 1]
    assert all(abs(amount - 0.8 * size) <= 2 for amount, size in zip(kept, sizes, strict=True))


@pytest.mark.parametrize(("sizes", "count"), [([2] * 20, 24), ([1] * 10, 2), ([3] * 7, 19)])
def test_no_class_loses_because_of_its_name(sizes: list[int], count: int) -> None:
    labels = labels_of(*sizes)
    held_out = torch.zeros(len(sizes))
    for seed in range(400):
        chosen = stratified(labels, count, seed)
        if torch.equal(chosen, as_5bb6990(labels, count, seed)):
            continue
        held_out += torch.bincount(labels[chosen], minlength=len(sizes))
    assert held_out.min() > 0.6 * held_out.mean()
    assert held_out.max() < 1.4 * held_out.mean()


def source_with(labels: Tensor) -> Source:
    images = torch.arange(len(labels)).view(-1, 1, 1, 1).float()
    names = tuple(f"class {label}" for label in range(int(labels.max()) + 1))
    return source_of(train=Examples(images, labels, names))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("limit", [None, 0.5])
@pytest.mark.parametrize("sizes", [[2, 200], [200, 2], [2] * 20, [1, 999], [999, 1], [1, 1, 500]], ids=str)
def test_rare_classes_are_trained_on_through_limit_and_val(
    sizes: list[int], limit: float | None, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    if limit and sizes == [2] * 20:
        limit = 30
    train, val = split_train_val(source_with(labels_of(*sizes)), val=0.1, limit=limit, seed=seed)
    assert val is not None
    assert not set(train.images.flatten().tolist()) & set(val.images.flatten().tolist())
    assert set(train.targets.tolist()) == set(range(len(sizes)))
    assert caplog.messages == []


def test_classes_that_cannot_have_a_training_example_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    split_train_val(source_with(labels_of(*[5] * 8)), val=2, limit=8, seed=0)
    (message,) = caplog.messages
    assert message.startswith("classes without a training example (2 of 8): class ")
    caplog.clear()
    split_train_val(source_with(labels_of(*[1] * 30)), val=0, limit=10, seed=0)
    assert caplog.messages[0].startswith("classes without a training example (20 of 30): class ")
    assert caplog.messages[0].endswith(", …")
    assert caplog.messages[0].count("class ") == 5


@pytest.mark.parametrize("name", ["digits", "mnist", pytest.param("cifar10", marks=pytest.mark.slow)])
def test_data_sets_are_split_as_before(name: str, request: pytest.FixtureRequest) -> None:
    node = {"name": name}
    if name != "digits":
        node["root"] = str(request.getfixturevalue("real_data"))
    source = functools.cache(registry.partial_call("data", node))
    labels = read_split(source, "train").targets  # type: ignore[union-attr]
    for val, limit in ((0.1, None), (5, 1000), (0.05, 0.3)):
        train, found = split_train_val(source, val=val, limit=limit, seed=3)
        taken = as_5bb6990(labels, limit if isinstance(limit, int) else round((limit or 1) * len(labels)), 3)
        taken = torch.arange(len(labels)) if limit is None else taken
        held = taken[as_5bb6990(labels[taken], val if isinstance(val, int) else round(val * len(taken)), 3)]
        assert torch.equal(found.targets, labels[held])  # type: ignore[union-attr]
        assert torch.equal(found.images, read_split(source, "train").images[held])  # type: ignore[union-attr]
        assert len(train.images) == len(taken) - len(held)
