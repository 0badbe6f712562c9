"""Which files below a folder are images: told by name or content; links are followed; what is left out has a reason."""

import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dltrain.data import image_files, image_search
from dltrain.data.splits import rules
from dltrain.runtime.errors import InputError
from support import corpus


def found(folder: Path) -> list[str]:
    """Names of the images below a folder."""
    return [os.path.relpath(path, folder) for path in image_search.find_images(folder)[0]]


def left_out(folder: Path) -> dict[str, str]:
    return {os.path.relpath(path, folder): why for path, why in image_search.find_images(folder)[1].items()}


def test_images_are_found_by_their_ending_in_any_case_and_depth_in_order(tmp_path: Path) -> None:
    names = ["Z.PNG", "a b/ü.JPeG", "a b/c/d.tif", "e.webp", "f.pgm", "ключ.gif"]
    for name in [*names, "notes.txt", "png", "g.png.zip", "labels.csv"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert image_search.find_images(tmp_path)[0] == list(map(str, sorted(tmp_path / name for name in names)))


def test_hidden_files_and_folders_are_not_found(tmp_path: Path) -> None:
    for name in ["seen.png", ".hidden.png", ".thumbnails/small.png", "deep/.cache/x/small.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert image_search.find_images(tmp_path) == ([str(tmp_path / "seen.png")], {})


def test_images_are_found_below_a_folder_that_lies_in_a_hidden_one(tmp_path: Path) -> None:
    picture = tmp_path / ".home" / "birds" / "a.png"
    picture.parent.mkdir(parents=True)
    picture.touch()
    assert found(picture.parent) == ["a.png"]


def test_links_that_lead_nowhere_or_to_themselves_are_no_images(tmp_path: Path) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "seen.png")
    (tmp_path / "other.png").symlink_to("seen.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "inside.png").symlink_to("seen.png/x")
    (tmp_path / "gone.png").symlink_to("away.png")
    assert found(tmp_path) == ["other.png", "seen.png"]
    assert left_out(tmp_path) == dict.fromkeys(("loop.png", "inside.png", "gone.png"), "link to nowhere")


def test_a_folder_that_is_closed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def guarded(folder: str | Path) -> Any:
        if Path(folder).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(InputError, match=f"{tmp_path / 'closed'}: cannot be read .Permission denied"):
        image_search.find_images(tmp_path)


@pytest.mark.parametrize("name", corpus.odd_files())
def test_an_image_is_known_by_its_content_under_any_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(corpus.odd_files()[name])
    assert found(tmp_path) == [name]
    assert image_files.decode(tmp_path / name, channels=1, size=(4, 4), fit="resize").float().mean().round() == 100


@pytest.mark.parametrize("name", corpus.NO_IMAGES)
def test_a_file_that_is_no_image_is_left_out_with_the_reason(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(corpus.NO_IMAGES[name])
    assert left_out(tmp_path) == {name: f"{Path(name).suffix or 'no extension'}: not a format that is read"}


def test_links_are_followed_and_each_folder_is_read_once(tmp_path: Path) -> None:
    folder = corpus.write_odd_files(tmp_path / "photos") / "cat"
    assert {"link.png", "again/5.png", "again/more/6.png"} <= set(found(folder))
    reasons = left_out(folder)
    assert reasons["linked"] == reasons["circle"] == "link to a folder that is read already"
    assert reasons["nowhere.png"] == reasons["nowhere"] == reasons["itself.png"] == "link to nowhere"
    assert reasons["pipe"] == image_search.NO_FILE


def test_a_circle_of_links_ends(tmp_path: Path) -> None:
    corpus.write(tmp_path, ("a/1.png", "b/2.png"))
    (tmp_path / "a" / "b").symlink_to("../b")
    (tmp_path / "b" / "a").symlink_to("../a")
    assert found(tmp_path) == ["a/1.png", "b/2.png"]
    assert found(tmp_path / "a") == ["1.png", "b/2.png"]


def test_by_the_older_rules_files_are_known_by_name_and_linked_folders_are_not_read(tmp_path: Path) -> None:
    folder = corpus.write_odd_files(tmp_path / "photos") / "cat"
    token = rules.set(1)
    try:
        assert found(folder) == ["1.png", "2.png", "a.JPG", "link.png"]
    finally:
        rules.reset(token)


def test_a_file_that_cannot_be_opened_is_left_out_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").touch()

    def refuse(path: Path, mode: str) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert left_out(tmp_path) == {"closed": "cannot be read (Permission denied)"}


def test_random_and_cut_files_are_images_or_left_out_and_decoding_them_raises_only_value_errors(tmp_path: Path) -> None:
    generator = random.Random(1)
    contents = [generator.randbytes(generator.randrange(60)) for _ in range(100)]
    for content in corpus.odd_files().values():
        contents += [content[: generator.randrange(40)], content[:12] + generator.randbytes(40)]
    contents += [bytes(4) + b"ftyp" + brand + generator.randbytes(50) for brand in (b"heic", b"mif1", b"avif", b"qt  ")]
    for number, content in enumerate(contents):
        (tmp_path / str(number)).write_bytes(content)
    images, others = image_search.find_images(tmp_path)
    assert len(images) + len(others) == len(contents)
    with image_files.without_pillow_warnings():
        for path in (*images, *others):
            try:
                image_files.decode(path, channels=3, size=(2, 2), fit="resize")
            except ValueError as error:
                assert 0 < len(str(error)) <= 120


# --- HEIC


def heic(path: Path) -> Path:
    """Write a grey HEIC image."""
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(Image.new("RGB", (64, 64), (100, 100, 100))).save(path)
    return path


@pytest.mark.parametrize("name", ["a.heic", "b.HEIF", "photo.jpg", "no extension"])
def test_heic_is_read_with_the_extra_under_any_name(name: str, tmp_path: Path) -> None:
    heic(tmp_path / name)
    assert found(tmp_path) == [name]
    pixels = image_files.decode(tmp_path / name, channels=3, size=(4, 4), fit="resize")
    assert (pixels.float() - 100).abs().max() <= 3


def test_without_the_extra_heic_is_refused_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "HAS_HEIF", False)
    (tmp_path / "a.heic").write_bytes(bytes(4) + b"ftypheic" + bytes(50))
    assert found(tmp_path) == ["a.heic"]
    image_files._formats.cache_clear()
    with pytest.raises(
        ValueError, match=r"HEIC: needs pillow-heif; in dltrain's checkout: pip install -e '\.\[heic\]'"
    ):
        image_files.open_image(tmp_path / "a.heic", channels=3)
