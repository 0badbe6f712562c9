"""What a GPU would compute, on torch's meta device, which has shapes and no numbers.

There a tensor left on the CPU fails, and so does a host that looks at a number, for which it would have to wait. These
tests are quick; test_absent_device.py has whole runs, with all networks and optimizers, on a device that is not there.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from dltrain.commands.tta import AveragedViews
from dltrain.config import registry
from dltrain.data.augmentation import Augmentation
from dltrain.data.loader import TensorLoader
from dltrain.data.splits import Examples
from dltrain.optim import step as steps
from dltrain.optim.ema import swapped_in_ema, update_ema
from dltrain.optim.step import StepOutput, Task, TrainState, accumulate, accumulate_metrics, train_step
from dltrain.runtime.devices import Runtime
from dltrain.training import build
from support.tiers import mostly_slow

CONFIGS = Path(__file__).parents[2] / "configs"
META = Runtime(torch.device("meta"), "fp32", 1)
SHAPE = (3, 32, 32)
PLAIN: dict[str, Any] = {"accumulate": 1, "clip_norm": None, "on_nonfinite": "stop"}
# elastic is left out: it draws its noise on the CPU, and has to know there for which examples.
AUGMENTATIONS = {
    "none": Augmentation(),
    "crop": Augmentation(crop=2),
    "flip": Augmentation(flip=True),
    "alternate": Augmentation(flip="alternate"),
    "rotate": Augmentation(rotate=10.0),
    "cutout": Augmentation(cutout=4),
    "mixup": Augmentation(mixup=1.0),
    "cutmix": Augmentation(cutmix=1.0),
    "resized crop": Augmentation(resized_crop=0.5),
    "policy": Augmentation(policy="trivial"),
    "colour": Augmentation(brightness=0.2, contrast=0.2, saturation=0.2),
    "erase": Augmentation(erase=0.5),
    "all": Augmentation(crop=2, flip=True, rotate=10.0, cutout=4, mixup=0.5, cutmix=0.5),
}


@pytest.fixture(autouse=True)
def _without_fused_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is not finite fused kernels take notice on the device, and there is none for meta; others would look."""
    monkeypatch.setattr(steps, "update_weights", lambda state, _fault: state.optimizer.step())


def node(group: str, name: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text())


def state(model: str = "cnn", optimizer: str = "sgd", **changes: Any) -> TrainState:
    network = build.model(node("model", model) | changes, SHAPE, 10).to("meta")
    made = build.optimizer(node("optim", optimizer), network)
    for group in made.param_groups:
        group["fused"] = False
    return TrainState(network, made)


def batches(augmentation: Augmentation = AUGMENTATIONS["none"]) -> TensorLoader:
    examples = Examples(
        torch.zeros(40, *SHAPE, dtype=torch.uint8), torch.zeros(40, dtype=torch.int64), tuple("abcdefghij")
    )
    statistics = ((0.1,) * 3, (0.3,) * 3)
    return TensorLoader(examples, META.device, batch_size=12, statistics=statistics, augmentation=augmentation)


def task(smoothing: float = 0.0) -> Task:
    return registry.partial_call("task", node("task", "classification") | {"label_smoothing": smoothing})()


def steps_of(state: TrainState, batches: TensorLoader, task: Task, **options: Any) -> Iterator[int]:
    """Two epochs, whose last batches are smaller."""
    for epoch in (0, 1):
        for inputs, targets in batches.epoch(epoch, 0):
            state.pending += train_step(state, inputs, targets, task, META, **(PLAIN | options))
            state.step += 1
            yield state.step
    accumulate_metrics(state, task)


def done(state: TrainState) -> bool:
    on_meta = [*state.model.parameters(), *state.model.buffers(), state.sums]
    return state.step == 8 and all(each is not None and each.is_meta for each in on_meta)


@pytest.mark.parametrize("name", ["mlp", "lenet", "attention"])
def test_a_model_trains_on_the_meta_device_without_reading_values(name: str) -> None:
    trained = state(name)
    assert list(steps_of(trained, batches(), task()))
    assert done(trained)


def test_recurrent_layers_with_dropout_train_on_the_meta_device_without_reading_values() -> None:
    trained = state("lstm", layers=2, dropout=0.5, hidden=4)
    assert trained.model.layers
    assert next(steps_of(trained, batches(), task())) == 1
    assert all(weight.is_meta for weight in trained.model.parameters())


@pytest.mark.parametrize("focal", [0.0, 2.0])
def test_a_weighted_loss_is_computed_on_the_meta_device_without_reading_values(focal: float) -> None:
    trained = state("mlp")
    keys = {"class_weights": "balanced", "focal": focal}
    weighted = registry.partial_call("task", node("task", "classification") | keys, class_counts=[4] * 10)()
    assert list(steps_of(trained, batches(), weighted))
    assert done(trained)


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_images_are_augmented_on_the_meta_device_without_reading_values(name: str, smoothing: float) -> None:
    trained = state("linear")
    assert list(steps_of(trained, batches(AUGMENTATIONS[name]), task(smoothing)))
    assert done(trained)


def test_more_batches_are_gathered_at_once_off_the_cpu() -> None:
    examples = Examples(
        torch.zeros(1024, *SHAPE, dtype=torch.uint8), torch.zeros(1024, dtype=torch.int64), tuple("abcdefghij")
    )
    counts = {}
    for device in ("cpu", "meta"):
        loader = TensorLoader(examples, torch.device(device), batch_size=64, statistics=((0.1,) * 3, (0.3,) * 3))
        counts[device] = len({id(images._base) for images, _ in list(loader.epoch(0, 0))})
    assert counts == {"cpu": 8, "meta": 1}


@pytest.mark.parametrize("on_nonfinite", mostly_slow(["stop", "skip"], fast=["skip"]))
def test_accumulation_clipping_and_ema_work_on_the_meta_device(on_nonfinite: str) -> None:
    trained = state("resnet", widths=[4], blocks=1)
    options = {"accumulate": 5, "clip_norm": 1.0, "on_nonfinite": on_nonfinite}
    for _ in steps_of(trained, batches(), task(), **options):
        update_ema(trained, 0.9)
    with swapped_in_ema(trained):
        assert done(trained)
    assert trained.ema_weights is not None
    assert all(each.is_meta for each in trained.ema_weights.values())


class Calls(TorchDispatchMode):
    """Counts the calls that compute; a view does not."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not (function.is_view or function in (torch.ops.aten.detach.default, torch.ops.aten.empty_like))
        return function(*args, **(kwargs or {}))


def calls(blocks: int) -> tuple[int, int, int]:
    """Return the calls of a plain step, of one that may be skipped, and of the average of a network."""
    trained, counts = state("resnet", widths=[4], blocks=blocks), []
    (inputs, targets), *_ = batches().epoch(0, 0)
    for on_nonfinite in ("stop", "skip"):
        train_step(trained, inputs, targets, task(), META, **(PLAIN | {"on_nonfinite": on_nonfinite}))
        with Calls() as counted:
            train_step(trained, inputs, targets, task(), META, **(PLAIN | {"on_nonfinite": on_nonfinite}))
        counts.append(counted.count)
    update_ema(trained, 0.9)
    with Calls() as counted:
        update_ema(trained, 0.9)
    return counts[0], counts[1], counted.count


def test_what_skipping_and_averaging_add_to_a_step_does_not_grow_with_the_network() -> None:
    small, large = calls(1), calls(4)
    assert large[0] > small[0]
    assert small[1] - small[0] == large[1] - large[0] < 20
    assert small[2] == large[2] < 20


@pytest.mark.parametrize("views", ["flip", "shift", "flip_shift"])
def test_evaluation_accumulates_on_the_meta_device(views: Any) -> None:
    model, total = AveragedViews(state().model, views).eval(), None
    for inputs, targets in itertools.islice(batches().in_order(), 2):
        outputs = model(inputs)
        total = accumulate(total, [StepOutput(task().loss(outputs, inputs, targets), outputs, targets)], task())
    assert total is not None
    assert total.is_meta


def test_the_device_check_detects_a_tensor_left_on_the_cpu() -> None:
    trained = state("linear")
    (inputs, targets), *_ = batches().epoch(0, 0)
    with pytest.raises(RuntimeError, match="device"):
        train_step(trained, inputs, torch.zeros(targets.shape, dtype=torch.int64), task(), META, **PLAIN)
