"""Draw docs/augmentation.png: two embedded digits and two generated landscapes, changed by each key.

python docs/augmentation_picture.py
"""

from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dltrain.data.augmentation import Augmentation, effective
from dltrain.data.datasets.digits import digits
from dltrain.data.loader import TensorLoader, channel_statistics
from dltrain.data.splits import Examples

TARGET = Path(__file__).with_name("augmentation.png")
CPU = torch.device("cpu")
SIDE, GAP, TITLE, COLUMNS = 64, 3, 20, 3
SHOWN: list[dict[str, Any]] = [
    {},
    {"crop": 8},
    {"flip": True},
    {"resized_crop": 0.4},
    {"rotate": 20},
    {"elastic": 3},
    {"brightness": 0.6},
    {"contrast": 0.8},
    {"saturation": 1.0},
    {"cutout": 24},
    {"erase": 1.0},
    {"mixup": 1.0},
    {"cutmix": 1.0},
    {"policy": "trivial"},
    {"policy": "trivial"},
    {"augment": "light"},
    {"augment": "medium"},
    {"augment": "strong"},
]


def landscape(sky: str, sun: tuple[int, int], roof: str) -> Image.Image:
    """A house before hills, drawn four times as large."""
    image = Image.new("RGB", (4 * SIDE, 4 * SIDE), sky)
    draw = ImageDraw.Draw(image)
    for row in range(4 * SIDE):
        draw.line((0, row, 4 * SIDE, row), fill=(*(min(255, part + row // 3) for part in image.getpixel((0, row))),))
    draw.ellipse((sun[0] - 24, sun[1] - 24, sun[0] + 24, sun[1] + 24), fill="#ffd84a")
    draw.ellipse((-80, 120, 180, 400), fill="#3f7d4e")
    draw.ellipse((100, 140, 360, 420), fill="#2f6340")
    draw.rectangle((70, 140, 140, 205), fill="#e9dcc3")
    draw.polygon(((60, 140), (150, 140), (105, 95)), fill=roof)
    draw.rectangle((84, 170, 104, 205), fill="#5a3a22")
    draw.rectangle((114, 155, 132, 173), fill="#5d9bd4")
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def originals() -> Tensor:
    """The four images, bytes (4, 3, 64, 64)."""
    examples = digits("train")
    assert examples is not None
    found = []
    for label in (3, 5):
        digit = examples.images[int((examples.targets == label).nonzero()[0])][0].numpy()
        found.append(Image.fromarray(digit).resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB"))
    found += [landscape("#2a62b0", (200, 52), "#b8322b"), landscape("#7a3f7f", (190, 40), "#2c4f9e")]
    return torch.from_numpy(numpy.stack([numpy.asarray(image) for image in found])).permute(0, 3, 1, 2).contiguous()


def changed(images: Tensor, keys: dict[str, Any], seed: int) -> Tensor:
    """The images after the augmentation that `keys` name, in their own order."""
    examples = Examples(images, torch.arange(4), tuple("abcd"))
    options = {"batch_size": 4, "statistics": channel_statistics(images), "seed": seed}
    source = TensorLoader(examples, CPU, augmentation=effective(Augmentation(**keys), 3), **options)
    [(found, _)], [(_, order)] = source.epoch(0, 0), TensorLoader(examples, CPU, **options).epoch(0, 0)
    return ((found - source.shift) / source.scale).clamp(0, 255).round().byte()[order.argsort()]


def main() -> None:
    images, font = originals(), ImageFont.load_default(13)
    width, height = 4 * (SIDE + GAP) + 14, SIDE + TITLE + 10
    rows = -(-len(SHOWN) // COLUMNS)
    canvas = Image.new("RGB", (COLUMNS * width, rows * height), "white")
    draw = ImageDraw.Draw(canvas)
    for number, keys in enumerate(SHOWN):
        left, top = number % COLUMNS * width + 7, number // COLUMNS * height + 4
        title = " ".join(f"data.{key}={str(value).lower()}" for key, value in keys.items()) or "as they are"
        draw.text((left, top), title, fill="black", font=font)
        for place, image in enumerate(changed(images, keys, seed=number)):
            pixels = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
            canvas.paste(pixels, (left + place * (SIDE + GAP), top + TITLE))
    canvas.quantize(256, dither=Image.Dither.NONE).save(TARGET, optimize=True)


if __name__ == "__main__":
    main()
