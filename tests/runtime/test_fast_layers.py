"""A convolution and its pool, computed together in training steps: the same values, and when it is done."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recomputed

from dltrain import engine
from dltrain.checkpoints import checkpoint
from dltrain.data.loader import TensorLoader
from dltrain.data.splits import Examples
from dltrain.engine import Record, fit
from dltrain.optim import schedules
from dltrain.optim.step import TrainState
from dltrain.optim.tasks import Classification
from dltrain.runtime import fast_layers
from dltrain.runtime.devices import Runtime
from dltrain.runtime.fast_layers import PairedSequential, conv_pool, with_fast_layers
from dltrain.runtime.memory import to_device
from dltrain.runtime.torchrun import Processes
from dltrain.training import build
from support.command import Command

CPU = Runtime(torch.device("cpu"), "fp32", 1)
MANY = fast_layers.IMAGES_PER_THREAD
SGD = {"name": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3, "decay_biases": True}
CNN = {"name": "cnn", "widths": [8, 8], "hidden": 8, "dropout": 0.5, "batch_norm": False}


@pytest.fixture(autouse=True)
def _avx512(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of each pair that was computed together."""
    counts: list[int] = []

    def counted(conv: nn.Conv2d, images: Tensor) -> Tensor:
        counts.append(len(images))
        return conv_pool(conv, images)

    monkeypatch.setattr(fast_layers, "conv_pool", counted)
    return counts


def pair(**options: Any) -> nn.Sequential:
    conv = nn.Conv2d(1, 4, 3, padding=1)
    return nn.Sequential(conv, nn.MaxPool2d(**({"kernel_size": 2} | options)), nn.ReLU())


def step(network: nn.Module, images: Tensor, runtime: Runtime = CPU) -> Tensor:
    """The outputs of a network in a step with fast layers."""
    outputs: Tensor = with_fast_layers(network, network, runtime)(images)
    return outputs


# --- the same values


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("channels", "out_channels", "kernel", "padding", "sides"),
    [
        (1, 6, 5, 2, (28, 28)),
        (3, 6, 5, 0, (32, 32)),
        (1, 8, 3, 1, (8, 6)),
        (2, 1, (3, 2), (0, 1), (8, 7)),
        (3, 5, 1, 0, (4, 4)),
        (2, 3, (1, 4), (3, 3), (2, 3)),
    ],
)
def test_a_convolution_and_its_pool_together_are_the_two_one_after_another(
    channels: int, out_channels: int, kernel: Any, padding: Any, sides: tuple[int, int], bias: bool, channels_last: bool
) -> None:
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    conv = nn.Conv2d(channels, out_channels, kernel, padding=padding, bias=bias).to(memory_format=layout)
    images = torch.randn(5, channels, *sides)
    images[0] = 0.5  # the values of a place of the pool are equal
    images[1, :, : sides[0] // 2] = 0
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        layer, inputs = copy.deepcopy(conv).to(dtype), images.to(dtype)
        plain, fast = F.max_pool2d(layer(inputs), 2), conv_pool(layer, inputs)
        assert fast.shape == plain.shape
        torch.testing.assert_close(fast, plain, rtol=0, atol=tolerance)
        weights, slope = list(layer.parameters()), torch.randn_like(plain)
        for given, wanted in zip(
            torch.autograd.grad(fast, weights, slope), torch.autograd.grad(plain, weights, slope), strict=True
        ):
            torch.testing.assert_close(given, wanted, rtol=0, atol=10 * tolerance)
            assert given.stride() == wanted.stride()
        conv_pool(layer, inputs).sum().backward()
        assert layer.weight.grad is not None
        assert layer.weight.grad.stride() == layer.weight.stride()


def test_second_derivatives_are_right() -> None:
    torch.manual_seed(0)
    conv, images = nn.Conv2d(2, 3, 3, padding=1).double(), torch.randn(2, 2, 4, 4).double()
    assert conv.bias is not None

    def loss(weight: Tensor, bias: Tensor) -> Tensor:
        layer = copy.copy(conv)
        layer._parameters = {"weight": weight, "bias": bias}  # type: ignore[dict-item]
        return conv_pool(layer, images).tanh().sum()

    values = tuple(each.detach().requires_grad_() for each in (conv.weight, conv.bias))
    assert torch.autograd.gradcheck(loss, values)
    assert torch.autograd.gradgradcheck(loss, values)


def test_of_equal_values_the_first_gets_the_gradient_as_in_torchs_pool() -> None:
    """Seen in the gradient of the images, of which only their equal places matter."""
    conv = nn.Conv2d(1, 2, 1)
    images = torch.zeros(1, 1, 4, 4)
    gradients = []
    for function in (lambda inputs: F.max_pool2d(conv(inputs), 2), partial(conv_pool, conv)):
        inputs = images.clone().requires_grad_()
        function(inputs).sum().backward()
        gradients.append(inputs.grad)
    assert torch.equal(*gradients)
    assert gradients[0].count_nonzero() == 4


# --- where it is done


class Attributes(nn.Module):
    """Layers that are called by name, in no nn.Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(1, 4, 3), nn.MaxPool2d(2)

    def forward(self, images: Tensor) -> Tensor:
        return self.pool(self.conv(images))  # type: ignore[no-any-return]


class OwnSequential(nn.Sequential):
    """A subclass, whose forward may be another."""


def with_conv(conv: nn.Module) -> nn.Sequential:
    return nn.Sequential(conv, nn.MaxPool2d(2))


FASTER = {
    "lenet": (lambda: build.model({"name": "lenet"}, (1, 28, 28), 10), ["features"]),
    "a narrow cnn": (lambda: build.model(CNN, (3, 8, 8), 10), ["features"]),
    "a sequence": (pair, [""]),
    "an inner sequence": (lambda: nn.Sequential(nn.Identity(), pair(), nn.Flatten()), ["1"]),
    "a kernel with sides": (lambda: with_conv(nn.Conv2d(1, 4, (5, 3), padding=(2, 1))), [""]),
}
PLAIN: dict[str, Callable[[], nn.Module]] = {
    "a cnn of 32 channels": lambda: build.model(CNN | {"widths": [32, 64]}, (1, 28, 28), 10),
    "a cnn with batch norm": lambda: build.model(CNN | {"batch_norm": True}, (1, 28, 28), 10),
    "resnet": lambda: build.model({"name": "resnet", "widths": [4, 8], "blocks": 1}, (1, 28, 28), 10),
    "nine channels": lambda: with_conv(nn.Conv2d(1, 9, 3)),
    "attributes": Attributes,
    "a subclass": lambda: OwnSequential(*pair()),
    "a list": lambda: nn.ModuleList(pair()),
    "no pool": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2)),
    "a stride": lambda: with_conv(nn.Conv2d(1, 4, 3, stride=2)),
    "a dilation": lambda: with_conv(nn.Conv2d(1, 4, 3, dilation=2)),
    "groups": lambda: with_conv(nn.Conv2d(2, 4, 3, groups=2)),
    "padding by a word": lambda: with_conv(nn.Conv2d(1, 4, 3, padding="same")),
    "padding with values": lambda: with_conv(nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular")),
    "a lazy convolution": lambda: with_conv(nn.LazyConv2d(4, 3)),
    "a parametrization": lambda: with_conv(nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 4, 3))),
    "a pool of three": lambda: pair(kernel_size=3),
    "a pool of sides": lambda: pair(kernel_size=(2, 1)),
    "an overlapping pool": lambda: pair(stride=1),
    "a padded pool": lambda: pair(padding=1),
    "a dilated pool": lambda: pair(dilation=2),
    "a pool that rounds up": lambda: pair(ceil_mode=True),
    "a pool with indices": lambda: pair(return_indices=True),
}


def classes_in_a_step(network: nn.Module) -> list[str]:
    """The names of the modules that have another class during a step."""

    def changed() -> list[str]:
        return [name for name, module in network.named_modules() if type(module) is PairedSequential]

    found: list[str] = with_fast_layers(changed, network, CPU)()
    assert not changed()
    return found


@pytest.mark.parametrize("name", FASTER)
def test_networks_with_a_pair_are_faster_in_their_sequence(name: str) -> None:
    network, names = FASTER[name]
    assert classes_in_a_step(network()) == names


@pytest.mark.parametrize("name", PLAIN)
def test_other_networks_keep_their_step(name: str) -> None:
    assert with_fast_layers(len, PLAIN[name](), CPU) is len


@pytest.mark.parametrize(
    "runtime",
    [
        Runtime(torch.device("cuda"), "fp32", 1),
        Runtime(torch.device("cpu"), "bf16", 1),
        Runtime(torch.device("cpu"), "fp32", 1, processes=Processes(0, 2, 0)),
    ],
    ids=["GPU", "bf16", "two processes"],
)
def test_gpus_bf16_and_several_processes_keep_their_step(runtime: Runtime) -> None:
    assert with_fast_layers(len, pair(), runtime) is len


@pytest.mark.parametrize("capability", ["AVX2", "DEFAULT"])
def test_a_cpu_without_avx512_keeps_its_step(monkeypatch: pytest.MonkeyPatch, capability: str) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert with_fast_layers(len, pair(), CPU) is len


def test_a_pair_is_computed_together_for_many_images_on_each_thread(pairs: list[int]) -> None:
    network = pair()
    for count in (MANY - 1, MANY, 2 * MANY):
        step(network, torch.randn(count, 1, 4, 4))
    assert pairs == [MANY, 2 * MANY]
    torch.set_num_threads(2)
    for count in (MANY, 2 * MANY - 1, 2 * MANY):
        step(network, torch.randn(count, 1, 4, 4))
    assert pairs == [MANY, 2 * MANY, 2 * MANY]


@pytest.mark.parametrize(
    ("network", "images"),
    [
        (pair().eval(), torch.randn(MANY, 1, 4, 4)),
        (pair(), torch.randn(MANY, 1, 4, 4).requires_grad_()),
        (pair(), torch.randn(MANY, 1, 5, 4)),
        (pair(), torch.randn(MANY, 1, 4, 5)),
        (pair(), torch.randn(1, MANY, 4)),
    ],
    ids=["evaluation", "a gradient of the images", "odd rows", "odd columns", "no batch"],
)
def test_otherwise_the_layers_are_torchs_own(pairs: list[int], network: nn.Module, images: Tensor) -> None:
    assert torch.equal(step(network, images), network(images))
    assert not pairs


def test_only_the_first_of_several_pairs_is_computed_together(pairs: list[int]) -> None:
    network = nn.Sequential(*pair(), nn.Conv2d(4, 4, 3, padding=1), nn.MaxPool2d(2), nn.Flatten())
    step(network, torch.randn(MANY, 1, 8, 8)).sum().backward()
    assert pairs == [MANY]


@pytest.mark.filterwarnings("ignore:Full backward hook")  # of the convolution, whose images need no gradient
def test_hooks_of_any_kind_are_called_also_where_they_come_after_the_start(pairs: list[int]) -> None:
    calls: list[str] = []

    def note(name: str, *_: object) -> None:
        calls.append(name)

    network = pair()
    update = with_fast_layers(network, network, CPU)
    images = torch.randn(MANY, 1, 4, 4)
    network.register_forward_hook(partial(note, "sequence"))
    network[2].register_forward_hook(partial(note, "relu"))
    update(images)
    assert (calls, pairs) == (["relu", "sequence"], [MANY])
    for index in (0, 1):
        for register in ("forward_pre_hook", "forward_hook", "full_backward_pre_hook", "full_backward_hook"):
            calls.clear()
            handle = getattr(network[index], f"register_{register}")(partial(note, register))
            update(images).sum().backward()
            handle.remove()
            assert calls.count(register) == 1
    handle = nn.modules.module.register_module_forward_hook(partial(note, "global"))
    calls.clear()
    update(images)
    handle.remove()
    assert calls.count("global") == 4
    assert pairs == [MANY]


def test_transforms_of_torch_see_torchs_layers(pairs: list[int]) -> None:
    network, images = pair(), torch.randn(MANY, 1, 4, 4)
    weights = dict(network.named_parameters())

    def loss(values: dict[str, Tensor]) -> Tensor:
        outputs: Tensor = torch.func.functional_call(network, values, (images,))
        return outputs.sum()

    gradient = with_fast_layers(torch.func.grad(loss), network, CPU)(weights)
    assert not pairs
    torch.testing.assert_close(gradient, torch.func.grad(loss)(weights))


def test_layers_may_be_computed_again_in_the_backward_pass(pairs: list[int]) -> None:
    network, images = pair(), torch.randn(MANY, 1, 4, 4)

    def compute() -> None:
        recomputed(network, images, use_reentrant=False).sum().backward()

    with_fast_layers(compute, network, CPU)()
    assert pairs == [MANY, MANY]


def test_a_step_that_fails_leaves_torchs_classes() -> None:
    network = pair()
    with pytest.raises(RuntimeError):
        step(network, torch.randn(MANY, 7, 4, 4))
    assert type(network) is nn.Sequential


def test_a_class_that_a_hook_has_set_is_kept(pairs: list[int]) -> None:
    network = pair()
    update = with_fast_layers(network, network, CPU)
    network.__class__ = OwnSequential
    update(torch.randn(MANY, 1, 4, 4))
    assert type(network) is OwnSequential
    assert not pairs


# --- a training with it


def trained(model: dict[str, Any], *, accumulate: int = 1) -> tuple[TrainState, list[Record]]:
    """State and records of two epochs of two batches of MANY and one of 22, in float64."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2 * MANY + 22, 3, 14, 12), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 10, (len(images),), generator=generator)
    settings: dict[str, Any] = {"batch_size": MANY, "statistics": ((0.3, 0.4, 0.5), (0.2, 0.25, 0.3)), "seed": 3}
    train = TensorLoader(Examples(images, labels, tuple("0123456789")), CPU.device, **settings)
    torch.manual_seed(0)
    network = build.model(model, (3, 14, 12), 10).double()  # in which rounding turns no ReLU on or off
    network.register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
    network = to_device(network, CPU, (3, 14, 12))
    state = TrainState(network, build.optimizer(SGD, network))
    loop: dict[str, Any] = {"epochs": 2, "log_every": 2, "clip_norm": 1.0, "on_nonfinite": "stop"}
    schedule = partial(schedules.constant, warmup=0.0)
    chunks = fit(state, train, train, Classification(0.0), schedule, CPU, accumulate=accumulate, **loop)
    return state, [record for chunk in chunks for record in chunk]


@pytest.mark.parametrize("model", [{"name": "lenet"}, CNN], ids=["lenet", "cnn"])
def test_a_training_with_fast_layers_is_the_plain_one(
    monkeypatch: pytest.MonkeyPatch, pairs: list[int], model: dict[str, Any]
) -> None:
    fast, records = trained(model)
    assert pairs == [MANY] * 4  # neither the small batches nor the validations
    monkeypatch.setattr(engine, "with_fast_layers", lambda step, network, runtime: step)
    plain, wanted = trained(model)
    assert len(pairs) == 4
    for key, value in plain.model.state_dict().items():
        torch.testing.assert_close(fast.model.state_dict()[key], value, rtol=1e-9, atol=1e-12)
    for given, expected in zip(records, wanted, strict=True):
        for name, value in expected.values.items():
            assert name == "examples_per_second" or given.values[name] == pytest.approx(value, rel=1e-9)


def test_parts_of_a_batch_are_counted_one_by_one(pairs: list[int]) -> None:
    trained({"name": "lenet"}, accumulate=2)
    assert not pairs


RUN = ("model=lenet", f"batch_size={MANY}", "data.limit=200", "device.threads=1", "epochs=2", "schedule=constant")
RUN += ("report=false", "logger=none", "device.precision=fp32")


def content(folder: Path) -> dict[str, Any]:
    return checkpoint.load(folder / "checkpoints" / "last.pt")


def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(dltrain: Command, pairs: list[int]) -> None:
    whole = content(dltrain("train", *RUN).folder)
    steps = len(pairs)
    half = dltrain("train", *RUN, "limit_steps=1").folder
    assert dltrain("resume", str(half), "limit_steps=null").code == 0
    assert len(pairs) == 2 * steps > 2
    for key, value in content(half)["model"].items():
        assert torch.equal(value, whole["model"][key])


@pytest.mark.slow
def test_checkpoints_and_exports_are_those_of_the_plain_network(
    monkeypatch: pytest.MonkeyPatch, dltrain: Command, tmp_path: Path, pairs: list[int]
) -> None:
    import onnx

    summary = dltrain("train", "--summary", "--json", *RUN).out
    folder = dltrain("train", *RUN).folder
    assert pairs
    for suffix, kind in ((".onnx", "onnx"), (".pth", "state_dict")):
        assert dltrain("export", f"ckpt={folder}", f"format={kind}", f"output=fast{suffix}").code == 0
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert dltrain("train", "--summary", "--json", *RUN).out == summary
    plain = content(dltrain("train", *RUN).folder)
    found = torch.load(tmp_path / "fast.pth", weights_only=True)
    assert list(found) == list(content(folder)["model"]) == list(plain["model"])
    for key, value in plain["model"].items():
        assert (found[key].shape, found[key].stride(), found[key].dtype) == (value.shape, value.stride(), value.dtype)
    operations = [node.op_type for node in onnx.load(tmp_path / "fast.onnx").graph.node]
    assert (operations.count("Conv"), operations.count("MaxPool")) == (2, 2)
