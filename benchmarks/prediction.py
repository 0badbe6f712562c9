"""Measure what a second core gains for the decoding of `dltrain predict`, against two processes of plain Pillow.

    python benchmarks/prediction.py                # about two minutes; needs two idle cores
    python benchmarks/prediction.py --count 20 --rounds 1

Decodes the same generated photographs with one thread and with two, as `predict` does, and with one process and two
that only use Pillow, in turn. The ratio of the gains, from the medians, should be at least 0.85.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy
from PIL import Image

SIZE = (64, 64)


def write_photographs(folder: Path, count: int) -> list[str]:
    """Write JPEG files of about the size that phones send: 1600 x 1200 pixels of smooth noise."""
    generator = numpy.random.default_rng(0)
    paths = []
    for index in range(count):
        coarse = generator.integers(0, 256, (150, 200, 3), dtype=numpy.uint8)
        paths.append(str(folder / f"{index:04}.jpg"))
        Image.fromarray(coarse).resize((1600, 1200), Image.Resampling.BILINEAR).save(paths[-1], quality=90)
    return paths


def plain(paths: list[str]) -> None:
    """Decode files as a short script would: begin at a line of standard input, answer with a line at the end."""
    print("ready", flush=True)
    sys.stdin.readline()
    for path in paths:
        numpy.asarray(Image.open(path).convert("RGB").resize(SIZE, Image.Resampling.BILINEAR))
    print("done", flush=True)


def plain_seconds(paths: list[str], processes: int) -> float:
    """Return the time that processes of plain Pillow take; they have started before it begins."""
    words = [[sys.executable, __file__, "--plain", *paths[part::processes]] for part in range(processes)]
    children = [
        subprocess.Popen(each, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) for each in words
    ]
    pipes = [(child.stdin, child.stdout) for child in children if child.stdin and child.stdout]
    for _, answers in pipes:
        answers.readline()
    began = perf_counter()
    for orders, _ in pipes:
        orders.write("go\n")
    for _, answers in pipes:
        answers.readline()
    seconds = perf_counter() - began
    for child in children:
        child.communicate()
    return seconds


def predict_seconds(paths: list[str], threads: int) -> float:
    """Return the time that the decoding of `dltrain predict` takes with so many threads."""
    from dltrain.data import image_files, image_reader

    def decode(path: str) -> object:
        return image_files.decode(path, channels=3, size=SIZE, fit="resize")

    os.cpu_count = lambda: threads  # what the number of threads is taken from
    began = perf_counter()
    for result in image_reader.in_threads(decode, paths, "reading images"):
        if isinstance(result, ValueError):
            sys.exit(f"not decoded: {result}")
    return perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plain", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain is not None:
        plain(options.plain)
        return
    with tempfile.TemporaryDirectory() as name:
        paths = write_photographs(Path(name), options.count)
        predict_seconds(paths[:2], 1)  # imports
        rounds = [
            [predict_seconds(paths, 1), predict_seconds(paths, 2), plain_seconds(paths, 1), plain_seconds(paths, 2)]
            for _ in range(options.rounds)
        ]
    one, two, plain_one, plain_two = (statistics.median(each) for each in zip(*rounds, strict=True))
    print(f"{options.count} photographs, n={options.rounds}, medians")
    gain, plain_gain = one / two, plain_one / plain_two
    print(f"predict       1 thread  {one:6.2f} s  2 threads   {two:6.2f} s  gain {gain:.2f}")
    print(f"plain Pillow  1 process {plain_one:6.2f} s  2 processes {plain_two:6.2f} s  gain {plain_gain:.2f}")
    print(f"ratio of the gains {gain / plain_gain:.2f}; at least 0.85 is asked for")


if __name__ == "__main__":
    main()
