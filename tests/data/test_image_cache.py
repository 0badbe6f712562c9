"""Decoded pictures are kept: the next start has the same without decoding, what is stale, cut or altered is none."""

import errno
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dltrain.data import image_cache, image_files
from dltrain.data.datasets.folder import folder
from dltrain.data.splits import Examples
from dltrain.runtime.errors import InputError
from support import generated
from support.command import Command
from support.tiers import mostly_slow


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Forty odd pictures in two classes, three of them damaged."""
    generated.write_odd_pictures(tmp_path / "photos", 80, damaged=3)
    return tmp_path / "photos"


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where decoded pictures are kept."""
    monkeypatch.setenv("DLTRAIN_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Which files have been decoded."""
    done: list[Path] = []
    plain = image_files.decode

    def noting(path: Path, **how: object) -> torch.Tensor:
        done.append(path)
        return plain(path, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(image_files, "decode", noting)
    return done


def read(root: Path, split: str = "train", size: int = 8) -> Examples:
    found = folder(split, root=str(root), size=[size, size], channels=3, fit="resize", range=None, memory=None)
    assert found is not None
    return found


def same(one: Examples, other: Examples) -> bool:
    return torch.equal(one.images, other.images) and torch.equal(one.targets, other.targets) and one[2] == other[2]


def test_the_next_start_has_the_same_images_and_decodes_none(root: Path, kept: Path, decodings: list[Path]) -> None:
    first = [read(root, split) for split in ("train", "test")]
    assert len(decodings) == 80
    assert all(same(one, read(root, split)) for one, split in zip(first, ("train", "test"), strict=True))
    assert len(decodings) == 80
    assert len(list(kept.iterdir())) == 2


def test_damaged_images_are_named_at_each_start(root: Path, kept: Path, caplog: pytest.LogCaptureFixture) -> None:
    told = []
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.DEBUG, "dltrain.data.image_reader"):
            read(root), read(root, "test")
        told.append([record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG])
    assert sum(line.count("Bild") for line in told[0]) == 3
    assert told[0] == told[1]


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def write(path: Path) -> None:
    Image.new("RGB", (9, 9), (1, 2, 3)).save(path)


def test_two_images_of_one_size_and_time_that_swap_names_are_decoded_again(root: Path, kept: Path) -> None:
    first, second = root / "dark" / "one.bmp", root / "light and wide" / "one.bmp"
    for path, grey in ((first, 10), (second, 200)):
        Image.new("RGB", (9, 9), (grey, grey, grey)).save(path)
        touch(path)
    before = [read(root, split) for split in ("train", "test")]
    first.rename(root / "x")
    second.rename(first)
    (root / "x").rename(second)
    assert not all(same(one, read(root, split)) for one, split in zip(before, ("train", "test"), strict=True))


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "written", "touched", "replaced by one as large"])
def test_changed_images_are_decoded_again(root: Path, kept: Path, decodings: list[Path], change: str) -> None:
    write(root / "dark" / "one.bmp")
    read(root), read(root, "test")
    before = len(decodings)
    path = root / "dark" / "one.bmp"
    match change:
        case "added":
            write(root / "dark" / "two.bmp")
        case "removed":
            path.unlink()
        case "renamed":
            path.rename(path.with_name("three.bmp"))
        case "written":
            Image.new("RGB", (30, 9), (200, 2, 3)).save(path)
        case "touched":
            touch(path)
        case _:
            Image.new("RGB", (9, 9), (200, 2, 3)).save(path)
    found = [read(root, split) for split in ("train", "test")]
    assert len(decodings) > before
    os.environ["DLTRAIN_CACHE"] = ""  # the fixture puts it back
    assert all(same(one, read(root, split)) for one, split in zip(found, ("train", "test"), strict=True))


@pytest.mark.parametrize("damage", ["cut", "one bit altered", "empty", "no such format", "another's", "a folder"])
def test_a_damaged_file_of_them_counts_as_none_and_is_written_anew(
    root: Path, kept: Path, decodings: list[Path], damage: str
) -> None:
    first = read(root)
    (file,) = kept.iterdir()
    content, before = file.read_bytes(), len(decodings)
    match damage:
        case "cut":
            file.write_bytes(content[:-7])
        case "one bit altered":
            file.write_bytes(content[:-7] + bytes([content[-7] ^ 1]) + content[-6:])
        case "empty":
            file.write_bytes(b"")
        case "no such format":
            file.write_bytes(b"pictures" * 100)
        case "another's":
            read(root, size=4)
            (other,) = set(kept.iterdir()) - {file}
            other.replace(file)
            before = len(decodings)
        case _:
            file.unlink()
            file.mkdir()
    assert same(read(root), first)
    assert len(decodings) > before
    before = len(decodings)
    assert same(read(root), first)
    assert (len(decodings) == before) == (damage != "a folder")


@pytest.mark.parametrize("place", mostly_slow(range(0, 100, 3), fast=range(0, 100, 15)))
def test_any_altered_byte_gives_the_same_images_or_none(root: Path, kept: Path, place: int) -> None:
    first = read(root)
    (file,) = kept.iterdir()
    content = bytearray(file.read_bytes())
    content[place * len(content) // 100] ^= 1 << place % 8
    file.write_bytes(content)
    assert same(read(root), first)


def test_other_sizes_and_splits_are_kept_apart(root: Path, kept: Path) -> None:
    assert read(root, size=8).images.shape[2:] == (8, 8)
    assert read(root, size=4).images.shape[2:] == (4, 4)
    assert read(root, size=8).images.shape[2:] == (8, 8)
    assert len(read(root).images) != len(read(root, "test").images)
    assert len(list(kept.iterdir())) == 3


def test_without_write_permission_images_are_decoded_each_time(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decodings: list[Path]
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("DLTRAIN_CACHE", str(tmp_path / "a file" / "kept"))
    assert same(read(root), read(root))
    assert len(decodings) == 2 * len({*decodings})


def test_files_that_could_not_be_read_are_tried_again(root: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Path.open

    def refusing(path: Path, *how: Any, **more: Any) -> Any:
        if path.suffix == ".bmp":
            raise PermissionError(errno.EACCES, "Permission denied")
        return plain(path, *how, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refusing)
        fewer = read(root)
    assert not kept.exists()
    assert len(read(root).images) > len(fewer.images)


def test_on_a_disk_that_is_nearly_full_nothing_is_kept(root: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    read(root)
    assert list(kept.iterdir()) == []


def test_an_empty_variable_keeps_nothing(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    read(root)
    assert not (tmp_path / "cache").exists()
    monkeypatch.delenv("DLTRAIN_CACHE")
    read(root)
    assert [path.parent.name for path in (tmp_path / "cache").rglob("*.images")] == ["dltrain"]


def test_a_folder_of_nothing_but_damaged_images_is_refused_at_each_start(tmp_path: Path, kept: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "photos" / "train" / name).mkdir(parents=True)
        (tmp_path / "photos" / "train" / name / "1.png").write_bytes(b"no picture")
    for _ in range(2):
        with pytest.raises(InputError, match="none of the 2 images of the train split can be read"):
            read(tmp_path / "photos")
    assert not kept.exists()


def test_a_run_on_cached_images_equals_one_on_decoded_images(dltrain: Command, root: Path, kept: Path) -> None:
    words = ["train", "data=folder", f"data.root={root}", "data.size=[8,8]", "model=mlp", "epochs=2", "log_every=3"]
    first, second = dltrain(*words), dltrain(*words)
    assert first.code == second.code == 0
    assert "train: 61 images decoded" in first.out
    assert "train: 61 images from the cache" in second.out
    keys = [
        [{k: v for k, v in line.items() if k != "examples_per_second"} for line in map(__import__("json").loads, text)]
        for text in ((run.folder / "metrics.jsonl").read_text().splitlines() for run in (first, second))
    ]
    assert keys[0] == keys[1]


def test_fingerprints_do_not_run_names_together(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    one = image_cache.fingerprint(tmp_path, [f"{tmp_path}/a", f"{tmp_path}/b"], 1)
    assert one != image_cache.fingerprint(tmp_path, [f"{tmp_path}/b", f"{tmp_path}/a"], 1)
    assert one != image_cache.fingerprint(tmp_path, [f"{tmp_path}/a", f"{tmp_path}/b"], 2)
    assert one == image_cache.fingerprint(tmp_path, [f"{tmp_path}/a", f"{tmp_path}/b"], 1)


def test_the_names_of_classes_count_in_the_current_folder_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1").touch()
        os.utime(tmp_path / name / "1", (0, 0))
    one, other = (image_cache.fingerprint(Path(), [f"{name}/1"]) for name in ("a", "b"))
    assert one != other
    assert one == image_cache.fingerprint(tmp_path, [f"{tmp_path}/a/1"])
