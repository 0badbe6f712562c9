"""Images of 16 bits, of 32 bits and of floats: one scale for a data set, in training and prediction."""

import logging
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from dltrain.data import image_files
from dltrain.data.datasets.folder import folder
from dltrain.data.levels import EACH_BY_ITSELF, choose, spread, to_bytes
from dltrain.data.splits import Examples, by_rules
from dltrain.runtime.errors import ConfigError
from support.command import Command

GREYS = numpy.arange(256).reshape(16, 16)
Array = numpy.ndarray[Any, Any]


def ramp(white: float, kind: type = numpy.uint16, *, peak: float | None = None) -> Array:
    """256 greys from 0 to white; with one brighter pixel."""
    numbers = GREYS * (white / 255)
    if peak is not None:
        numbers[0, 0] = peak
    return numbers.round().astype(kind) if kind != numpy.float32 else numbers.astype(kind)


def save(path: Path, numbers: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(numbers).save(path)


def of(*images: Array, mode: str = "I;16") -> list[float] | None:
    return choose([spread(image.astype(float), mode) for image in images])


def read(root: Path, split: str = "train", range: list[float] | None = None) -> Examples:
    found = folder(split, root=str(root), size=[16, 16], channels=1, fit="resize", range=range, memory=None)
    assert found is not None
    return found


def old_bytes(numbers: Array, mode: str) -> Array:
    """What commit 5bb6990 made of an image."""
    levels = numbers.astype(numpy.float64)
    highest = levels.max(initial=0)
    top = 65535 if mode.startswith("I;16") or highest > 255 else 255
    top = 1 if mode == "F" and highest <= 1 else top
    return (levels.clip(0, top) * (255 / top)).round().astype(numpy.uint8)


# --- which levels


@pytest.mark.parametrize("white", [255, 1023, 4095, 16383, 65535])
def test_whole_numbers_have_the_fewest_bits_that_hold_them(white: int) -> None:
    assert of(ramp(white), ramp(white / 9)) == [0, white]
    assert of(ramp(white, numpy.int32), mode="I") == [0, white]


def test_a_few_pixels_may_overshoot() -> None:
    assert of(ramp(1, numpy.float32, peak=1.01), mode="F") == [0, 1]
    assert of(ramp(1, numpy.float32, peak=-0.04), mode="F") == [0, 1]
    assert of(ramp(255, numpy.float32, peak=256), mode="F") == [0, 255]
    assert of(ramp(255, numpy.int32, peak=300), mode="I") == [0, 255]
    assert of(ramp(4095, peak=4200)) == [0, 4095]


def test_many_or_far_brighter_pixels_do_not_count_as_overshoot() -> None:
    assert of(ramp(1200)) == [0, 4095]
    assert of(ramp(255, numpy.int32, peak=2000), mode="I") == [0, 4095]
    assert of(ramp(1.2, numpy.float32), mode="F") == pytest.approx([0, 1.2])


def test_floats_that_are_neither_from_0_to_1_nor_bytes_have_their_own_levels() -> None:
    assert of(ramp(3, numpy.float32), mode="F") == [0, 3]
    assert of(ramp(1e6, numpy.float32), mode="F") == [0, 1e6]
    assert of(ramp(4000, numpy.float32), mode="F") == [0, 4095]
    assert of(ramp(0.01, numpy.float32), mode="F") == [0, 1]


def test_numbers_below_zero_count_unless_they_mark_missing_values() -> None:
    assert of(2 * ramp(1, numpy.float32) - 1, mode="F") == [-1, 1]
    assert of(ramp(3000, numpy.int32) - 1024, mode="I") == [-1024, 4095]
    assert of(ramp(1, numpy.float32, peak=-9999), mode="F") == [0, 1]


def test_numbers_that_are_not_finite_are_passed_over() -> None:
    odd = ramp(1, numpy.float32)
    odd[:4] = numpy.array([[numpy.nan], [numpy.inf], [-numpy.inf], [0]])
    assert of(odd, mode="F") == [0, 1]
    assert to_bytes(odd.astype(float), "F", [0, 1])[:3, 0].tolist() == [0, 255, 0]
    assert of(numpy.full((4, 4), numpy.nan), mode="F") == [0, 1]


def test_without_deep_images_and_for_floats_among_whole_numbers_there_are_none() -> None:
    assert choose([]) is None
    assert choose([spread(GREYS.astype(float), "F"), spread(GREYS.astype(float), "I;16")]) is None


# --- the bytes


def test_16_bits_that_fill_their_range_give_the_same_bytes_as_before() -> None:
    every = numpy.arange(65536, dtype=numpy.float64)
    assert of(every) == [0, 65535]
    assert numpy.array_equal(to_bytes(every, "I;16", [0, 65535]), old_bytes(every, "I;16"))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F"])
@pytest.mark.parametrize("high", [0, 0.5, 1, 1.01, 200, 255, 256, 300, 5000, 65535, 90000])
def test_by_the_old_rule_an_image_gives_the_same_bytes_as_before(mode: str, high: float) -> None:
    numbers = numpy.linspace(-high / 3, high, 99)
    assert numpy.array_equal(to_bytes(numbers, mode, EACH_BY_ITSELF), old_bytes(numbers, mode))


@pytest.mark.parametrize(
    ("mode", "white", "peak"), [("F", 1, 1.01), ("F", 255, 256), ("I", 255, 300), ("F", 1, 1.2)], ids=str
)
def test_a_single_image_that_overshoots_stays_as_bright(mode: str, white: float, peak: float, tmp_path: Path) -> None:
    save(tmp_path / "a.tiff", ramp(white, numpy.float32 if mode == "F" else numpy.int32, peak=peak))
    found = image_files.decode(tmp_path / "a.tiff", channels=1, size=(16, 16), fit="resize")
    assert found.flatten().tolist() == [255, *range(1, 256)]


# --- a data set


@pytest.mark.parametrize(
    ("white", "peak", "kind", "ending"),
    [
        (4095, None, numpy.uint16, "png"),
        (1, 1.01, numpy.float32, "tiff"),
        (255, 256, numpy.float32, "tiff"),
        (255, 300, numpy.int32, "tiff"),
        (65535, None, numpy.uint16, "tiff"),
        (1023, 1100, numpy.uint16, "pgm"),
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", ["classes", "splits"])
def test_all_files_of_all_splits_have_one_scale(
    white: float, peak: float | None, kind: type, ending: str, layout: str, tmp_path: Path
) -> None:
    for name in "ab":
        for part in ("train", "test", "val") if layout == "splits" else ("",):
            for number in range(5):
                bright = ramp(white, kind, peak=peak if number == 3 else None)
                save(tmp_path / part / name / f"{number}.{ending}", bright)
                save(tmp_path / part / name / f"dark {number}.{ending}", ramp(white / 8, kind))
    for split in ("train", "test", *(["val"] if layout == "splits" else [])):
        found = read(tmp_path, split)
        assert found.levels == [0, white]
        greys = [(int(image.max()), image.unique().numel()) for image in found.images.flatten(1)]
        assert all(highest < 40 or (highest == 255 and count > 250) for highest, count in greys)
        assert {highest == 255 for highest, _ in greys} == {True, False}


def test_levels_that_are_found_are_logged_once_and_cached(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLTRAIN_CACHE", str(tmp_path / "cache"))
    for number in range(10):
        save(tmp_path / "photos" / "ab"[number % 2] / f"{number}.png", ramp(4095))
    read_again = []
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.INFO, "dltrain.data.image_reader"):
            parts = [read(tmp_path / "photos", split) for split in ("train", "test")]
        told = [line for line in caplog.messages if "deep" in line]
        assert told == ["deep images: values 0 to 4095 become 0 to 255; data.range=[low,high] changes it"]
        assert [part.levels for part in parts] == [[0, 4095]] * 2
        read_again.append(parts)
        monkeypatch.setattr(image_files, "deep_spread", None)  # would raise
    assert torch.equal(read_again[0][1].images, read_again[1][1].images)
    assert "from the cache" in "".join(caplog.messages)


def test_another_training_image_can_change_the_test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLTRAIN_CACHE", str(tmp_path / "cache"))
    for part in ("train", "test"):
        for name in "ab":
            save(tmp_path / "photos" / part / name / "1.png", ramp(255))
    assert read(tmp_path / "photos", "test").images.max() == 255
    save(tmp_path / "photos" / "train" / "a" / "2.png", ramp(4095))
    assert read(tmp_path / "photos", "test").images.max() == round(255 * 255 / 4095)


def test_a_range_is_kept_to(tmp_path: Path) -> None:
    for name in "ab":
        save(tmp_path / "train" / name / "1.png", ramp(4095))
    found = read(tmp_path, range=[1000, 2000])
    assert found.levels == [1000, 2000]
    expected = ((ramp(4095).astype(float) - 1000) * (255 / 1000)).clip(0, 255).round()
    assert numpy.array_equal(found.images[0, 0], expected)
    with pytest.raises(ConfigError, match=r"data\.range=\[5, 5\]: the first number must be below the second"):
        read(tmp_path, range=[5, 5])


def test_by_the_rules_of_5bb6990_each_file_has_its_scale(tmp_path: Path) -> None:
    for name, peak in (("a", None), ("b", 1.01)):
        save(tmp_path / "train" / name / "1.tiff", ramp(1, numpy.float32, peak=peak))
    with by_rules(1):
        found = read(tmp_path)
    assert found.images.amax((1, 2, 3)).tolist() == [255, 1]


def test_test_images_are_read_where_there_are_no_training_images(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / "train" / name).mkdir(parents=True)
        save(tmp_path / "test" / name / "1.png", ramp(4095))
    assert read(tmp_path, "test").levels == [0, 4095]


# --- a run


def test_a_checkpoint_keeps_the_levels_for_prediction_and_evaluation(dltrain: Command, tmp_path: Path) -> None:
    """Classes of halves of the brightness: a prediction is wrong if an image is scaled by itself."""
    random = numpy.random.default_rng(0)
    for number in range(40):
        white = (0.2, 0.8)[number % 2] + random.uniform(-0.05, 0.05)
        numbers = numpy.full((8, 8), 4095 * white)
        numbers[0, 0] = 4200 if number == 11 else 4095 * white
        save(tmp_path / "photos" / ("dark", "light")[number % 2] / f"{number}.png", numbers.astype(numpy.uint16))
    words = ("data=folder", f"data.root={tmp_path / 'photos'}", "data.size=[8,8]", "data.channels=1", "model=linear")
    trained = dltrain("train", *words, "epochs=12", "optim.lr=0.1", "batch_size=8", "device=cpu")
    assert "values 0 to 4095 become 0 to 255" in trained.out + trained.err
    kept = torch.load(trained.folder / "checkpoints" / "best.pt", weights_only=True)["data"]
    assert (kept["levels"], kept["rules"]) == ([0, 4095], 2)
    save(tmp_path / "one" / "light.png", numpy.full((8, 8), 3300, dtype=numpy.uint16))
    save(tmp_path / "one" / "light.tiff", numpy.full((8, 8), 3300, dtype=numpy.float32))
    save(tmp_path / "one" / "dark.tiff", numpy.full((8, 8), 800, dtype=numpy.int32))
    predicted = dltrain("predict", f"ckpt={trained.folder}", f"input={tmp_path / 'one'}", "output=p.csv", "top_k=1")
    assert predicted.code == 0, predicted.err
    rows = [line.split(",")[:2] for line in Path("p.csv").read_text().splitlines()[1:]]
    assert len(rows) == 3
    assert all(Path(file).stem == name for file, name in rows)
    result = dltrain("eval", f"ckpt={trained.folder}", "split=val")
    assert (result.code, "not the examples" in result.out + result.err) == (0, False)
    # Other data, of which no image reaches the levels.
    for name in ("dark", "light"):
        (tmp_path / "other" / "train" / name).mkdir(parents=True)
        level = 800 if name == "dark" else 3300
        save(tmp_path / "other" / "test" / name / "1.png", numpy.full((8, 8), level // 4, dtype=numpy.uint16))
    other = dltrain("eval", f"ckpt={trained.folder}", f"data.root={tmp_path / 'other'}", "--json")
    assert '"accuracy": 0.5' in other.out


@pytest.mark.slow
def test_a_resumed_run_keeps_levels_and_rules(dltrain: Command, tmp_path: Path) -> None:
    for number in range(20):
        save(tmp_path / "photos" / "ab"[number % 2] / f"{number}.tiff", ramp(1, numpy.float32, peak=1.01))
    words = ("data=folder", f"data.root={tmp_path / 'photos'}", "data.size=[8,8]", "model=linear", "device=cpu")
    for rules in (1, 2):
        with by_rules(rules):
            first = dltrain("train", *words, "epochs=2", "limit_steps=1", f"name=rules{rules}")
        again = dltrain("train", f"resume={first.folder}", "limit_steps=null")
        assert again.code == 0, again.err
        kept = torch.load(first.folder / "checkpoints" / "last.pt", weights_only=True)["data"]
        assert (kept.get("rules", 1), kept.get("levels")) == (rules, None if rules == 1 else [0, 1])
        result = dltrain("eval", f"ckpt={first.folder}", "split=train")
        assert (result.code, "not the examples" in result.out + result.err) == (0, False)
