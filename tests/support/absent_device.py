"""A program that trains on a device that is not there, with tensors that have a shape, a device, and no numbers.

It reads from stdin {case: overrides of dltrain train}, and prints {case: {"what function": how often}} of what the host
would wait for: numbers that are read, and copies between host and device. A tensor on the wrong device is an error. The
device is registered for a whole process, hence a program.
"""

import json
import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dltrain
from dltrain.config import registry
from dltrain.data.augmentation import Augmentation
from dltrain.data.loader import TensorLoader
from dltrain.data.splits import Examples
from dltrain.engine import fit, predict
from dltrain.optim.step import TrainState, require_finite
from dltrain.optim.tasks import Classification
from dltrain.runtime.devices import Runtime
from dltrain.training import build

aten = torch.ops.aten
OURS = str(Path(dltrain.__file__).parent), str(Path(__file__).with_name("absent_device.py"))
SHAPE, COUNT = (3, 32, 32), 72  # five steps an epoch, the last one of half a batch
# 10 steps, 6 records, 2 validations
BASE = "data=cifar10", "data.crop=0", "data.flip=false", "batch_size=16", "log_every=2", "epochs=2"


def place() -> str:
    """The function of dltrain, or of this file, that is running."""
    frame: Any = sys._getframe(2)
    while frame and not (frame.f_code.co_filename.startswith(OURS) and frame.f_code.co_name.isidentifier()):
        frame = frame.f_back
    return frame.f_code.co_name if frame else "elsewhere"


class Watch(TorchDispatchMode):
    """Counts what the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if function is aten._local_scalar_dense.default:
            self.found[f"read {place()}"] += given[0].device.type == "gpu"
            return given[0].dtype == torch.bool or place() == "evaluate"  # weights are finite, no step is at fault
        if function is aten.nonzero.default and given[0].device.type == "cpu":
            return given[0].new_empty((len(given[0]) // 2, given[0].ndim), dtype=torch.int64)  # some images move
        if str(function).startswith("aten._fused_"):  # fake tensors do not know it
            assert {each.device.type for each in given} == {"gpu"}, "a tensor on the CPU"
            return None
        out = function(*args, **kwargs)
        if function in (aten._to_copy.default, aten.copy_.default):
            source, target = given[-1].device.type, out.device.type
            if source != target:
                self.found[f"copy to {target} {place()}"] += 1
        if function in (aten.index.Tensor, aten.index_put_.default) and given[0].device.type == "gpu":
            assert {each.device.type for each in given} == {"gpu"}, "indices on the CPU"
        return out


def train(overrides: list[str]) -> Counter[str]:
    config = dltrain.compose("train", [*BASE, *overrides])
    examples = Examples(
        torch.zeros(COUNT, *SHAPE, dtype=torch.uint8), torch.zeros(COUNT, dtype=torch.int64), tuple("abcdefghij")
    )
    network = build.model(config["model"], SHAPE, 10)
    task, schedule = (registry.partial_call(group, config[group]) for group in ("task", "schedule"))
    keys = {key: value for key, value in config["data"].items() if key in Augmentation.__annotations__}
    loop = {key: config[key] for key in ("epochs", "log_every", "accumulate", "clip_norm", "on_nonfinite", "ema")}
    with FakeTensorMode(allow_non_fake_inputs=True), Watch() as watch:
        runtime = Runtime(torch.device("gpu"), "fp32", 1)
        state = TrainState(network.to("gpu"), build.optimizer(config["optim"], network))
        augmentation = build.effective(Augmentation(**keys), SHAPE[0])
        statistics = ((0.1,) * 3, (0.3,) * 3)
        loader = TensorLoader(examples, runtime.device, batch_size=16, statistics=statistics, augmentation=augmentation)
        watch.found.clear()
        for _ in fit(state, loader, loader, task(), schedule, runtime, **loop):
            pass
        require_finite(state, config["on_nonfinite"])
        predict(state.model, loader, runtime)
    assert state.step == 10
    moments = {key: value for entry in state.optimizer.state.values() for key, value in entry.items()}
    if "optim=rmsprop" in overrides:
        del moments["step"]
    kept = [state.model.state_dict(), state.ema_weights, moments, state.rates, state.sums, state.faults]
    on_cpu = [leaf for leaf in tree_leaves(kept) if isinstance(leaf, Tensor) and leaf.device.type != "gpu"]
    assert not on_cpu, "state on the CPU"
    return watch.found


class Reading(Classification):
    """A loss that looks at a number."""

    def loss(self, outputs: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        return super().loss(outputs, inputs, targets) * float(outputs.sum())


class Misplaced(Classification):
    """A loss with a tensor on the CPU."""

    def loss(self, outputs: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        return super().loss(outputs * torch.ones(10), inputs, targets)


if __name__ == "__main__":
    backend_registration._setup_privateuseone_for_python_backend("gpu")
    FakeTensorMode.avoid_device_init = True  # constants stay on the CPU too
    found = {}
    for case, overrides in json.load(sys.stdin).items():
        try:
            found[case] = {what: count for what, count in train(overrides).items() if count}
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1].name
            found[case] = {f"{type(error).__name__} in {where}: {str(error)[:300]}": 1}
    print(json.dumps(found))
