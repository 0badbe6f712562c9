"""NaN and infinities: told with step and tensor, nothing after them is learned, and to skip them leaves no trace."""

import copy
import json
import math
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from dltrain.checkpoints import checkpoint
from dltrain.engine import Record, fit
from dltrain.optim import step as steps
from dltrain.optim.step import NonFiniteLoss, TrainState, train_step
from dltrain.optim.tasks import Classification
from dltrain.runtime.devices import Runtime, generator_states, seed_everything
from dltrain.training import build, nonfinite, snapshot
from support.command import Command
from support.tiers import mostly_slow

CPU = Runtime(torch.device("cpu"), "fp32", 1)
TASK = Classification(label_smoothing=0.0)
SHAPE, CLASSES = (1, 12, 12), 3
EPOCHS, STEPS = 2, 6
TOTAL = EPOCHS * STEPS
MARK = 8.0  # a first pixel that no picture has but the one that goes wrong

MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"name": "mlp", "hidden": [8, 8], "activation": "relu", "dropout": 0.0, "batch_norm": False},
    "norm": {"name": "mlp", "hidden": [8], "activation": "gelu", "dropout": 0.3, "batch_norm": True},
    "lenet": {"name": "lenet"},
    "lstm": {
        "name": "lstm",
        "cell": "lstm",
        "hidden": 8,
        "layers": 2,
        "bidirectional": True,
        "pool": "attention",
        "dropout": 0.2,
    },
    "attention": {
        "name": "attention",
        "tokens": "patches",
        "patch": 4,
        "width": 8,
        "depth": 1,
        "heads": 2,
        "dropout": 0.2,
        "drop_path": 0.0,
    },
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": False, "weight_decay": 0.01, "decay_biases": True},
    "adam": {"name": "adam", "lr": 0.01, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.01, "decay_biases": False},
    "rmsprop": {
        "name": "rmsprop",
        "lr": 0.01,
        "alpha": 0.9,
        "momentum": 0.5,
        "weight_decay": 0.0,
        "decay_biases": True,
    },
    "muon": {
        "name": "muon",
        "lr": 0.01,
        "momentum": 0.9,
        "iterations": 2,
        "rescale": True,
        "plain_momentum": 0.5,
        "weight_decay": 0.01,
        "decay_biases": False,
    },
    "adagrad": {"name": "torch.optim:Adagrad", "lr": 0.02},
}
# The last linear layer of each: what its output is not, the loss is not.
LAST = {
    "mlp": "layers.5",
    "norm": "layers.5",
    "lenet": "classifier.5",
    "lstm": "classifier.1",
    "attention": "classifier",
}
FIRST = {"mlp": "layers.1", "norm": "layers.1", "lenet": "features.0", "lstm": "classifier.0", "attention": "embed"}


class Stream:
    """Batches of seeded numbers; in `bad` steps, counted from 1, one example is marked: the one at `place`."""

    def __init__(self, bad: tuple[int, ...] = (), place: int = 0, mark: float = MARK, drop: tuple[int, ...] = ()):
        generator = torch.Generator().manual_seed(5)
        self.inputs = torch.randn(TOTAL, 4, *SHAPE, generator=generator)
        self.targets = torch.randint(0, CLASSES, (TOTAL, 4), generator=generator)
        for step in bad:
            self.inputs[step - 1, place, 0, 0, 0] = mark
        kept = [step - 1 for step in range(1, TOTAL + 1) if step not in drop]
        self.inputs, self.targets = self.inputs[kept], self.targets[kept]

    def __len__(self) -> int:
        return len(self.inputs) // EPOCHS

    def epoch(self, epoch: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(epoch * len(self) + first, (epoch + 1) * len(self)):
            yield self.inputs[step].clone(), self.targets[step]

    def all(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.inputs, self.targets, strict=True)

    def in_order(self, first: int = 0, every: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        yield self.inputs[0], self.targets[0]


@dataclass(frozen=True)
class Fault:
    """What goes wrong in a run, where, and with what value."""

    model: str
    optimizer: str
    kind: str  # data, weight, output, loss or gradient
    value: float
    step: int
    accumulate: int = 1
    log_every: int = 100
    place: int = 0  # of the bad example in its batch of four

    @property
    def layer(self) -> str:
        # A ReLU makes a zero of minus infinity, and nothing is wrong.
        is_hidden = self.value == -math.inf and self.model in ("mlp", "lenet")
        return FIRST[self.model] if self.step % 2 and self.kind == "output" and not is_hidden else LAST[self.model]

    @property
    def clip_norm(self) -> float | None:
        # The gates of an LSTM saturate: an infinite input is in the gradient, not in the loss.
        is_in_gradient_alone = self.kind == "data" and self.model == "lstm" and math.isinf(self.value)
        return 1.0 if self.kind == "gradient" or is_in_gradient_alone else None

    def stream(self) -> Stream:
        if self.kind == "weight":
            return Stream()
        return Stream((self.step,), self.place, self.value if self.kind == "data" else MARK)

    def state(self) -> TrainState:
        """A fresh model that answers the marked example with the value, and its optimizer."""
        state = fresh(self.model, self.optimizer)
        if self.kind in ("output", "gradient"):
            marked: list[bool] = []
            state.model.register_forward_pre_hook(lambda _, inputs: marked.append(is_marked(inputs[0])))
            hook = self._spoil_output if self.kind == "output" else self._spoil_gradient
            layer = state.model.get_submodule(self.layer)
            layer.register_forward_hook(lambda _, __, output: hook(output) if marked[-1] else output)
        return state

    def _spoil_output(self, output: Tensor) -> Tensor:
        return torch.cat([output[:-1], output[-1:] * 0 + self.value])  # a single -inf among the logits is no fault

    def _spoil_gradient(self, output: Tensor) -> Tensor:
        output.register_hook(lambda gradient: torch.full_like(gradient, self.value))
        return output

    def task(self) -> Any:
        return _SpoiledLoss(self.value) if self.kind == "loss" else TASK

    def expected(self, model: nn.Module) -> str:
        """How the tensor is named."""
        match self.kind:
            case "data":
                return "its batch of data"
            case "weight":
                return f"parameter {LAST[self.model]}.weight"
            case "output":
                layer = model.get_submodule(self.layer)
                return f"the output of {self.layer} ({type(layer).__name__})"
            case "loss":
                return "the loss"
            case _:
                return f"the gradient of {self.layer}.bias"


class _SpoiledLoss:
    """The loss of marked examples is a value that is not finite."""

    def __init__(self, value: float) -> None:
        self.value = value
        self.sums, self.metrics = TASK.sums, TASK.metrics

    def loss(self, outputs: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        loss = TASK.loss(outputs, inputs, targets)
        return loss * 0 + self.value if is_marked(inputs) else loss


def is_marked(inputs: Tensor) -> bool:
    return bool((inputs[:, 0, 0, 0] == MARK).any())


def fresh(model: str, optimizer: str) -> TrainState:
    seed_everything(0)
    network = build.model(MODELS[model], SHAPE, CLASSES)
    return TrainState(network, build.optimizer(OPTIMIZERS[optimizer], network))


def run(state: TrainState, train: Stream, task: Any = TASK, **changes: Any) -> Iterator[list[Record]]:
    loop = {"epochs": EPOCHS, "log_every": 100, "accumulate": 1, "clip_norm": None, "on_nonfinite": "stop"}
    return fit(state, train, None, task, lambda step, total: 1.0, CPU, **(loop | changes))


def image(state: TrainState) -> dict[str, Tensor]:
    """All that an update changes: weights and moments by name; moments that are not there yet count as zero."""
    found = {name: tensor.detach().clone() for name, tensor in state.model.named_parameters()}
    names: dict[Tensor, str] = {parameter: name for name, parameter in state.model.named_parameters()}
    for parameter, moments in state.optimizer.state.items():
        for key, value in moments.items():
            if isinstance(value, Tensor) and bool((value != 0).any()):
                found[f"{names[parameter]} {key}"] = value.detach().clone()
    return found


def bits(tensors: dict[str, Tensor]) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def caught(fault: Fault) -> tuple[TrainState, int, str]:
    """Train as a run does until the fault is noticed: the state then, the step that is told, the tensor's name."""
    state, train, task = fault.state(), fault.stream(), fault.task()
    seed_everything(1)
    since = 0, generator_states()
    try:
        _spoil_weight(state, fault)
        for chunk in run(
            state, train, task, accumulate=fault.accumulate, log_every=fault.log_every, clip_norm=fault.clip_norm
        ):
            _spoil_weight(state, fault)
            if chunk:
                since = state.step, generator_states()
    except NonFiniteLoss as error:
        seed_everything(99)
        named = nonfinite.name_tensor(
            state, train, task, CPU, step=error.step, since=since, accumulate=fault.accumulate
        )
        return state, error.step, named
    raise AssertionError("not noticed")


def _spoil_weight(state: TrainState, fault: Fault) -> None:
    if fault.kind == "weight" and state.step == fault.step - 1:
        weight = state.model.get_submodule(LAST[fault.model]).weight
        assert isinstance(weight, Tensor)
        weight.data[:, fault.place] = fault.value


def drawn(count: int, seed: int) -> list[Fault]:
    """Faults of all kinds in all models with all optimizers; the rest is drawn."""
    generator = random.Random(seed)
    kinds, values = ("data", "weight", "output", "loss", "gradient"), (math.nan, math.inf, -math.inf)
    every = [(kind, model, optimizer) for kind in kinds for model in MODELS for optimizer in OPTIMIZERS]
    generator.shuffle(every)
    return [
        Fault(
            model,
            optimizer,
            kind,
            value=generator.choice(values),
            step=generator.randint(1, TOTAL),
            accumulate=generator.choice((1, 2)),
            log_every=generator.choice((1, 4, 100)),
            place=generator.randrange(4),
        )
        for kind, model, optimizer in (every * -(-count // len(every)))[:count]
    ]


def check_caught(fault: Fault) -> None:
    """The step and the tensor are told, and the state is that of a run which ended before the step."""
    state, step, named = caught(fault)
    before = fault.state()
    seed_everything(1)
    if fault.step > 1:
        for _ in run(before, fault.stream(), fault.task(), accumulate=fault.accumulate, clip_norm=fault.clip_norm):
            if before.step == fault.step - 1:
                break
    _spoil_weight(before, fault)
    assert (step, named) == (fault.step, fault.expected(state.model)), fault
    assert bits(image(state)) == bits(image(before)), fault


@pytest.mark.parametrize("fault", drawn(50, seed=0), ids=lambda fault: f"{fault.kind}-{fault.model}-{fault.optimizer}")
def test_a_nonfinite_value_is_reported_with_step_and_tensor_and_changes_nothing(fault: Fault) -> None:
    check_caught(fault)


@pytest.mark.torture
@pytest.mark.parametrize("seed", range(1, 11))
def test_two_hundred_nonfinite_values_are_reported_with_step_and_tensor_and_change_nothing(seed: int) -> None:
    for fault in drawn(200, seed):
        check_caught(fault)


def test_a_nonfinite_value_inside_a_long_interval_is_reported_with_its_step() -> None:
    for step in range(1, TOTAL + 1):
        state, told, _ = caught(Fault("mlp", "sgd", "loss", math.nan, step))
        assert told == step
        assert state.step == -(-step // STEPS) * STEPS  # noticed at the end of the epoch alone


def test_a_nonfinite_gradient_without_clip_norm_is_reported_one_step_late_by_its_weight() -> None:
    """To look at every gradient would cost a sixth of a small network's step."""
    fault = Fault("mlp", "sgd", "gradient", math.nan, 3)
    state, since = fault.state(), (0, generator_states())
    with pytest.raises(NonFiniteLoss) as error:
        list(run(state, fault.stream()))
    named = nonfinite.name_tensor(state, fault.stream(), TASK, CPU, step=error.value.step, since=since, accumulate=1)
    assert (error.value.step, named) == (4, "parameter layers.1.weight")


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
def test_weights_that_are_not_finite_are_never_saved(on_nonfinite: steps.OnNonfinite) -> None:
    fault = Fault("mlp", "adam", "gradient", math.inf, 3)
    state = fault.state()
    chunks = run(state, fault.stream(), on_nonfinite=on_nonfinite)
    for expected in (1, 2):
        next(chunks)
        steps.require_finite(state, on_nonfinite)
        assert state.step == expected
    next(chunks)
    with pytest.raises(NonFiniteLoss) as error:
        steps.require_finite(state, on_nonfinite)
    assert error.value.step == 3
    since = 3, generator_states()  # also where a record has just been written
    named = nonfinite.name_tensor(state, fault.stream(), TASK, CPU, step=3, since=since, accumulate=1)
    assert named == "parameter layers.1.weight"


class Drawing(nn.Module):
    """Draws from each generator in training, and answers NaN where it drew more than `limit`."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.layer = nn.Linear(144, CLASSES)
        self.drop = nn.Dropout(0.5)
        self.limit = limit
        self.seen: list[float] = []

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.layer(self.drop(inputs.flatten(1)))
        share = (float(torch.rand(())) + random.random() + numpy.random.random()) / 3
        self.seen.append(share)
        return outputs * (math.nan if share > self.limit else 1.0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_recomputed_step_draws_the_same_random_numbers(seed: int, accumulate: int) -> None:
    def trained(limit: float) -> tuple[TrainState, list[float], int]:
        torch.manual_seed(0)
        model = Drawing(limit)
        state = TrainState(model, build.optimizer(OPTIMIZERS["sgd"], model))
        seed_everything(seed)
        since = 0, generator_states()
        try:
            for chunk in run(state, Stream(), accumulate=accumulate, log_every=4):
                if chunk:
                    since = state.step, generator_states()
        except NonFiniteLoss as error:
            first = list(model.seen)
            seed_everything(99)
            named = nonfinite.name_tensor(
                state, Stream(), TASK, CPU, step=error.step, since=since, accumulate=accumulate
            )
            assert named == "the output of the model (Drawing)"
            assert model.seen[-1] == first[worst]
            return state, first, error.step
        return state, model.seen, 0

    worst = -1
    _, shares, _ = trained(1.0)
    worst = max(range(len(shares)), key=shares.__getitem__)  # only this one is above the second largest
    _, _, step = trained(sorted(shares)[-2])
    assert step == worst // accumulate + 1


def names_read_by_the_host(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each call by which the host would have to wait for the device."""
    found = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "cpu", "numpy", "nonzero"):
        real = getattr(Tensor, name)

        def read(tensor: Tensor, *arguments: Any, name: str = name, real: Any = real, **options: Any) -> Any:
            found.append(name)
            return real(tensor, *arguments, **options)

        monkeypatch.setattr(Tensor, name, read)
    return found


@pytest.fixture(params=["at hand", "on a device"])
def where_a_loss_is(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decide on an update as on the CPU, or by the mask that a GPU gets."""
    monkeypatch.setattr(torch.Tensor, "is_cpu", property(lambda tensor: request.param == "at hand"))


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "muon"])
def test_no_step_makes_the_host_wait(
    optimizer: str, clip_norm: float | None, on_nonfinite: steps.OnNonfinite, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = fresh("norm", optimizer)
    monkeypatch.setattr(torch.Tensor, "is_cpu", property(lambda tensor: False))  # as of a GPU's
    options: dict[str, Any] = {"accumulate": 2, "clip_norm": clip_norm, "on_nonfinite": on_nonfinite}
    read = names_read_by_the_host(monkeypatch)
    for batch in Stream((4,), mark=math.nan).epoch(0, 0):
        train_step(state, *batch, TASK, CPU, **options)
    assert read == []
    assert float(state.faults) == (3 if on_nonfinite == "stop" else 1)  # type: ignore[arg-type]
    assert read != []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "muon"])
def test_no_step_makes_the_host_wait_on_cuda(optimizer: str) -> None:
    cuda = Runtime(torch.device("cuda"), "bf16", 1)
    state = fresh("norm", optimizer)
    state = TrainState(state.model.to("cuda"), build.optimizer(OPTIMIZERS[optimizer], state.model.to("cuda")))
    batches = [(inputs.to("cuda"), targets.to("cuda")) for inputs, targets in Stream((4,), mark=math.nan).epoch(0, 0)]
    options: dict[str, Any] = {"accumulate": 2, "clip_norm": 1.0, "on_nonfinite": "skip"}
    train_step(state, *batches[0], TASK, cuda, **options)  # libraries start
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches[1:]:
            train_step(state, *batch, TASK, cuda, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert float(state.faults) == 1  # type: ignore[arg-type]


def everything(state: TrainState) -> dict[str, bytes]:
    return bits(image(state) | {f"buffer {name}": value.clone() for name, value in state.model.named_buffers()})


@pytest.mark.usefixtures("where_a_loss_is")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["output", "loss", "gradient"])
@pytest.mark.parametrize("step", [1, 2, 9])
def test_a_skipped_step_leaves_no_trace(kind: str, optimizer: str, step: int) -> None:
    fault = Fault("norm", optimizer, kind, math.nan, step)
    state = fault.state()
    before = everything(state)
    for _ in run(state, fault.stream(), fault.task(), on_nonfinite="skip", clip_norm=fault.clip_norm):
        if state.step == fault.step:
            assert everything(state) == before
        elif state.step > fault.step:
            assert everything(state) != before
            break
        before = everything(state)
    else:
        assert fault.step == TOTAL


@pytest.mark.usefixtures("where_a_loss_is")
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("bad", [(1,), (1, 2), (7, 8), (1, 2, 3, 10, 11, 12), (3, 9)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_that_skips_equals_one_that_never_saw_the_bad_batches(
    optimizer: str, bad: tuple[int, ...], accumulate: int
) -> None:
    """Also of the first steps: torch's fused SGD would go on from memory that was never written."""
    noise = [torch.full((64,), 1e9) for _ in range(400)]  # memory that is given back: not zero where it is used again
    del noise
    skipping, never = fresh("mlp", optimizer), fresh("mlp", optimizer)
    options: dict[str, Any] = {"on_nonfinite": "skip", "accumulate": accumulate, "log_every": 1}
    records = [chunk[0] for chunk in run(skipping, Stream(bad, 3, math.nan), **options)]
    if len(bad) % 2:  # an odd number leaves no whole epochs: one by one
        for inputs, targets in Stream(drop=bad).all():
            train_step(never, inputs, targets, TASK, CPU, accumulate=accumulate, clip_norm=None, on_nonfinite="skip")
    else:
        expected = [chunk[0].values["loss"] for chunk in run(never, Stream(drop=bad), **options)]
        assert [record.values["loss"] for record in records if record.step not in bad] == expected
    assert everything(skipping) == everything(never)
    assert [record.step for record in records if "skipped_steps" in record.values] == list(bad)


@pytest.mark.usefixtures("where_a_loss_is")
@pytest.mark.parametrize("log_every", [1, 2, 3, 100])
def test_a_record_counts_skipped_steps_and_excludes_them_from_its_metrics(log_every: int) -> None:
    bad = (2, 3, 4, 11)
    single = [
        chunk[0].values
        for chunk in run(fresh("mlp", "adam"), Stream(bad, 1, math.inf), on_nonfinite="skip", log_every=1)
    ]
    for chunk in run(fresh("mlp", "adam"), Stream(bad, 1, math.inf), on_nonfinite="skip", log_every=log_every):
        for record in chunk:
            first = max(edge for edge in (0, STEPS, *range(0, TOTAL, log_every)) if edge < record.step)
            steps = range(first + 1, record.step + 1)
            good = [single[step - 1]["loss"] for step in steps if step not in bad]
            assert record.values.get("skipped_steps", 0) == len(steps) - len(good)
            assert record.values["loss"] == pytest.approx(sum(good) / len(good) if good else math.nan, nan_ok=True)


def test_an_epoch_of_only_bad_steps_is_reported_as_such() -> None:
    state = fresh("norm", "sgd")
    before = everything(state)
    bad = tuple(range(1, TOTAL + 1))
    first, second = (chunk[0].values for chunk in run(state, Stream(bad, mark=math.nan), on_nonfinite="skip") if chunk)
    assert math.isnan(first["loss"])
    assert (first["skipped_steps"], second["skipped_steps"]) == (STEPS, STEPS)
    assert everything(state) == before


@pytest.mark.parametrize("stop", range(1, TOTAL))
def test_a_run_that_skips_continues_from_any_step_to_the_same_bits(stop: int) -> None:
    def records(state: TrainState, until: int) -> list[Any]:
        found = []
        for chunk in run(state, Stream((2, 5, 8), 2, math.nan), on_nonfinite="skip", log_every=3):
            found += [(record.step, record.values["loss"], record.values.get("skipped_steps")) for record in chunk]
            if state.step == until:
                break
        return found

    whole, first, second = fresh("norm", "adam"), fresh("norm", "adam"), fresh("norm", "adam")
    seed_everything(2)
    expected = records(whole, TOTAL)
    seed_everything(2)
    found = records(first, stop)
    second.model.load_state_dict(first.model.state_dict())
    snapshot.restore_optimizer(second.optimizer, copy.deepcopy(first.optimizer.state_dict()))
    steps.accumulate_metrics(first, TASK)
    second.step, second.sums, second.faults = first.step, first.sums, first.faults
    assert found + records(second, TOTAL) == expected
    assert everything(second) == everything(whole)


# From the command line. A network whose output, or whose weight, is NaN from step BAD_STEP on; and marked pictures.
NETS = """
import math, os
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, input_shape, num_classes, fault="output", dropout=0.0):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(dropout))
        self.head = nn.Linear(16, num_classes)
        self.fault = fault
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        if self.training and torch.is_grad_enabled():
            self.steps += 1
        is_bad = int(self.steps) >= int(os.environ.get("BAD_STEP", 10**9)) and self.training
        if is_bad and self.fault == "weight":
            self.head.weight.data[0, 0] = math.inf
        x = self.body(x)
        if is_bad and self.fault == "gradient":
            x.register_hook(lambda gradient: gradient * math.nan)
        return self.head(x * math.nan if is_bad and self.fault == "input" else x) * (
            math.nan if is_bad and self.fault == "output" else 1.0
        )

def _digits(split):
    generator = torch.Generator().manual_seed(len(split))
    labels = torch.arange(60) % 3
    return torch.rand(60, 1, 8, 8, generator=generator) + labels.view(-1, 1, 1, 1), labels

def clean(split):
    return None if split == "val" else (*_digits(split), ["a", "b", "c"])

def spotted(split, bad=3, where="train"):
    if split == "val" and where != "val":
        return None
    images, labels = _digits(split)
    if split == where:
        images[bad, 0, 2, 2] = math.nan
    return images, labels, ["a", "b", "c"]

def hopeless(split):
    images, labels = _digits(split)
    return None if split == "val" else (images * math.nan if split == "train" else images, labels, ["a", "b", "c"])
"""
OWN = ("data=custom", "data.mean=[0]", "data.std=[1]", "data.val=0", "epochs=3", "batch_size=10", "trust=[own_nets]")
OWN += ("report=false", "logger=none")
NET = ("model=custom", "model.name=own_nets:Net")
CLEAN = ("data.name=own_nets:clean",)


@pytest.fixture
def own(dltrain: Command) -> Iterator[Command]:
    """The command line with the networks and pictures above."""
    sys.modules.pop("own_nets", None)  # of another test
    Path("own_nets.py").write_text(NETS)
    yield lambda *arguments: dltrain("train", *arguments)
    sys.modules.pop("own_nets", None)


def run_folder() -> Path:
    (folder,) = (path.parent for path in Path("outputs").rglob("train.log"))
    return folder


def strict(path: Path) -> list[dict[str, Any]]:
    """Lines of strict JSON."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


PARTS = ("accumulate=2", "batch_size=5", "+model.dropout=0.3")


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ("output", "the output of the model (Net)"),
        ("input", "the output of head (Linear)"),
        ("weight", "parameter head.weight"),
    ],
)
@pytest.mark.parametrize("more", mostly_slow([(), PARTS], fast=[PARTS]), ids=["plain", "parts"])
def test_a_custom_network_that_turns_nan_ends_the_run_in_two_lines(
    own: Command, monkeypatch: pytest.MonkeyPatch, fault: str, named: str, more: tuple[str, ...]
) -> None:
    parts = 2 if more else 1
    monkeypatch.setenv("BAD_STEP", str(9 * parts))
    result = own(*NET, *CLEAN, *OWN, *more, f"+model.fault={fault}", "log_every=50", "data.val=0.2")
    assert result.code == 1
    assert result.err.splitlines()[0] == f"error: the loss is not finite at step 9, first in {named}"
    assert len(result.err.splitlines()) <= 3
    assert "Traceback" not in result.err + result.out
    folder = run_folder()
    last, best = (checkpoint.load(folder / "checkpoints" / name) for name in ("last.pt", "best.pt"))
    assert last["step"] < 9
    assert math.isfinite(best["best"]["loss"])
    assert all(bool(torch.isfinite(value).all()) for value in best["model"].values())
    monkeypatch.delenv("BAD_STEP")
    assert own(f"resume={folder}", "trust=[own_nets]").code == 0
    resumed = checkpoint.load(folder / "checkpoints" / "last.pt")["model"]
    whole = own(*NET, *CLEAN, *OWN, *more, f"+model.fault={fault}", "log_every=50", "data.val=0.2").folder
    expected = checkpoint.load(whole / "checkpoints" / "last.pt")["model"]
    assert bits(resumed) == bits(expected)
    assert strict(folder / "metrics.jsonl")


def test_a_checkpoint_that_is_due_at_the_bad_step_is_not_written(own: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAD_STEP", "9")
    result = own(*NET, *CLEAN, *OWN, "log_every=50", "checkpoint_every=1")
    assert "not finite at step 9" in result.err
    assert checkpoint.load(run_folder() / "checkpoints" / "last.pt")["step"] == 8


@pytest.mark.parametrize("more", [("limit_steps=10",), ("max_seconds=1e-9",)])
def test_a_limit_does_not_hide_a_bad_step(own: Command, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]) -> None:
    bad = 9 if "limit" in more[0] else 1
    monkeypatch.setenv("BAD_STEP", str(bad))
    result = own(*NET, *CLEAN, *OWN, "log_every=50", *more)
    assert (result.code, f"not finite at step {bad}" in result.err) == (1, True)
    assert checkpoint.load(run_folder() / "checkpoints" / "last.pt")["step"] == 0


def test_nan_in_the_images_is_reported_as_the_batch_of_data(own: Command) -> None:
    result = own("model=mlp", "model.hidden=[8]", *OWN, "data.name=own_nets:spotted")
    assert (result.code, "first in its batch of data" in result.err) == (1, True)


def test_a_recomputed_step_repeats_dropout_from_the_command_line(own: Command) -> None:
    """A rate that blows up: which layer is first depends on the units that were dropped."""
    result = own("model=mlp", "model.dropout=0.5", *CLEAN, *OWN, "optim.lr=1e25", "schedule=constant", "log_every=50")
    assert result.code == 1
    assert "first in the output of layers." in result.err


SPOTTED = ("model=mlp", "model.batch_norm=true", "model.dropout=0.2", *OWN, "data.name=own_nets:spotted")


@pytest.mark.parametrize("stop", mostly_slow([1, 3, 6, 8, 14], fast=[6]))
def test_a_resumed_run_that_skips_equals_an_uninterrupted_one(own: Command, stop: int) -> None:
    skip = ("on_nonfinite=skip", "log_every=4")
    whole = own(*SPOTTED, *skip).folder
    part = own(*SPOTTED, *skip, f"limit_steps={stop}").folder
    assert own(f"resume={part}", "limit_steps=null", "trust=[own_nets]").code == 0
    one, other = (checkpoint.load(folder / "checkpoints" / "last.pt") for folder in (whole, part))
    assert bits(one["model"]) == bits(other["model"])
    kept = [strict(folder / "metrics.jsonl") for folder in (whole, part)]
    for line in kept[0] + kept[1]:
        line.pop("examples_per_second", None)
    assert kept[0] == kept[1]
    assert sum(line.get("skipped_steps", 0) for line in kept[0]) == 3


def test_a_run_that_skipped_can_be_resumed_with_stop_and_stops_at_the_next_bad_step(own: Command) -> None:
    whole = own(*SPOTTED, "on_nonfinite=skip", "log_every=1").folder
    bad = [line["step"] for line in strict(whole / "metrics.jsonl") if line.get("skipped_steps")]
    first = next(step for step in bad if step % 6)  # not the last of its epoch
    part = own(*SPOTTED, "on_nonfinite=skip", "log_every=100", f"limit_steps={first}").folder
    result = own(f"resume={part}", "limit_steps=null", "on_nonfinite=stop", "trust=[own_nets]")
    following = bad[bad.index(first) + 1]
    assert f"not finite at step {following}, first in its batch of data" in result.err


def test_an_interval_of_skipped_steps_alone_is_null_in_strict_json(own: Command) -> None:
    hopeless = ("data.name=own_nets:hopeless", "on_nonfinite=skip")
    result = own("model=mlp", *OWN, *hopeless)
    assert result.code == 0
    found = [line for line in strict(result.folder / "metrics.jsonl") if line["split"] == "train"]
    assert [(line["loss"], line["skipped_steps"]) for line in found] == [(None, 6)] * 3
    assert own("model=mlp", *OWN, *hopeless, "log_every=1").code == 0
    assert strict_whole(result.folder / "summary.json")["test"]["loss"] > 0


def strict_whole(path: Path) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    found: dict[str, Any] = json.loads(path.read_text(), parse_constant=refuse)
    return found


VAL = ("model=mlp", *OWN, "data.val=0.1", "data.name=own_nets:spotted", "+data.where=val")


def test_nan_in_the_validation_stops_the_run_in_two_lines(own: Command) -> None:
    result = own(*VAL)
    assert result.code == 1
    assert result.err.splitlines()[0] == "error: val loss is nan at step 6: training diverged"
    assert len(result.err.splitlines()) <= 3
    folder = run_folder()
    assert checkpoint.load(folder / "checkpoints" / "last.pt")["step"] <= 6
    assert [line["split"] for line in strict(folder / "metrics.jsonl")] == ["train"]


def test_nan_in_the_validation_is_null_and_never_best_if_bad_steps_are_skipped(own: Command) -> None:
    result = own(*VAL, "on_nonfinite=skip")
    assert result.code == 0
    found = strict(result.folder / "metrics.jsonl")
    assert [line["loss"] for line in found if line["split"] == "val"] == [None] * 3
    best = checkpoint.load(result.folder / "checkpoints" / "best.pt")["best"]
    assert best["split"] == "train"
    assert math.isfinite(best["loss"])


@pytest.mark.parametrize("where", ["val", "test"])
def test_the_summary_is_strict_json_with_a_nan_metric(own: Command, where: str) -> None:
    result = own(*VAL, f"++data.where={where}", "on_nonfinite=skip")
    assert result.code == 0
    assert strict_whole(result.folder / "summary.json")[where]["loss"] is None


def test_nan_in_the_test_is_reported(own: Command) -> None:
    result = own(*VAL, "++data.where=test")
    assert (result.code, "test loss is not finite" in result.err + result.out) == (0, True)
    assert "test loss is not finite" in (result.folder / "train.log").read_text()


@pytest.mark.parametrize("more", [(), ("on_nonfinite=skip",), ("log_every=1",)])
def test_a_nonfinite_weight_never_replaces_the_last_checkpoint(
    own: Command, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    monkeypatch.setenv("BAD_STEP", "9")
    result = own(*NET, *CLEAN, *OWN, "+model.fault=gradient", "checkpoint_every=1", "log_every=50", *more)
    assert (result.code, "Traceback" in result.err) == (1, False)
    assert "not finite at step 9, first in parameter body.1.weight" in result.err
    last = checkpoint.load(run_folder() / "checkpoints" / "last.pt")
    assert last["step"] == 8
    assert all(bool(torch.isfinite(value).all()) for value in last["model"].values())
