"""A trained model from its checkpoint alone, ready to be evaluated or exported."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dltrain.checkpoints import checkpoint
from dltrain.config import registry, saved_config, validation
from dltrain.config.resolution import Config, resolve
from dltrain.data.loader import Statistics
from dltrain.data.splits import Examples, read_split, split_train_val
from dltrain.runtime import devices
from dltrain.runtime.errors import ConfigError, InputError
from dltrain.runtime.memory import to_device
from dltrain.runtime.precision import resolve_precision
from dltrain.training import build, weights

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedModel:
    """A checkpoint ready to be used: the checked config it was trained with, and the network on its device."""

    path: Path
    content: dict[str, Any]
    values: dict[str, Any]
    runtime: devices.Runtime
    model: nn.Module

    @property
    def statistics(self) -> Statistics:
        mean, std = self.content["data"]["statistics"]
        return tuple(mean), tuple(std)


def load_trained(ckpt: str, config: Config) -> TrainedModel:
    """Rebuild a network from its checkpoint alone, with the precision and threads of its training.

    `config` is that of the command: packages that the user trusts, the device, where the data lies.

    Raises InputError for a missing or damaged file, ConfigError where its config is refused.
    """
    path = checkpoint.find(Path(ckpt), "best.pt")
    content = checkpoint.load(path)
    content["model"] = content.get("averages") or content["model"]  # of last.pt too what was validated
    own = saved_config.with_added({key: value for key, value in content["config"].items() if key != "logger"})
    values = resolve(own)
    saved_config.require_trusted(values, config.values["trust"])  # resolved: a reference could hide a name
    if faults := validation.find_problems(values, "train"):
        more = f" and {len(faults) - 2} more" if len(faults) > 2 else ""
        told = "; ".join(" ".join(str(fault).split())[:200] for fault in faults[:2])
        raise InputError(f"{path}: its config is refused: {told}{more}")
    if root := config.values.get("data", {}).get("root"):
        if "root" not in values["data"]:
            raise ConfigError(f"data.root={root}: data={values['data']['name']} has no root")
        values["data"] = values["data"] | {"root": root}
    place = devices.restored_device(config.values["device"], content["runtime"], config.typed)
    known = content["data"]
    claimed = weights.check_weights(values["model"], known, content["model"], path)
    place = resolve_precision(place, claimed, values["batch_size"], values["task"]["name"])
    del claimed
    if place.precision != (trained := content["runtime"]["precision"]):
        log.warning("computed in %s, trained in %s: figures differ in their last digits", place.precision, trained)
    model = build.model(values["model"], tuple(known["input_shape"]), known["outputs"])
    model.load_state_dict(content["model"])
    return TrainedModel(path, content, values, place, to_device(model, place, known["input_shape"]))


def load_examples(loaded: TrainedModel, split: str) -> Examples:
    """The examples of a split, as the training had them. Raises UserError where there are none to be read."""
    node = loaded.values["data"]
    devices.seed_everything(loaded.values["seed"])  # a user's data set may draw from the generators
    source = registry.partial_call("data", node)
    if split == "test":
        examples = read_split(source, "test")
    else:
        parts = split_train_val(source, val=node["val"], limit=node["limit"], seed=loaded.values["seed"])
        examples = parts[0] if split == "train" else parts[1]
    if examples is None:
        raise ConfigError(f"split={split}: data={node['name']} has none as it was trained. Set split to another")
    return examples
