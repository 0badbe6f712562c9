"""Rebuilds a trained model from its checkpoint alone, to be evaluated or exported."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from dltrain.checkpoints import checkpoint
from dltrain.config import registry, saved_config, validation
from dltrain.config.resolution import Config, resolve
from dltrain.data.levels import EACH_BY_ITSELF
from dltrain.data.loader import Statistics
from dltrain.data.splits import Examples, by_rules, read_split
from dltrain.runtime import devices
from dltrain.runtime.errors import ConfigError, InputError, listed
from dltrain.runtime.folders import expand_user
from dltrain.runtime.memory import to_device
from dltrain.training import build, weights

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedModel:
    """A checkpoint with the checked config it was trained with, and its network on the device."""

    path: Path
    content: dict[str, Any]
    values: dict[str, Any]
    runtime: devices.Runtime
    model: nn.Module
    task: str  # the name; of a user's task that derives from a built-in one, that of the latter

    @property
    def statistics(self) -> Statistics:
        mean, std = self.content["data"]["statistics"]
        return tuple(mean), tuple(std)


def load_trained(ckpt: str, config: Config) -> TrainedModel:
    """Rebuild a network from its checkpoint alone, with the precision and threads of its training.

    `config` is that of the command: the device, packages that the user trusts, the folder of the data.
    Raises InputError for a missing or damaged file or an invalid config in it, ConfigError for untrusted code.
    """
    path = checkpoint.find(Path(ckpt), "best.pt")
    content = checkpoint.load(path)
    content["model"] = content.get("averages") or content["model"]  # for last.pt too the weights that were validated
    stored = saved_config.with_added({key: value for key, value in content["config"].items() if key != "logger"})
    values = resolve(stored)
    saved_config.require_trusted(values, config.values["trust"])  # resolved, since a reference could hide a name
    if problems := validation.find_problems(values, "train"):
        reasons = listed([" ".join(problem.split())[:200] for problem in problems], 2, "; ")
        raise InputError(f"{path}: its config is refused: {reasons}")
    if root := config.values.get("data", {}).get("root"):
        if "root" not in values["data"]:
            raise ConfigError(f"data.root={root}: data={values['data']['name']} has no root")
        values["data"] = values["data"] | {"root": root}
    known = content["data"]
    levels = known.setdefault("levels", None if "rules" in known else EACH_BY_ITSELF)
    if levels is not None and "range" in values["data"]:
        values["data"] = values["data"] | {"range": levels}
    runtime = devices.restored_device(config.values["device"], content["runtime"], config.typed)
    claimed = weights.check_weights(values["model"], known, content["model"], path)
    task = registry.base_option("task", values["task"]["name"])
    was_typed = {"device", "device.precision"} & set(config.typed)
    if not was_typed and runtime.precision == "bf16" and devices.lacks_bf16(runtime.device, claimed):
        runtime = replace(runtime, precision="fp32")
    runtime = devices.resolve_precision(runtime, claimed, values["batch_size"], task)
    del claimed
    if runtime.precision != (trained := content["runtime"]["precision"]):
        log.warning("computed in %s, trained in %s: metrics differ in their last digits", runtime.precision, trained)
    model = build.model(values["model"], tuple(known["input_shape"]), known["outputs"])
    model.load_state_dict(content["model"])
    return TrainedModel(path, content, values, runtime, to_device(model, runtime, known["input_shape"]), task)


def require_root(loaded: TrainedModel, config: Config) -> None:
    """Raise InputError if data.root is relative to the folder where the training was started, and not found here."""
    node, typed = loaded.values["data"], config.values.get("data", {}).get("root")
    root = "" if typed or ":" in node["name"] else node.get("root")
    if root and not (expand_user(root).is_absolute() or Path(root).exists()):
        where = next((folder for folder in loaded.path.absolute().parents if (folder / root).exists()), None)
        problem = f"is relative to the folder where the training was started; it is not in {Path.cwd()}"
        raise InputError(f"data.root={root} {problem}\nGive data.root={where / root if where else '…'}")


def load_examples(loaded: TrainedModel, split: str) -> Examples:
    """Load the examples of a split, as divided in training. Raises UserError if there are none."""
    node, seed = loaded.values["data"], loaded.values["seed"]
    devices.seed_everything(seed)  # a user's data set may draw from the generators
    source = registry.partial_call("data", node)
    with by_rules(loaded.content["data"].get("rules", 1)):
        if split == "test":
            examples = read_split(source, split)
        else:
            examples = build.train_and_val(node, seed, source)[split == "val"]
    if examples is None:
        raise ConfigError(f"split={split}: data={node['name']} had no such split in training. Set another split")
    return examples
