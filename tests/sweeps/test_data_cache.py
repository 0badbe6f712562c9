"""What a worker keeps of a data set between two jobs: neither reads, divides nor hashes what the last one had too."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dltrain.config import composition
from dltrain.data.splits import Examples
from dltrain.sweeps.executors.data_cache import DataCache
from dltrain.training import build


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The sizes of the splits that were hashed."""
    sizes: list[int] = []
    digest = build.digest

    def counted(examples: Examples) -> str:
        sizes.append(len(examples.images))
        return digest(examples)

    monkeypatch.setattr(build, "digest", counted)
    yield sizes


def node(*overrides: str) -> dict[str, Any]:
    data: dict[str, Any] = composition.preview("train", list(overrides)).config["data"]
    return data


@pytest.mark.parametrize("words", [["data.val=0"], ["data.folds=3", "data.fold=0"]])
def test_data_that_the_seed_does_not_divide_is_kept_for_other_seeds(words: list[str]) -> None:
    cache = DataCache()
    assert cache(node(*words), 1) is cache(node(*words), 0)
    assert cache(node(*words, "data.limit=100"), 1) is not cache(node(*words, "data.limit=100"), 0)


@pytest.mark.parametrize("words", [["data.val=0.2"], ["data.val=0", "data.limit=0.5"], ["data.limit=100"]])
def test_every_division_is_that_of_a_single_run(words: list[str]) -> None:
    cache, wanted = DataCache(), node(*words)
    for seed in (0, 1, 0, 2):
        alone, shared = build.data(wanted, seed), cache(wanted, seed)
        assert shared.digests == alone.digests
        assert (shared.class_counts, shared.shared_images) == (alone.class_counts, alone.shared_images)
        assert all(torch.equal(shared.splits[name].images, part.images) for name, part in alone.splits.items())


def test_seeds_that_come_in_turn_are_hashed_once_each(hashed: list[int]) -> None:
    cache = DataCache()
    digests = [cache(node("data.val=0.2"), seed).digests for seed in (0, 1, 0, 1, 0)]
    assert len(hashed) == 2 * 3
    assert digests == [digests[0], digests[1], digests[0], digests[1], digests[0]]
    assert digests[0]["val"] != digests[1]["val"]


def test_jobs_with_other_augmentations_share_the_data(hashed: list[int]) -> None:
    cache = DataCache()
    first = cache(node(), 0)
    others = [cache(node(*words), 0) for words in (["data.crop=2"], ["data.augment=light", "data.mixup=0.2"])]
    assert all(other is first for other in others)
    assert first.digests
    assert len(hashed) == 3


def test_another_normalisation_divides_the_same_data_again() -> None:
    cache = DataCache()
    first = cache(node("data.mean=[0.5]", "data.std=[0.5]"), 0)
    source = cache.source
    second = cache(node("data.mean=[0.1]", "data.std=[0.5]"), 0)
    assert cache.source is source
    assert (first.statistics, second.statistics) == (((0.5,), (0.5,)), ((0.1,), (0.5,)))


def test_a_data_set_of_other_keys_is_read_anew_with_its_own_digests() -> None:
    cache = DataCache()
    digits = cache(node("data.val=0"), 0).digests
    line = node("data=line", "data.val=0")
    assert cache(line, 0).digests == build.data(line, 0).digests
    assert cache(node("data.val=0"), 0).digests == digits
