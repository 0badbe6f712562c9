"""Shows what a run trains on: the examples of each class in each split, and what is suspicious about them."""

import logging

from dltrain.runtime.errors import listed
from dltrain.training.build import Data

log = logging.getLogger(__name__)

SHOWN_CLASSES = 10
WIDEST_NAME = 30
UNEVEN = 10  # times as many examples of one class as of another


def count(data: Data) -> dict[str, dict[str, int]]:
    """Return the number of examples of each class in each split; empty without classes."""
    counts = data.class_counts
    names = data.train.classes if counts else ()
    return {name: {split: counts[split][label] for split in counts} for label, name in enumerate(names)}


def show(data: Data, *, balanced: bool) -> None:
    """Log the examples of each class, large differences if they are not `balanced`, and images in two splits."""
    if not (counts := count(data)):
        return
    splits = list(data.splits)
    shown = list(counts)[:SHOWN_CLASSES]
    width = min(WIDEST_NAME, max(map(len, ("class", *shown))))
    log.info("  %-*s%s", width, "class", "".join(f"{split:>10}" for split in splits))
    for name in shown:
        log.info("  %-*.*s%s", width, width, name, "".join(f"{counts[name][split]:>10,}" for split in splits))
    by_size = sorted(counts, key=lambda name: counts[name]["train"])
    fewest, most = by_size[0], by_size[-1]
    sizes = f"{fewest} {counts[fewest]['train']:,}, {most} {counts[most]['train']:,}"
    if len(counts) > SHOWN_CLASSES:
        log.info("  … %d more; smallest and largest in train: %s", len(counts) - SHOWN_CLASSES, sizes)
    if not balanced and counts[most]["train"] > UNEVEN * counts[fewest]["train"] > 0:
        log.warning("uneven classes: in train %s. Consider task.class_weights=balanced or data.balance=1", sizes)
    for split in splits[1:]:
        if absent := [name for name in counts if counts[name]["train"] and not counts[name][split]]:
            log.warning("no %s examples of %d of %d classes: %s", split, len(absent), len(counts), listed(absent))
    if shared := data.shared_images:
        log.warning("the same images are in two splits, so that metrics look too good: %s", ", ".join(shared))
