"""Measure reading a folder of 10,000 mixed images, 20 of them damaged: the first start against later ones.

    python benchmarks/folder.py                # about two minutes
    python benchmarks/folder.py --count 500

Reads both splits as a run does: once with decoding, then five times from the image cache.
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy
import torch
from PIL import Image

FORMATS = (("jpg", "RGB"), ("png", "RGB"), ("jpg", "L"), ("webp", "RGB"), ("png", "RGBA"), ("gif", "P"))


def write_images(root: Path, count: int, damaged: int) -> None:
    """Write images of smooth noise, 60 to 400 pixels wide and high, in ten classes."""
    generator = numpy.random.default_rng(0)
    for index in range(count):
        ending, mode = FORMATS[index % len(FORMATS)]
        path = root / f"class {index % 10}" / f"{index:05}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = generator.integers(60, 401, 2)
        coarse = generator.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=numpy.uint8)
        image = Image.fromarray(coarse).resize((int(width), int(height)), Image.Resampling.BILINEAR)
        image.convert(mode).save(path)
        if index % (count // damaged) == 7:
            path.write_bytes(path.read_bytes()[:200])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    count = parser.parse_args().count
    with tempfile.TemporaryDirectory() as name:
        write_images(Path(name, "photos"), count, damaged=20)
        os.environ["DLTRAIN_CACHE"] = str(Path(name, "kept"))
        from dltrain.data.datasets.folder import folder

        def seconds() -> float:
            began = perf_counter()
            for split in ("train", "test"):
                root = str(Path(name, "photos"))
                examples = folder(split, root=root, size=[32, 32], channels=3, fit="resize", range=None, memory=None)
                assert examples is not None
                checks.append(int(examples.images.sum(dtype=torch.int64)))
            return perf_counter() - began

        checks: list[int] = []
        first, again = seconds(), [seconds() for _ in range(5)]
    if len(set(checks[::2])) + len(set(checks[1::2])) != 2:
        sys.exit("the images differ between starts")
    median = statistics.median(again)
    print(f"{count:,} images: {first:.1f} s decoded, {median:.2f} s cached ({min(again):.2f} to {max(again):.2f}), n=5")
    print(f"{first / median:.0f} times as fast")


if __name__ == "__main__":
    main()
