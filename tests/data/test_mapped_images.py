"""Images in a mapped file train like images in memory, to the bit, and take hardly any memory; else they are refused.

The whole version, 6 GB of images, runs with `-m torture`.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from dltrain.checkpoints import checkpoint
from dltrain.data import image_cache, image_files, image_reader
from dltrain.data.augmentation import Augmentation
from dltrain.data.datasets.folder import folder
from dltrain.data.loader import TensorLoader, channel_statistics
from dltrain.data.mapped_images import MappedImages
from dltrain.data.splits import Examples, Source, read_split, split_train_val
from dltrain.runtime.errors import InputError, OutputError
from dltrain.training import build
from support import generated, mapped_run
from support.command import Command

QUICK = ("data=folder", "data.root=photos", "data.size=[8,8]", "model=mlp", "model.hidden=[8]", "batch_size=7")
QUICK += ("epochs=2", "log_every=3", "report=false", "logger=none", "device.threads=1")
AUGMENTED = ("data.flip=true", "data.crop=1", "data.mixup=0.2", "data.cutout=2", "data.limit=50", "accumulate=2")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Eighty odd pictures in two classes, three of them damaged."""
    generated.write_odd_pictures(tmp_path / "photos", 80, damaged=3)
    return tmp_path / "photos"


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where decoded pictures are kept."""
    monkeypatch.setenv("DLTRAIN_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept"


def source(root: Path, memory: bool | None) -> Source:
    return partial(folder, root=str(root), size=[8, 8], channels=3, fit="resize", range=None, memory=memory)


def read(root: Path, memory: bool | None) -> Examples:
    found = read_split(source(root, memory), "train")
    assert found is not None
    return found


def in_memory(images: torch.Tensor) -> torch.Tensor:
    """A copy of images of which none is left in a file."""
    assert isinstance(images, MappedImages)
    return images[:]


def results(run: Path) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """The weights and metrics of a run, without what the clock says."""
    model = checkpoint.load(run / "checkpoints" / "last.pt")["model"]
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    metrics = [{key: value for key, value in line.items() if key != "examples_per_second"} for line in lines]
    return {key: value.numpy().tobytes() for key, value in model.items()}, metrics


def train(dltrain: Command, *words: str) -> Path:
    result = dltrain("train", *words)
    assert result.code == 0, result.err
    return result.folder


@pytest.mark.parametrize("more", [(), AUGMENTED], ids=["plain", "augmented"])
def test_a_run_on_mapped_images_equals_one_in_memory_to_the_bit(
    dltrain: Command, root: Path, kept: Path, more: tuple[str, ...]
) -> None:
    mapped, from_cache, plain = (
        train(dltrain, *QUICK, *more, f"data.memory={memory}") for memory in ("false", "false", "true")
    )
    assert results(mapped) == results(from_cache) == results(plain)
    assert "images from the cache, in a mapped file" in (from_cache / "train.log").read_text()
    digests = [checkpoint.load(run / "checkpoints" / "last.pt")["data"] for run in (mapped, plain)]
    assert str(digests[0]) == str(digests[1])


@pytest.mark.parametrize(("before", "after"), [("false", "false"), ("true", "false"), ("false", "true")])
def test_a_run_may_be_resumed_with_its_images_mapped_or_in_memory(
    dltrain: Command, root: Path, kept: Path, before: str, after: str
) -> None:
    whole = train(dltrain, *QUICK, "data.memory=true")
    half = train(dltrain, *QUICK, f"data.memory={before}", "limit_steps=5")
    result = dltrain("train", f"resume={half}", "limit_steps=null", f"data.memory={after}")
    assert result.code == 0, result.err
    assert "differs from an uninterrupted one" not in result.err + result.out
    assert results(half) == results(whole)


def test_evaluation_of_a_mapped_run_gives_its_metrics(dltrain: Command, root: Path, kept: Path) -> None:
    run = train(dltrain, *QUICK, "data.memory=false")
    result = dltrain("eval", f"ckpt={run}", "--json")
    assert result.code == 0, result.err
    expected = json.loads((run / "summary.json").read_text())["test"]["accuracy"]
    assert json.loads(result.out)["accuracy"] == expected
    assert dltrain("eval", f"ckpt={run}", "split=val").code == 0


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        ("mistakes", ("optim.lr=1e-6",)),
        ("attention", ("model=attention", "model.patch=4")),
        ("pictures", ("model=autoencoder", "task=reconstruction")),
    ],
)
def test_a_report_shows_mapped_images(
    dltrain: Command, root: Path, kept: Path, shown: str, words: tuple[str, ...]
) -> None:
    options = ["report=true", "epochs=1", "data.size=[16,16]", *words]
    quick = [word for word in QUICK if "model" not in word] if "model" in str(words) else QUICK
    runs = [train(dltrain, *quick, *options, f"data.memory={memory}") for memory in ("false", "true")]
    one, other = (json.loads((run / "analysis.json").read_text()) for run in runs)
    assert one == other
    assert one[shown]


@pytest.mark.parametrize("augmentation", [Augmentation(), Augmentation(crop=1, flip=True, mixup=0.3)], ids=str)
@pytest.mark.parametrize("first", [0, 3])
def test_mapped_images_make_the_same_batches(root: Path, kept: Path, augmentation: Augmentation, first: int) -> None:
    mapped, _ = split_train_val(source(root, False), val=0.2, limit=50, seed=3)
    loaders = [
        TensorLoader(
            mapped._replace(images=images), torch.device("cpu"), batch_size=6,
            statistics=channel_statistics(images), augmentation=augmentation, seed=4,
        )
        for images in (mapped.images, in_memory(mapped.images))
    ]  # fmt: skip
    for batches in zip(*(loader.epoch(1, first) for loader in loaders), strict=True):
        assert all(torch.equal(one, other) for one, other in zip(*batches, strict=True))
    for batches in zip(*(loader.in_order(1, 2) for loader in loaders), strict=True):
        assert all(torch.equal(one, other) for one, other in zip(*batches, strict=True))


@pytest.mark.parametrize("fold", [{}, {"folds": 3, "fold": 1}], ids=str)
def test_a_cut_leaves_mapped_images_in_their_file(root: Path, kept: Path, fold: dict[str, int]) -> None:
    mapped, val = split_train_val(source(root, False), val=0.2, limit=50, seed=3, **fold)
    plain, _ = split_train_val(source(root, True), val=0.2, limit=50, seed=3, **fold)
    assert val is not None
    assert isinstance(mapped.images, MappedImages) and isinstance(val.images, MappedImages)
    assert mapped.images.file is val.images.file
    assert torch.equal(in_memory(mapped.images), plain.images)
    assert build.digest(mapped) == build.digest(plain)
    assert channel_statistics(mapped.images) == channel_statistics(plain.images)


@pytest.mark.parametrize("is_mapped", [True, False])
def test_a_thread_reads_mapped_images_ahead_and_ends_with_the_epoch(is_mapped: bool) -> None:
    images = torch.zeros(1200, 3, 8, 8, dtype=torch.uint8)
    some = MappedImages(images.numpy(), torch.arange(1200)) if is_mapped else images
    examples = Examples(some, torch.zeros(1200, dtype=torch.int64), ("a",))
    loader = TensorLoader(examples, torch.device("cpu"), batch_size=300, statistics=((0.0,) * 3, (1.0,) * 3))
    before = threading.active_count()
    for epoch in (loader.epoch(0, 0), loader.epoch(0, 2)):
        next(epoch)
        assert threading.active_count() == before + is_mapped
        epoch.close()  # type: ignore[attr-defined]
        assert threading.active_count() == before


def test_operations_that_would_read_the_whole_file_are_errors(root: Path, kept: Path) -> None:
    images = read(root, False).images
    assert (images.ndim, images.dtype, len(images)) == (4, torch.uint8, 61)
    for operation in (images.float, images.clone, images.sum, lambda: images.split(3)):
        with pytest.raises(TypeError, match="would read all images of a mapped file"):
            operation()


# --- the file


@pytest.mark.parametrize("damage", ["cut", "altered", "of another length", "empty", "short", "random", "long"])
def test_a_mapped_file_that_was_altered_is_decoded_again(root: Path, kept: Path, damage: str) -> None:
    first = in_memory(read(root, False).images)
    (file,) = kept.iterdir()
    content = bytearray(file.read_bytes())
    noise = numpy.random.default_rng(0).bytes(5000)
    match damage:
        case "cut":
            del content[-500:]
        case "altered":
            content[1000] ^= 1
        case "of another length":
            content[-1] ^= 1
        case "empty":
            content.clear()
        case "short":
            content[:] = b"abc"
        case "random":
            content[:] = noise
        case "long":
            content[-4:] = b"\xff\xff\xff\xff"
    file.write_bytes(content)
    assert torch.equal(in_memory(read(root, False).images), first)
    assert len(file.read_bytes()) > 61 * 3 * 64


def test_random_damage_never_gives_other_images(tmp_path: Path) -> None:
    path, generator = tmp_path / "kept", numpy.random.default_rng(1)
    images = torch.from_numpy(generator.integers(0, 256, (5, 3, 4, 4), dtype=numpy.uint8))
    image_cache.write(path, "key", images, {5: "torn"}, 0)
    content = path.read_bytes()
    for case in range(400):
        altered = bytearray(content)
        altered[int(generator.integers(len(content)))] ^= 1 << case % 8
        cut = int(generator.integers(len(content)))
        path.write_bytes([altered, content[:cut], content[cut:], generator.bytes(cut)][case % 4])
        found = image_cache.read(path, "key", (3, 4, 4), mapped=case % 3 > 0)
        assert found is None or torch.equal(found.images[:], images)


def test_images_stay_valid_when_another_process_replaces_the_file(root: Path, kept: Path) -> None:
    first = read(root, False)
    expected = in_memory(first.images)
    (file,) = kept.iterdir()
    file.with_name("other").write_bytes(bytes(file.stat().st_size))
    file.with_name("other").replace(file)
    assert torch.equal(in_memory(first.images), expected)
    file.unlink()
    assert torch.equal(in_memory(first.images), expected)


def test_without_a_cache_mapped_images_lie_in_a_file_that_has_no_name(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    assert torch.equal(in_memory(read(root, False).images), read(root, True).images)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_mapped_images_of_which_some_could_not_be_read_are_not_kept(
    root: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = image_files.decode

    def refusing(path: str, **how: Any) -> torch.Tensor:
        if path.endswith(".bmp"):
            raise image_files.Unreadable("[Errno 13] Permission denied")
        return plain(path, **how)

    with monkeypatch.context() as patch:
        patch.setattr(image_files, "decode", refusing)
        fewer = in_memory(read(root, False).images)
    assert list(kept.iterdir()) == []
    assert len(read(root, False).images) > len(fewer)


def test_mapped_images_of_which_none_can_be_read_are_refused(tmp_path: Path, kept: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "photos" / "train" / name).mkdir(parents=True)
        (tmp_path / "photos" / "train" / name / "1.png").write_bytes(b"no picture")
    for _ in range(2):
        with pytest.raises(InputError, match="none of the 2 images of the train split can be read"):
            read(tmp_path / "photos", False)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_decoded(
    root: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(20_000, 10_000, 10_000))
    monkeypatch.setattr(image_files, "decode", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(OutputError, match=r"kept: cannot hold 12,288 bytes of images. Set DLTRAIN_CACHE elsewhere"):
        read(root, False)


# --- in memory or not


@pytest.mark.parametrize(
    ("memory", "free", "is_mapped"),
    [(None, 10**9, False), (None, 30_000, True), (True, 10**9, False), (False, 10**9, True), (False, 30_000, True)],
)
def test_images_are_mapped_where_they_take_more_than_a_third_of_the_free_memory(
    root: Path, kept: Path, monkeypatch: pytest.MonkeyPatch, memory: bool | None, free: int, is_mapped: bool
) -> None:
    monkeypatch.setattr(image_reader, "free_memory", lambda: free)
    assert isinstance(read(root, memory).images, MappedImages) == is_mapped


def test_memory_that_is_asked_for_and_not_there_is_refused_before_anything_is_decoded(
    dltrain: Command, root: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_reader, "free_memory", lambda: 30_000)
    monkeypatch.setattr(image_files, "decode", lambda *_, **__: pytest.fail("decoded"))
    result = dltrain("train", *QUICK, "data.memory=true")
    assert result.code == 66
    assert "the 64 images of the train split need 0.0 GB of memory" in result.err
    assert "Set data.memory=null to leave them in a file" in result.err
    assert len(result.err.strip().splitlines()) <= 3


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc, which only Linux has")
@pytest.mark.parametrize(
    ("megabytes", "allowed"),
    [pytest.param(300, 100, marks=pytest.mark.slow), pytest.param(6000, 1600, marks=pytest.mark.torture)],
)
def test_mapped_images_take_hardly_any_memory_and_give_the_weights_of_a_run_in_memory(
    tmp_path: Path, megabytes: int, allowed: int
) -> None:
    """Decoding included. For another size: python -m support.mapped_run, which prints what is compared here."""
    environment = os.environ | {
        "DLTRAIN_CACHE": str(tmp_path / "kept"),
        "PYTHONPATH": os.pathsep.join([str(Path(mapped_run.__file__).parents[1]), *filter(None, sys.path)]),
    }
    found = []
    for memory in ("false", "true"):
        command = [sys.executable, "-m", "support.mapped_run", str(tmp_path), str(megabytes), f"data.memory={memory}"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
    mapped, plain = found
    assert mapped["peak"] - mapped["level"] < allowed
    assert mapped["peak"] < 2000
    assert plain["peak"] - plain["level"] > megabytes / 2  # else this could not fail
    assert results(Path(mapped["run"])) == results(Path(plain["run"]))
