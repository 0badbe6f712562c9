"""A drawing as people make it comes to look as MNIST's digits do: light on dark, in a box in the middle."""

import numpy
import pytest
from PIL import Image, ImageDraw, ImageOps

from dltrain.data import drawings
from dltrain.runtime.errors import ConfigError


def drawn(
    size: tuple[int, int] = (200, 200), box: tuple[int, int, int, int] = (20, 30, 60, 130), mode: str = "L"
) -> Image.Image:
    """A black bar on white paper; size is (width, height), box left, top, right, bottom."""
    picture = Image.new("L", size, 255)
    ImageDraw.Draw(picture).rectangle(box, fill=0)
    return picture.convert(mode)


def levels(picture: Image.Image) -> numpy.ndarray:
    return numpy.asarray(picture.convert("L")).astype(float)


def middle(picture: Image.Image) -> tuple[float, float]:
    """Centre of mass, row and column."""
    mass = levels(picture)
    rows, columns = numpy.indices(mass.shape)
    return float((mass * rows).sum() / mass.sum()), float((mass * columns).sum() / mass.sum())


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("size", [(200, 200), (300, 500), (4000, 3000), (70, 140)], ids=str)
def test_a_drawing_anywhere_on_paper_of_any_size_is_centred_in_20_of_28_pixels(
    size: tuple[int, int], mode: str
) -> None:
    found = drawings.centered(ImageOps.invert(drawn(size, mode=mode)), (28, 28))
    assert (found.size, found.mode) == ((28, 28), mode)
    rows = numpy.flatnonzero((levels(found) > 127).any(axis=1))
    assert 19 <= len(rows) <= 20
    assert middle(found) == pytest.approx((14, 14), abs=0.6)
    assert (levels(found).min(), levels(found).max()) == (0, 255)


def test_a_wide_drawing_fills_the_width_of_the_box() -> None:
    found = drawings.centered(ImageOps.invert(drawn(box=(20, 30, 160, 50))), (28, 42))
    columns = numpy.flatnonzero((levels(found) > 127).any(axis=0))
    assert (found.size, len(columns)) == ((42, 28), 20)


def test_dark_on_light_stays_dark_on_light() -> None:
    light = drawings.centered(drawn(), (28, 28))
    dark = drawings.centered(ImageOps.invert(drawn()), (28, 28))
    assert numpy.array_equal(levels(light), 255 - levels(dark))


def test_grey_paper_and_a_pale_pen_become_black_and_white() -> None:
    grey = ImageOps.invert(drawn().point([round(100 + level * 0.3) for level in range(256)]))
    found = levels(drawings.centered(grey, (28, 28)))
    assert (found.min(), found.max()) == (0, 255)


def test_a_blank_page_and_an_image_that_fills_its_frame_are_unchanged() -> None:
    noise = numpy.random.default_rng(0).integers(0, 256, (40, 40), dtype=numpy.uint8)
    for picture in (Image.new("L", (30, 40), 250), Image.new("L", (1, 1), 0), Image.fromarray(noise)):
        assert numpy.array_equal(levels(drawings.centered(picture, (28, 28))), levels(picture))


def test_paper_is_dark_or_light_by_its_edge() -> None:
    assert not drawings.is_dark(drawn())
    assert drawings.is_dark(ImageOps.invert(drawn()))
    assert not drawings.is_dark(drawn(box=(5, 5, 195, 195)))  # mostly ink


@pytest.mark.parametrize(("mean", "dark"), [((0.1307,), True), ((0.286,), True), ((0.9, 0.8, 0.85), False)], ids=str)
def test_the_training_mean_decides_between_dark_and_light_paper(mean: tuple[float, ...], dark: bool) -> None:
    assert drawings.knows_dark(mean) is dark


@pytest.mark.parametrize("mean", [(0.5,), (0.0,), (1.0,), (0.49, 0.48, 0.45)], ids=str)
def test_an_ambiguous_training_mean_is_refused_with_advice(mean: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="Set invert=true or invert=false"):
        drawings.knows_dark(mean)


def test_centring_leaves_real_digits_nearly_as_they_are(real_data: object) -> None:
    from dltrain.data.datasets.mnist import mnist

    found = mnist("test", root=str(real_data))
    assert found is not None
    images = found.images[:200, 0].numpy()
    again = numpy.stack([levels(drawings.centered(Image.fromarray(image), (28, 28))) for image in images])
    alike = [numpy.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(images, again, strict=True)]
    assert numpy.quantile(alike, 0.05) > 0.99
