"""`train --show-batch` shows the first batch that a run would train on, and leaves nothing but its page."""

import base64
import io
import json
import re
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from dltrain import compose
from dltrain.config.resolution import resolved
from dltrain.training import build
from dltrain.training.setup import prepare
from support.command import Command

PIXELS = re.compile(r'src="data:image/png;base64,([^"]+)"')


def pictures(page: Path) -> list[numpy.ndarray]:
    urls = PIXELS.findall(page.read_text())
    return [numpy.asarray(Image.open(io.BytesIO(base64.b64decode(url)))) for url in urls]


def test_the_page_has_the_batch_of_a_run_beside_its_originals(dltrain: Command, tmp_path: Path) -> None:
    words = ["data.augment=medium", "data.crop=2", "batch_size=7", "data.limit=50", "seed=4"]
    result = dltrain("train", "--show-batch", *words)
    assert (result.code, result.err) == (0, "")
    page = Path("batch.html")
    assert f"page    {page.absolute()}" in result.out
    assert "crop=2 policy=trivial erase=0.1" in page.read_text()
    assert not Path("outputs").exists()

    run = prepare(resolved(compose("train", words), "train"), None, build.data)
    images, targets = next(run.train.epoch(0, 0))
    expected = ((images - run.train.shift) / run.train.scale).clamp(0, 255).round().byte()
    found = pictures(page)
    assert len(found) == 14
    for image, shown in zip(expected, found[1::2], strict=True):
        assert numpy.array_equal(image[0], shown)
    labels = re.findall(r"</span><span>(\w+)</span></li>", page.read_text())
    assert labels == [run.data.train.classes[target] for target in targets]
    originals = {tuple(image.flatten().tolist()) for image in run.data.train.images}
    assert all(tuple(shown.flatten().tolist()) for shown in found[::2])
    assert {tuple(shown.flatten().tolist()) for shown in found[::2]} <= originals


def test_mixed_images_have_a_fraction_of_each_class_and_large_batches_are_cut(dltrain: Command) -> None:
    result = dltrain("train", "--show-batch", "--json", "data.mixup=1", "batch_size=200")
    page = Path(json.loads(result.out)["page"])
    assert len(pictures(page)) == 256
    assert re.search(r"<span>\d \d+%, \d \d+%</span>", page.read_text())


def test_floats_with_numbers_to_predict_are_shown(dltrain: Command) -> None:
    images = numpy.linspace(-3, 9, 20 * 5 * 6, dtype=numpy.float32).reshape(20, 5, 6)
    numpy.savez("numbers.npz", images=images, labels=numpy.arange(20, dtype=numpy.float32))
    words = ("data=arrays", "data.file=numbers.npz", "model=linear", "task=regression", "data.brightness=0.3")
    result = dltrain("train", "--show-batch", *words)
    assert result.code == 0, result.err
    assert re.search(r"<span>[\d.]+</span>", Path("batch.html").read_text())


@pytest.mark.parametrize(
    ("line", "code", "told"),
    [
        ("data=line model=linear task=regression", 66, "--show-batch: data=line has numbers (1x1x1), not images"),
        ("-m seed=1,2", 2, "--show-batch: describes one run. Leave out -m and sweep.resume"),
        ("resume=outputs", 2, "--show-batch: describes a new run. Leave out resume"),
        ("data.brightness=2", 2, "data.brightness=2: must be a number"),
    ],
)
def test_a_mistake_is_reported(dltrain: Command, line: str, code: int, told: str) -> None:
    result = dltrain("train", "--show-batch", *line.split())
    assert (result.code, told in result.err, len(result.err.splitlines())) == (code, True, 1)
    assert not Path("batch.html").exists()


def test_a_page_of_its_own_is_replaced_and_no_other_file(dltrain: Command) -> None:
    assert dltrain("train", "--show-batch").code == 0
    assert dltrain("train", "--show-batch", "seed=1").code == 0
    Path("batch.html").write_text("mine")
    result = dltrain("train", "--show-batch")
    assert (result.code, "batch.html: exists and is not a page of dltrain" in result.err) == (74, True)
    assert Path("batch.html").read_text() == "mine"
    assert torch.is_grad_enabled()
