"""How often examples come in an epoch with `data.balance`: the stated fractions, evenly, and a pure function."""

import pytest
import torch
from torch import Tensor

from dltrain.data.augmentation import Augmentation
from dltrain.data.balance import balanced_order
from dltrain.data.loader import TensorLoader
from dltrain.data.mapped_images import MappedImages
from dltrain.data.splits import Examples
from dltrain.runtime.torchrun import SINGLE_PROCESS, Processes

SIZES = (50, 5, 0, 25)  # of the classes; one has no example
LABELS = torch.arange(4).repeat_interleave(torch.tensor(SIZES))[torch.randperm(80, generator=torch.manual_seed(0))]


def order(balance: float, epoch: int = 0, targets: Tensor = LABELS) -> Tensor:
    return balanced_order(targets, generator=torch.Generator().manual_seed(epoch), balance=balance)


def per_class(chosen: Tensor) -> list[int]:
    return LABELS[chosen].bincount(minlength=4).tolist()


@pytest.mark.parametrize("balance", [0.0, 0.01, 0.3, 0.5, 0.9, 1.0])
def test_an_epoch_is_as_long_as_before_and_each_class_has_its_fraction_to_within_one(balance: float) -> None:
    for epoch in range(20):
        chosen = order(balance, epoch)
        assert len(chosen) == 80
        for size, found in zip(SIZES, per_class(chosen), strict=True):
            assert abs(found - ((1 - balance) * size + balance * 80 / 3 * bool(size))) < 1


def test_over_epochs_the_mean_of_a_class_is_exactly_its_fraction() -> None:
    counts = torch.tensor([per_class(order(1.0, epoch)) for epoch in range(1000)]).double().mean(dim=0)
    torch.testing.assert_close(counts, torch.tensor([80 / 3, 80 / 3, 0, 80 / 3]).double(), rtol=0, atol=0.05)


@pytest.mark.parametrize("balance", [0.0, 0.4, 1.0])
def test_within_an_epoch_examples_of_a_class_come_equally_often_to_within_one(balance: float) -> None:
    for epoch in range(5):
        times = order(balance, epoch).bincount(minlength=80)
        for label in (0, 1, 3):
            of_class = times[LABELS.eq(label)]
            assert int(of_class.max() - of_class.min()) <= 1


def test_each_epoch_leaves_out_others_of_a_large_class() -> None:
    left_out = torch.stack([order(1.0, epoch).bincount(minlength=80)[LABELS == 0] == 0 for epoch in range(200)])
    fractions = left_out.double().mean(dim=0)  # of epochs, for each of 50 examples; 23 or 24 are left out
    assert 0.3 < float(fractions.min()) < float(fractions.max()) < 0.65
    assert len({tuple(row.tolist()) for row in left_out}) == 200


def test_classes_are_mixed_within_an_epoch() -> None:
    firsts = torch.stack([LABELS[order(1.0, epoch)[:8]].bincount(minlength=4) for epoch in range(100)]).sum(dim=0)
    assert all(200 < int(count) < 340 for count in firsts[[0, 1, 3]])


def test_a_single_class_and_one_example_of_each_class_are_plain_shuffles() -> None:
    for targets in (torch.zeros(9, dtype=torch.int64), torch.arange(9)):
        assert order(1.0, 3, targets).sort().values.tolist() == list(range(9))


def loader(images: Tensor, processes: Processes = SINGLE_PROCESS, **keys: float | str) -> TensorLoader:
    examples = Examples(images, LABELS, tuple("abcd"))
    return TensorLoader(
        examples,
        torch.device("cpu"),
        batch_size=12,
        statistics=((0.0,), (1 / 255,)),  # so that a byte stays as it is
        augmentation=Augmentation(**keys),  # type: ignore[arg-type]
        balance=1.0,
        seed=7,
        processes=processes,
    )


NUMBERED = torch.arange(80, dtype=torch.uint8).view(80, 1, 1, 1).repeat(1, 1, 1, 2)


@pytest.mark.parametrize("keys", [{}, {"mixup": 0.5}, {"flip": "alternate", "crop": 1}], ids=str)
def test_batches_of_an_epoch_depend_on_seed_and_epoch_alone_and_may_begin_anywhere(keys: dict[str, float]) -> None:
    whole = list(loader(NUMBERED, **keys).epoch(3, 0))
    rest = list(loader(NUMBERED, **keys).epoch(3, 4))
    assert len(rest) == len(whole) - 4 == 3
    for first, second in zip(whole[4:], rest, strict=True):
        assert all(map(torch.equal, first, second))
    assert not torch.equal(whole[0][0], next(loader(NUMBERED, **keys).epoch(2, 0))[0])


def test_mapped_images_are_balanced_like_images_in_memory() -> None:
    mapped = MappedImages(NUMBERED.numpy(), torch.arange(80).numpy())  # type: ignore[arg-type]
    for first, second in zip(loader(NUMBERED).epoch(1, 0), loader(mapped).epoch(1, 0), strict=True):
        assert all(map(torch.equal, first, second))


def test_images_keep_their_labels_and_ranks_divide_the_order_of_one_process() -> None:
    whole = [(images[:, 0, 0, 0].long(), targets) for images, targets in loader(NUMBERED).epoch(0, 0)]
    assert all(torch.equal(LABELS[numbers], targets) for numbers, targets in whole)
    ranks = [list(loader(NUMBERED, Processes(rank, 3)).epoch(0, 0)) for rank in range(3)]
    for index, (_, targets) in enumerate(whole):
        assert torch.equal(torch.cat([batches[index][1] for batches in ranks]), targets)
