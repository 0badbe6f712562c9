"""`dltrain train --show-batch`: writes a page of the first batch before and after augmentation."""

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dltrain.config.resolution import Config
from dltrain.data.augmentation import describe
from dltrain.data.loader import UNCHANGED
from dltrain.report.analysis import data_url, to_uint8
from dltrain.report.console import format_number
from dltrain.report.html import page
from dltrain.runtime.errors import InputError
from dltrain.training import build
from dltrain.training.setup import prepare

log = logging.getLogger(__name__)

NAME, MOST_IMAGES = Path("batch.html"), 128


def show_batch(config: Config) -> dict[str, Any]:
    """Check a config as a run would, write batch.html into the current folder; return its path. Raises UserError."""
    run = prepare(config, None, build.data)
    name, shape = config.values["data"]["name"], run.data.input_shape
    if 1 in shape[1:]:
        raise InputError(f"--show-batch: data={name} has numbers ({'x'.join(map(str, shape))}), not images")
    plain = copy.copy(run.train)
    plain.augmentation = UNCHANGED  # which leaves the order as it is
    (before, _), (after, targets) = (next(batches.epoch(0, 0)) for batches in (plain, run.train))
    low, high = run.data.range or (0.0, 255.0)
    images = [((part[:MOST_IMAGES] - plain.shift) / plain.scale).cpu() for part in (before, after)]
    urls = [[data_url(to_uint8(image, low, high)) for image in part] for part in images]
    changes = describe(run.train.augmentation) or "no augmentation"
    rows = zip(*urls, (_label(target, run.data.train.classes) for target in targets.cpu()), strict=False)
    page.write(NAME, page.render("batch.html", title=f"A batch of {name}", subtitle=changes, rows=rows))
    log.info("page    %s", NAME.absolute())
    return {"page": str(NAME.absolute()), "augmentation": changes}


def _label(target: Tensor, classes: Sequence[str]) -> str:
    """Return the class of an example, the fraction of each class if it is mixed, or its numbers."""
    if not target.ndim or not classes:
        return classes[int(target)] if classes else ", ".join(map(format_number, target.flatten().tolist()))
    return ", ".join(f"{name} {part:.0%}" for name, part in zip(classes, target.tolist(), strict=True) if part > 0.005)
