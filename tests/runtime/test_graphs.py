"""Steps recorded and repeated, as on a GPU, train to the same bits as steps that are computed one by one.

On the CPU the calls of a step are repeated (support/replay.py); the tests `…_on_cuda` have a graph of CUDA.
"""

import copy
import functools
import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from dltrain.config import registry
from dltrain.data.augmentation import Augmentation
from dltrain.data.loader import TensorLoader
from dltrain.data.splits import Examples
from dltrain.engine import fit
from dltrain.optim import schedules
from dltrain.optim.metrics import WithMetric
from dltrain.optim.step import NonFiniteLoss, TrainState, accumulate_metrics, keep_on_device
from dltrain.runtime import devices, graphs, torchrun
from dltrain.runtime.devices import Runtime, generator_states, restore_generators
from dltrain.runtime.errors import ConfigError, DeviceError, UserError
from dltrain.runtime.graphs import CudaGraph
from dltrain.training import build, checks, snapshot
from support.command import Command
from support.replay import Replay
from support.tiers import mostly_slow

CONFIGS = Path(__file__).parents[2] / "configs"
SHAPE, COUNT, BATCH = (3, 16, 16), 72, 16  # five steps an epoch, the last one of half a batch
STEPS, EPOCHS = 5, 3
SCHEDULE = functools.partial(schedules.cosine, warmup=0.2, final=0.0)  # another rate at each step
SMALL: dict[str, dict[str, Any]] = {
    "attention": {"width": 16, "dropout": 0.1},
    "autoencoder": {"hidden": [16]},
    "cnn": {"widths": [8], "hidden": 16, "batch_norm": True, "dropout": 0.2},
    "fastnet": {"widths": [8, 8, 8]},
    "lstm": {"hidden": 8, "layers": 2, "dropout": 0.2, "pool": "attention"},
    "mlp": {"hidden": [16], "dropout": 0.3},
    "resnet": {"widths": [8], "blocks": 1},
}
NewGraph = Callable[[], graphs.Graph]
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


@dataclass
class Setup:
    """A small run, which differs from others in what is named."""

    model: str = "mlp"
    optim: str = "sgd"
    keys: dict[str, Any] = field(default_factory=dict)  # of the optimizer
    task: dict[str, Any] = field(default_factory=dict)
    metric: str = "loss"
    augmentation: dict[str, Any] = field(default_factory=dict)
    loop: dict[str, Any] = field(default_factory=dict)
    precision: str = "fp32"
    device: str = "cpu"
    spoiled: int | None = None  # an image with a NaN

    def state(self) -> TrainState:
        torch.manual_seed(1)
        network = build.model(node("model", self.model) | SMALL.get(self.model, {}), SHAPE, 10).to(self.device)
        return TrainState(network, build.optimizer(node("optim", self.optim) | self.keys, network))

    def loader(self) -> TensorLoader:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (COUNT, *SHAPE), generator=generator, dtype=torch.uint8)
        if self.spoiled is not None:
            images = images / 255
            images[self.spoiled, 0, 3, 3] = math.nan
        labels = torch.randint(0, 10, (COUNT,), generator=generator)
        return TensorLoader(
            Examples(images, labels, tuple("abcdefghij")),
            torch.device(self.device),
            batch_size=BATCH,
            statistics=((0.5,) * 3, (0.5,) * 3),
            augmentation=Augmentation(**self.augmentation),
        )

    def chunks(self, state: TrainState, graph: NewGraph | None, *, on_device: bool = True) -> Iterator[Any]:
        runtime = Runtime(torch.device(self.device), self.precision, 1, graph=graph)
        kind = "reconstruction" if self.model == "autoencoder" else "classification"
        task = registry.partial_call("task", node("task", kind) | self.task)()
        task = WithMetric(task, self.metric, smaller_is_better=False, classes=10)
        loop: dict[str, Any] = {"epochs": EPOCHS, "log_every": 4, "accumulate": 1, "clip_norm": None}
        options = loop | {"on_nonfinite": "stop"} | self.loop
        if on_device:  # so that on a CPU too nothing is read in a step
            keep_on_device(state, torch.device(self.device))
        return fit(state, self.loader(), self.loader(), task, SCHEDULE, runtime, **options)


def node(group: str, name: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text())


def timeless(chunk: Any) -> list[Any]:
    fixed = [(each.split, each.step, {**each.values, "examples_per_second": 0}) for each in chunk]
    return [repr(each) for each in fixed]  # a NaN equals itself


def tensors(state: TrainState) -> dict[str, Tensor]:
    moments = state.optimizer.state_dict()["state"]
    kept = {f"{number}.{key}": value for number, entry in moments.items() for key, value in entry.items()}
    return state.model.state_dict() | {f"ema.{key}": each for key, each in (state.ema_weights or {}).items()} | kept


def generators(setup: Setup) -> list[Tensor]:
    return [generator_states()[name] for name in {"cpu", setup.device}]


def trained(setup: Setup, graph: NewGraph | None, **options: bool) -> tuple[dict[str, Tensor], list[Any], list[Any]]:
    """Weights, moments and averages, records, and states of the generators after a run."""
    state = setup.state()
    torch.manual_seed(2)
    records = [line for chunk in setup.chunks(state, graph, **options) for line in timeless(chunk)]
    return tensors(state), records, generators(setup)


def require_same(one: Any, other: Any) -> None:
    assert one[0].keys() == other[0].keys()
    assert not [key for key, value in one[0].items() if not torch.equal(value, other[0][key])]
    assert one[1] == other[1]
    assert all(map(torch.equal, one[2], other[2]))


def require_same_with_graph(setup: Setup, graph: NewGraph, several: int = 0) -> None:
    made: list[graphs.Graph] = []
    require_same(trained(setup, None), trained(setup, lambda: made.append(graph()) or made[-1]))
    eager, replays = graphs.WARM_UP + EPOCHS, EPOCHS * 4 - graphs.WARM_UP  # the last batch has another shape
    expected = [(1, eager, replays - several * graphs.AT_ONCE), (bool(several), 0, several), (1, eager, replays)]
    if graph is Replay:  # of one step, of several, of a validation
        assert [(each.captures, each.eager, each.replays) for each in made] == expected


EVERYTHING = {"accumulate": 2, "clip_norm": 1.0, "ema": 0.9, "on_nonfinite": "skip"}
AUGMENTED = {"crop": 2, "flip": True, "rotate": 10.0, "cutout": 4, "mixup": 0.5, "cutmix": 0.5}
FACTORS = {"head_factor": 2.0, "bias_factor": 3.0, "weight_decay": 0.01, "decay_biases": False}  # several groups
DEFAULT = {
    "plain": Setup(),
    "metrics of all outputs": Setup("cnn", metric="auroc", loop={"ema": 0.5}),
    "a NaN that is skipped": Setup("cnn", "adam", keys=FACTORS, loop=EVERYTHING, spoiled=7),
    "augmented": Setup("resnet", "muon", keys=FACTORS, augmentation=AUGMENTED, loop={"log_every": 1}),
}
OPTIONS = {
    "accumulate": Setup(loop={"accumulate": 3}),
    "bf16": Setup("cnn", precision="bf16"),
    "class weights": Setup(task={"class_weights": [1.0] * 9 + [2.0], "label_smoothing": 0.1}),
    "clip": Setup(loop={"clip_norm": 0.1}),
    "ema": Setup("cnn", loop={"ema": 0.9}),
    "elastic": Setup(augmentation={"elastic": 1.0}),
    "policy": Setup(augmentation={"policy": "trivial", "erase": 0.5, "resized_crop": 0.5}),
    "colour": Setup(augmentation={"brightness": 0.2, "contrast": 0.2, "saturation": 0.2}),
    "long intervals": Setup(loop={"log_every": 1000}),
    "no momentum": Setup(keys={"momentum": 0.0}),
    "nesterov": Setup(keys={"nesterov": True}),
}


@pytest.fixture(autouse=True)
def _plain_kernels() -> Iterator[None]:
    """Without oneDNN, whose recurrent layers keep what no call shows; with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch._C._set_mkldnn_enabled(False)
    yield
    torch._C._set_mkldnn_enabled(True)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("spoiled", [None, 30, 60])
def test_steps_in_which_nothing_is_read_train_to_the_same_bits(spoiled: int | None) -> None:
    setup = Setup("cnn", spoiled=spoiled, loop={"on_nonfinite": "skip", "log_every": 1})
    require_same(trained(setup, None, on_device=False), trained(setup, None))


@pytest.mark.parametrize("name", DEFAULT)
def test_recorded_steps_train_to_the_same_bits(name: str) -> None:
    require_same_with_graph(DEFAULT[name], Replay)


SEVERAL = Setup("cnn", "adam", keys=FACTORS, loop={"log_every": 1000, "on_nonfinite": "skip"}, spoiled=7)


@pytest.mark.parametrize("at_once", mostly_slow([2, 3, 4], fast=[3]))
def test_several_steps_recorded_as_one_graph_train_to_the_same_bits(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "AT_ONCE", at_once)
    require_same_with_graph(SEVERAL, Replay, several=(EPOCHS - 1) * (4 // at_once))  # the first epoch warms up


@pytest.mark.parametrize("stop", mostly_slow(range(6, 15), fast=[8]))
def test_a_run_that_stopped_while_steps_wait_continues_to_the_same_bits(
    stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "AT_ONCE", 2)
    require_same(trained(SEVERAL, None), stopped_and_continued(SEVERAL, stop, Replay))


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_recorded_steps_train_to_the_same_bits_with_each_option(name: str) -> None:
    require_same_with_graph(OPTIONS[name], Replay)


@pytest.mark.slow
@pytest.mark.parametrize("optim", ["sgd", "adam", "adamw", "muon"])
@pytest.mark.parametrize("model", sorted({*registry.names("model")} - {"custom", "torchvision"}))
@pytest.mark.parametrize("options", ["plain", "everything"])
def test_recorded_steps_train_to_the_same_bits_with_each_model_and_optimizer(
    model: str, optim: str, options: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "AT_ONCE", 2)
    if options == "plain":
        require_same_with_graph(Setup(model, optim), Replay, several=3)
    else:
        mixed = {} if model == "autoencoder" else AUGMENTED
        setup = Setup(model, optim, FACTORS, augmentation=mixed, loop=EVERYTHING, spoiled=7)
        require_same_with_graph(setup, Replay)


@pytest.mark.slow
def test_recorded_steps_of_a_torchvision_network_train_to_the_same_bits() -> None:
    SMALL["torchvision"] = {"arch": "shufflenet_v2_x0_5"}
    require_same_with_graph(Setup("torchvision"), Replay)


def stopped_and_continued(setup: Setup, stop: int, graph: NewGraph) -> Any:
    """As `trained`, for a run that stops after a step and continues with new objects, and a new graph, from there."""
    state = setup.state()
    torch.manual_seed(2)
    records = []
    for chunk in setup.chunks(state, graph):
        records += timeless(chunk)
        if state.step == stop:
            break
    accumulate_metrics(state, registry.partial_call("task", node("task", "classification"))())
    states, moments = generator_states(), copy.deepcopy(state.optimizer.state_dict())
    assert {type(group["lr"]) for group in moments["param_groups"]} == {float}
    restored = setup.state()
    restored.model.load_state_dict(state.model.state_dict())
    snapshot.restore_optimizer(restored.optimizer, moments)
    restored.step, restored.sums, restored.faults = state.step, state.sums, state.faults
    restored.ema_weights = state.ema_weights
    restore_generators(states)
    records += [line for chunk in setup.chunks(restored, graph) for line in timeless(chunk)]
    return tensors(restored), records, generators(setup)


RESUMED = Setup("cnn", "adam", loop={"ema": 0.9, "on_nonfinite": "skip"}, spoiled=7)


@functools.cache
def unbroken() -> Any:
    return trained(RESUMED, None)


@pytest.mark.parametrize("stop", mostly_slow(range(1, EPOCHS * STEPS), fast=[2, 8]))
def test_a_run_with_recorded_steps_that_stopped_at_any_step_continues_to_the_same_bits(stop: int) -> None:
    assert any("skipped_steps" in line for line in unbroken()[1])
    require_same(unbroken(), stopped_and_continued(RESUMED, stop, Replay))


@pytest.mark.parametrize("spoiled", mostly_slow([1, 7, 30, 60], fast=[7]))
@pytest.mark.parametrize("optim", mostly_slow(["sgd", "adam", "muon"], fast=["muon"]))
def test_recorded_steps_end_a_run_at_the_same_step_if_a_loss_is_not_finite(
    spoiled: int, optim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "AT_ONCE", 3)
    setup, ends = Setup("cnn", optim, loop={"log_every": 1000}, spoiled=spoiled), []
    for graph in (None, Replay):
        state = setup.state()
        torch.manual_seed(2)
        with pytest.raises(NonFiniteLoss) as caught:
            list(setup.chunks(state, graph))
        ends.append((caught.value.step, tensors(state)))
    assert ends[0][0] == ends[1][0] <= STEPS
    assert all(torch.allclose(value, ends[1][1][key], 0, 0, equal_nan=True) for key, value in ends[0][1].items())
    assert all(weight.isfinite().all() for weight in state.model.parameters())


def test_a_step_that_waits_for_a_number_cannot_be_recorded() -> None:
    total = torch.zeros(())
    graphed = graphs.GraphedStep(lambda inputs, _: total.add_(float(inputs.sum())), Replay())
    for _ in range(graphs.WARM_UP):
        graphed(torch.ones(2), torch.ones(2))
    assert float(total) == 2 * graphs.WARM_UP
    with pytest.raises(UserError, match=r"device\.graph: .*recorded .*a number is read\)\nSet device\.graph=false"):
        graphed(torch.ones(2), torch.ones(2))


def test_a_recorded_step_has_not_been_computed() -> None:
    total, kept = torch.zeros(2), torch.get_rng_state()
    graph = Replay()
    with graph.capture():
        total += torch.rand(2)
    assert total.tolist() == [0, 0]
    assert torch.equal(kept, torch.get_rng_state())
    graph.replay()
    torch.set_rng_state(kept)
    assert torch.equal(total, torch.rand(2))


def graph_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs on the CPU record their steps."""
    monkeypatch.setattr(checks, "check_graph", lambda runtime, values: replace(runtime, graph=Replay))


@pytest.mark.slow
def test_a_resumed_command_with_recorded_steps_ends_with_the_bits_of_an_uninterrupted_one(
    dltrain: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph_at(monkeypatch)
    command = "train", "data=digits", "data.limit=300", "optim=adam", "epochs=2", "log_every=3", "report=false"
    whole = dltrain(*command)
    half = dltrain(*command, "limit_steps=6")
    rest = dltrain("train", f"resume={half.folder}", "limit_steps=null")
    assert (whole.code, rest.code) == (0, 0), rest.err
    one, other = (torch.load(result.folder / "checkpoints" / "last.pt") for result in (whole, half))
    assert one["step"] == other["step"] > 6
    assert all(torch.equal(value, other["model"][key]) for key, value in one["model"].items())
    assert {type(group["lr"]) for group in other["optimizer"]["param_groups"]} == {float}


VALUES: dict[str, Any] = {
    "model": {"name": "mlp"},
    "optim": {"name": "sgd"},
    "task": {"name": "classification"},
    "hooks": [],
    "hardest": None,
    "device": {"graph": True},
}


@pytest.mark.parametrize(
    ("values", "world", "reason"),
    [
        ({}, 2, "several processes"),
        ({"model": {"name": "nets:MyNet"}}, 1, "nets:MyNet"),
        ({"hooks": ["hooks:on_epoch"]}, 1, "hooks:on_epoch"),
        ({"optim": {"name": "rmsprop"}}, 1, "rmsprop"),
        ({"hardest": 0.5}, 1, "the proxy is updated only every fourth step"),
    ],
)
def test_steps_that_cannot_be_recorded_are_an_error_if_it_is_asked_for_and_else_a_line_in_the_log(
    values: dict[str, Any], world: int, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    processes = torchrun.Processes(0, world, 0)
    runtime = Runtime(torch.device("cuda"), "fp32", 1, processes=processes, graph=CudaGraph)
    with pytest.raises(ConfigError, match=rf"device\.graph=true: .*{reason}.* Set device.graph=auto"):
        checks.check_graph(runtime, VALUES | values)
    caplog.set_level("INFO")
    assert checks.check_graph(runtime, VALUES | values | {"device": {"graph": "auto"}}).graph is None
    assert reason in caplog.text
    assert checks.check_graph(replace(runtime, processes=torchrun.SINGLE_PROCESS), VALUES).graph is CudaGraph


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_recorded_steps_without_a_gpu_are_a_device_error() -> None:
    with pytest.raises(DeviceError, match=r"device.graph=true: needs a GPU"):
        devices.device(name="auto", precision=None, threads=None, deterministic=False, graph=True)


def test_a_resumed_run_on_a_gpu_says_that_steps_were_not_recorded_before(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H200")
    runtime = Runtime(torch.device("cuda"), "fp32", 1)
    recorded = replace(runtime, graph=CudaGraph)
    assert recorded.describe() == "H200 (cuda), fp32, recorded steps"
    before, now = snapshot.environment(runtime), snapshot.environment(recorded)
    snapshot.warn_changed_environment(now, before, deterministic=False)
    assert "not bit-identical because graph was false, is true" in caplog.text


@cuda
@pytest.mark.parametrize("model", ["mlp", "lenet", "cnn", "lstm", "attention", "resnet", "fastnet"])
def test_recorded_steps_train_to_the_same_bits_on_cuda(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "AT_ONCE", 2)
    for optim, loop in itertools.product(["sgd", "adam", "adamw", "muon"], [{}, EVERYTHING]):
        with torch.backends.cudnn.flags(deterministic=True, benchmark=False):
            setup = Setup(model, optim, loop=loop, device="cuda", spoiled=7 if loop else None)
            require_same_with_graph(setup, CudaGraph)


@cuda
@pytest.mark.parametrize("stop", [2, 8])
def test_a_run_with_recorded_steps_continues_to_the_same_bits_on_cuda(stop: int) -> None:
    setup = replace(RESUMED, device="cuda")
    with torch.backends.cudnn.flags(deterministic=True, benchmark=False):
        require_same(trained(setup, None), stopped_and_continued(setup, stop, CudaGraph))


@cuda
def test_adam_in_recorded_steps_warns_of_nothing_on_cuda() -> None:
    with warnings.catch_warnings(action="error"):
        trained(Setup("mlp", "adam", device="cuda"), CudaGraph)
