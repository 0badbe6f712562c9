"""`dltrain eval`: a checkpoint, alone, to its figures on a split."""

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dltrain import build, checkpoint, console, records, runtime, schema, stored
from dltrain.data import download
from dltrain.data.batches import Statistics
from dltrain.data.examples import Examples, read, train_and_val
from dltrain.engine import Batches, evaluate
from dltrain.engine import predict as outputs_of
from dltrain.errors import ConfigError, InputError
from dltrain.step import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """A checkpoint ready to be used: the checked config it was trained with, and the network on its device."""

    path: Path
    content: dict[str, Any]
    values: dict[str, Any]
    runtime: runtime.Runtime
    model: nn.Module

    @property
    def statistics(self) -> Statistics:
        mean, std = self.content["data"]["statistics"]
        return tuple(mean), tuple(std)


Resolve = Callable[[dict[str, Any]], dict[str, Any]]


def load(config: dict[str, Any], typed: Collection[str], resolve: Resolve) -> Loaded:
    """Rebuild the network of `config["ckpt"]` from the checkpoint alone; precision and threads as in its training.

    Raises InputError for a missing or damaged file, ConfigError where its config is refused.
    """
    path = checkpoint.find(Path(config["ckpt"]), "best.pt")
    content = checkpoint.load(path)
    own = content["config"]
    values = resolve(own)
    stored.refuse_untrusted(values, config["trust"])  # what its references lead to, not how they are written
    if faults := schema.check(values, "train"):
        more = f" and {len(faults) - 2} more" if len(faults) > 2 else ""
        told = "; ".join(" ".join(str(fault).split())[:200] for fault in faults[:2])
        raise InputError(f"{path}: its config is refused: {told}{more}")
    if root := config.get("data", {}).get("root"):
        if "root" not in values["data"]:
            raise ConfigError(f"data.root={root}: data={values['data']['name']} has no root")
        values["data"] = values["data"] | {"root": root}
    before = {} if "device" in typed else content["runtime"]
    before = {key: value for key, value in before.items() if f"device.{key}" not in typed}
    place = runtime.device(**(config["device"] | before))
    known = content["data"]
    build.check_weights(values["model"], known, content["model"], path)
    model = build.model(values["model"], tuple(known["input_shape"]), known["outputs"])
    model.load_state_dict(content["model"])
    return Loaded(path, content, values, place, model.to(place.device))


def evaluate_checkpoint(
    config: dict[str, Any], *, typed: Collection[str] = (), resolve: Resolve = lambda config: config
) -> dict[str, Any]:
    """Figures of a checkpoint on a split, printed, written to eval.json beside the checkpoint, and returned.

    Raises UserError, whose `exit_code` says of which kind.
    """
    began = time.perf_counter()
    schema.require(schema.check(config, "eval"))
    loaded = load(config, typed, resolve)
    task: Task = schema.bind("task", loaded.values["task"])()
    with download.forbidden(stored.why_only_read(loaded.values, typed)):
        examples = examples_of(loaded, config["split"])
    if examples.images.shape[1:] != tuple(loaded.content["data"]["input_shape"]):
        found, expected = tuple(examples.images.shape[1:]), tuple(loaded.content["data"]["input_shape"])
        raise InputError(f"data: has images of {found}, the model was trained on {expected}")
    known = loaded.content["data"]
    build.check_classes(known["classes"], examples, config["split"])
    node, shape = loaded.values["model"], known["input_shape"]
    build.check_fit(loaded.model, node, task, examples.targets, shape, known["outputs"])
    batch_size = config["batch_size"] or loaded.values["batch_size"]
    batches = build.evaluation_batches(examples, loaded.runtime, loaded.statistics, batch_size)
    with runtime.enough_memory("Lower batch_size"):
        figures: dict[str, Any] = dict(evaluate(loaded.model, batches, task, loaded.runtime))
    console.show_figures(f"{loaded.path}", {config["split"]: figures})
    result = {"checkpoint": str(loaded.path), "split": config["split"], "examples": len(examples.images), **figures}
    if loaded.values["task"]["name"] == "classification":
        result["classes"] = _per_class(loaded, batches, examples.targets)
        console.show_figures("per class", result["classes"])
    result |= {"seconds": round(time.perf_counter() - began, 3), "device": loaded.runtime.describe()}
    path = loaded.path.parent / "eval.json"
    records.write_json(path, result | records.environment())
    log.info("figures %s", path)
    return result


def examples_of(loaded: Loaded, split: str) -> Examples:
    """The examples of a split, as the training had them. Raises UserError where there are none to be read."""
    node = loaded.values["data"]
    runtime.seed_everything(loaded.values["seed"])  # a user's data set may draw from the generators
    source = schema.bind("data", node)
    if split == "test":
        examples = read(source, "test")
    else:
        parts = train_and_val(source, val=node["val"], limit=node["limit"], seed=loaded.values["seed"])
        examples = parts[0] if split == "train" else parts[1]
    if examples is None:
        raise ConfigError(f"split={split}: data={node['name']} has none as it was trained. Set split to another")
    return examples


def _per_class(loaded: Loaded, batches: Batches, targets: Tensor) -> dict[str, dict[str, float]]:
    """Precision, recall and number of examples of each class."""
    predicted = outputs_of(loaded.model, batches, loaded.runtime).argmax(dim=1)
    classes = loaded.content["data"]["classes"]
    pairs = torch.bincount(targets * len(classes) + predicted, minlength=len(classes) ** 2)
    confusion = pairs.view(len(classes), len(classes)).double()  # (true, predicted)
    hits, true, claimed = confusion.diagonal(), confusion.sum(dim=1), confusion.sum(dim=0)
    return {
        name: {
            # A class that is never predicted, or never there, has no share of anything: 0 by convention.
            "precision": float(hits[index] / claimed[index].clamp(min=1)),
            "recall": float(hits[index] / true[index].clamp(min=1)),
            "examples": int(true[index]),
        }
        for index, name in enumerate(classes)
    }
