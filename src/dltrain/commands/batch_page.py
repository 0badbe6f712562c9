"""`dltrain train --show-batch`: writes a page of the first batch as the network sees it, beside the images it is from."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from torch import Tensor

from dltrain.config import settings
from dltrain.config.resolution import Config
from dltrain.data.augmentation import describe
from dltrain.data.loader import UNCHANGED
from dltrain.report.analysis import data_url, to_uint8
from dltrain.report.console import format_number
from dltrain.report.html import page
from dltrain.runtime import devices
from dltrain.runtime.errors import ConfigError, InputError
from dltrain.training import build
from dltrain.training.setup import LESS_DATA

log = logging.getLogger(__name__)

NAME = Path("batch.html")
MOST_IMAGES = 128


def show_batch(config: Config) -> None:
    """Write batch.html into the current folder; nothing is trained. Raises UserError."""
    values = config.values
    if values["resume"] is not None:
        raise ConfigError("--show-batch: shows what a new run would see. Leave out resume")
    options = settings.Train(**{key.name: values[key.name] for key in fields(settings.Train)})
    runtime = devices.restored_device(values["device"], {}, config.typed)
    devices.seed_everything(options.seed)  # a user's data set may draw from the generators
    with devices.memory_errors(LESS_DATA):
        data = build.data(values["data"], options.seed)
        augmented = build.training_batches(data, runtime, values["data"], options)
    if 1 in data.input_shape[1:]:
        shape = "x".join(map(str, data.input_shape))
        raise InputError(f"--show-batch: data={values['data']['name']} has numbers ({shape}), not images")
    plain = copy.copy(augmented)
    plain.augmentation = UNCHANGED  # which leaves the order as it is
    (before, _), (after, targets) = (next(batches.epoch(0, 0)) for batches in (plain, augmented))
    # Back in the units of the examples.
    images = [((part[:MOST_IMAGES] - plain.shift) / plain.scale).cpu() for part in (before, after)]
    low, high = data.range or (0.0, 255.0)
    urls = ([data_url(to_uint8(image, low, high)) for image in part] for part in images)
    labels = [_label(target, data.train.classes) for target in targets[:MOST_IMAGES].cpu()]
    changes = describe(augmented.augmentation) or "no augmentation"
    rows = zip(*urls, labels, strict=True)
    name, subtitle = str(values["data"]["name"]), f"{len(labels)} of the {len(after)} images of the first batch"
    page.write(NAME, page.render("batch.html", title=f"A batch of {name}", subtitle=subtitle, changes=changes, rows=rows))
    log.info("augment %s", changes)
    log.info("page    %s", NAME.absolute())


def _label(target: Tensor, classes: Sequence[str]) -> str:
    """Return the class of an example, the fraction of each class if it is mixed, or its numbers."""
    if not target.ndim:
        return classes[int(target)]
    if not classes:
        return ", ".join(format_number(float(number)) for number in target.flatten()[:5])
    parts = target.nonzero().flatten().tolist()
    return ", ".join(f"{classes[part]} {float(target[part]):.2f}" for part in parts)
