"""Test-time augmentation: the mean of the probabilities of a picture's views, as they are written out here."""

import pytest
import torch
from torch import Tensor, nn

from dltrain.commands.tta import AveragedViews, shifted

FLIPPED = [lambda x: x, lambda x: x.flip(3)]
SHIFTED = [
    lambda x: x,
    lambda x: torch.cat([x[..., :1], x[..., :-1]], dim=3),
    lambda x: torch.cat([x[..., 1:], x[..., -1:]], dim=3),
    lambda x: torch.cat([x[..., :1, :], x[..., :-1, :]], dim=2),
    lambda x: torch.cat([x[..., 1:, :], x[..., -1:, :]], dim=2),
]
VIEWS = {
    "flip": FLIPPED,
    "shift": SHIFTED,
    "flip_shift": [lambda x, f=f, s=s: f(s(x)) for f in FLIPPED for s in SHIFTED],
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(2 * 4 * 5, 3))


def images() -> Tensor:
    return torch.randn(6, 2, 4, 5, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("views", VIEWS)
def test_the_output_is_the_logarithm_of_the_mean_probability(views: str) -> None:
    model = network()
    expected = torch.stack([model(view(images())).softmax(dim=1) for view in VIEWS[views]]).mean(dim=0)
    found = AveragedViews(model, views)(images())  # type: ignore[arg-type]
    torch.testing.assert_close(found.exp(), expected)
    torch.testing.assert_close(found.softmax(dim=1), expected)


def test_an_image_of_one_pixel_shifts_to_itself() -> None:
    image = torch.full((1, 1, 1, 1), 3.0)
    assert torch.equal(shifted(image, 1, 0), image)
