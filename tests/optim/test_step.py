"""What makes a step fast changes nothing: batches gathered at once, a masked and fused update, channels last, pools
before their ReLU. The reference is the loop that people write by hand, over networks as papers draw them."""

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from dltrain.data import loader as batches_module
from dltrain.data.augmentation import Augmentation, seeded_generator
from dltrain.data.loader import TensorLoader
from dltrain.data.splits import Examples
from dltrain.engine import fit
from dltrain.optim import schedules
from dltrain.optim.step import NonFiniteLoss, TrainState, copy_flat, flattened, require_finite
from dltrain.optim.tasks import Classification
from dltrain.runtime import devices, memory
from dltrain.runtime.devices import Runtime
from dltrain.training import build

CONFIGS = Path(__file__).parents[2] / "configs"
CPU = Runtime(torch.device("cpu"), "fp32", 1)
COUNT, SIZE, SEED, EPOCHS = 150, 32, 3, 2  # four full batches and one of 22
MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.25, 0.3)
SGD = {"name": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3, "decay_biases": True}
CNN: dict[str, Any] = {"name": "cnn", "widths": [8, 32], "hidden": 16, "dropout": 0.0, "batch_norm": False}


def pictures() -> Examples:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (COUNT, 3, 14, 12), generator=generator, dtype=torch.uint8)
    return Examples(images, torch.randint(0, 10, (COUNT,), generator=generator), tuple("0123456789"))


def as_drawn(network: nn.Module) -> nn.Module:
    """A network whose pools come after their ReLU."""
    layers = list(network.features)
    for number, layer in enumerate(layers[:-1]):
        if isinstance(layer, nn.MaxPool2d) and isinstance(layers[number + 1], nn.ReLU):
            layers[number], layers[number + 1] = layers[number + 1], layer
    network.features = nn.Sequential(*layers)
    return network


def plain_batches(examples: Examples, epoch: int, crop: int, flip: bool) -> list[tuple[Tensor, Tensor]]:
    """Shuffled batches, one picture at a time with numpy."""
    generator = seeded_generator(SEED, epoch)
    order = torch.randperm(COUNT, generator=generator)
    shifts = torch.randint(0, 2 * crop + 1, (COUNT, 2), generator=generator) if crop else torch.zeros(COUNT, 2).long()
    flips = torch.rand(COUNT, generator=generator) < 0.5 if flip else torch.zeros(COUNT).bool()
    found = []
    for number, (top, left) in zip(order.tolist(), shifts.tolist(), strict=True):
        picture = numpy.pad(examples.images[number].numpy(), ((0, 0), (crop, crop), (crop, crop)))
        picture = picture[:, top : top + 14, left : left + 12]
        found.append(torch.from_numpy(picture[:, :, ::-1].copy() if flips[len(found)] else picture.copy()))
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (MEAN, STD))
    images = (torch.stack(found).float() / 255 - mean) / std
    return list(zip(images.split(SIZE), examples.targets[order].split(SIZE), strict=True))


def by_hand(
    network: nn.Module, *, crop: int, flip: bool, accumulate: int, clip_norm: float | None
) -> dict[str, Tensor]:
    """Weights after the loop that people write."""
    network.train()
    settings = {key: SGD[key] for key in ("lr", "momentum", "nesterov", "weight_decay")}
    optimizer = torch.optim.SGD(network.parameters(), foreach=False, **settings)
    for epoch in range(EPOCHS):
        for images, targets in plain_batches(pictures(), epoch, crop, flip):
            optimizer.zero_grad()
            size = -(-len(images) // accumulate)
            for part, wanted in zip(images.split(size), targets.split(size), strict=True):
                (F.cross_entropy(network(part), wanted, reduction="sum") / len(images)).backward()
            if clip_norm is not None:
                nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
            optimizer.step()
    return network.state_dict()


def batches(**augmentation: Any) -> TensorLoader:
    settings = {"batch_size": SIZE, "statistics": (MEAN, STD), "seed": SEED}
    return TensorLoader(pictures(), CPU.device, augmentation=Augmentation(**augmentation), **settings)


def by_dltrain(network: nn.Module, *, crop: int, flip: bool, **loop: Any) -> dict[str, Tensor]:
    """Weights after dltrain's loop, the network placed as a run does it."""
    network = memory.to_device(network, CPU, (3, 14, 12))
    train = batches(crop=crop, flip=flip)
    state = TrainState(network, build.optimizer(SGD, network))
    settings = {"epochs": EPOCHS, "log_every": 3, "on_nonfinite": "stop"} | loop
    list(fit(state, train, None, Classification(0.0), partial(schedules.constant, warmup=0.0), CPU, **settings))
    return network.state_dict()


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ({"name": "lenet"}, {}),
        (CNN, {}),
        (CNN | {"dropout": 0.5}, {}),
        (CNN | {"batch_norm": True}, {}),
        (CNN, {"crop": 2, "flip": True}),
        (CNN, {"accumulate": 3}),
        (CNN, {"clip_norm": 0.5}),
        (CNN | {"dropout": 0.5}, {"crop": 1, "flip": True, "accumulate": 2, "clip_norm": 0.5}),
    ],
    ids=["lenet", "cnn", "dropout", "batch norm", "augmentation", "accumulation", "clipping", "all at once"],
)
def test_the_fast_step_is_the_step_that_people_write(model: dict[str, Any], changes: dict[str, Any]) -> None:
    settings = {"crop": 0, "flip": False, "accumulate": 1, "clip_norm": None} | changes
    weights = []
    for train, drawn in ((by_hand, as_drawn), (by_dltrain, lambda network: network)):
        torch.manual_seed(0)
        network = drawn(build.model(model, (3, 14, 12), 10)).double()  # in which rounding turns no ReLU on or off
        network.register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
        weights.append(train(network, **settings))
    plain, fast = weights
    assert plain.keys() == fast.keys()
    start = build.model(model, (3, 14, 12), 10).state_dict()
    for key in plain:
        torch.testing.assert_close(fast[key], plain[key], rtol=1e-5, atol=1e-6)
    assert not all(torch.allclose(start[key].double(), plain[key].double(), atol=1e-3) for key in plain)


@pytest.mark.parametrize("first", range(5))
@pytest.mark.parametrize("at_once", [1, 32, 64, 100, 1000])
def test_batches_gathered_at_once_are_those_gathered_one_by_one(
    first: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = batches(crop=2, flip=True)
    monkeypatch.setattr(batches_module, "GATHERED", 1)
    monkeypatch.setattr(batches_module, "GATHERED_BYTES", 1 << 30)
    alone = list(train.epoch(1, first))
    monkeypatch.setattr(batches_module, "GATHERED", at_once)
    for (images, targets), (others, other_targets) in zip(train.epoch(1, first), alone, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(targets, other_targets)


@pytest.mark.parametrize("first", range(1, 6))
def test_batches_have_the_same_memory_alignment_wherever_an_epoch_resumes(first: int) -> None:
    """Products round by it: sizes that are no multiple of 16 bytes."""
    examples = Examples(torch.zeros(60, 1, 15, 15, dtype=torch.uint8), torch.zeros(60).long(), ("a",))
    train = TensorLoader(examples, CPU.device, batch_size=9, statistics=((0.0,), (1.0,)), seed=SEED)
    whole = [(images.storage_offset(), len(images)) for images, _ in train.epoch(0, 0)]
    assert [(images.storage_offset(), len(images)) for images, _ in train.epoch(0, first)] == whole[first:]
    assert len({offset for offset, _ in whole}) > 1


def test_large_images_are_not_gathered_beyond_their_batch() -> None:
    examples = Examples(torch.zeros(8, 3, 300, 300, dtype=torch.uint8), torch.zeros(8).long(), ("a",))
    train = TensorLoader(examples, CPU.device, batch_size=2, statistics=((0.0,) * 3, (1.0,) * 3), seed=SEED)
    held = [images.untyped_storage().nbytes() for images, _ in train.epoch(0, 0)]
    assert held == [2 * 3 * 300 * 300 * 4] * 4


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_pool_before_its_relu_is_the_same_to_the_bit_forward_and_backward(batch_norm: bool) -> None:
    found = []
    for drawn in (as_drawn, lambda network: network):
        torch.manual_seed(0)
        network = drawn(build.model(CNN | {"batch_norm": batch_norm}, (3, 14, 12), 10))
        network(
            torch.randn(8, 3, 14, 12).round(decimals=1)
        ).square().sum().backward()  # rounded, so that there are ties
        found.append([parameter.grad for parameter in network.parameters()])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


class Viewed(nn.Module):
    """A network as many people write it: `view` fails with channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4 * 12 * 10, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.conv(images).view(len(images), -1))


@pytest.mark.parametrize("columns", [8, 28])
def test_rows_of_grey_images_are_embedded_in_bf16_from_their_numbers_alone(columns: int) -> None:
    """A convolution of torch's read memory that nobody had written: here it holds NaN."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 16, (1, columns), stride=(1, columns)), nn.ReLU(), nn.Conv2d(16, 4, 1))
    network = memory.to_device(network, Runtime(torch.device("cpu"), "bf16", 1), (1, columns, columns))
    images = torch.randn(64, 1, columns, columns)
    expected = network(images)
    for _ in range(20):
        noise = [torch.full((size,), torch.nan) for size in (1000, 10_000, 100_000, 1_000_000) for _ in range(4)]
        del noise
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(network(images).float(), expected, rtol=0.05, atol=0.05)


def test_convolutions_lie_with_channels_last_unless_a_network_counts_on_another_layout() -> None:
    placed = memory.to_device(build.model(CNN, (3, 14, 12), 10), CPU, (3, 14, 12))
    assert placed.features[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert placed.training
    viewed = memory.to_device(Viewed(), CPU, (3, 14, 12))
    assert viewed.conv.weight.is_contiguous()
    assert viewed(torch.zeros(2, 3, 14, 12)).shape == (2, 10)


class Auxiliary(Viewed):
    """Fails with channels last in training alone; has a weight of five dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.volume = nn.Parameter(torch.zeros(1, 1, 1, 1, 1))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        found = self.conv(images)
        if self.training:
            self.seen += 1
            found.view(len(images), -1)
        return self.linear(found.flatten(1)) + torch.rand(()) + self.volume.sum()


def test_a_network_that_needs_its_layout_keeps_it_and_nothing_else_changes() -> None:
    network = Auxiliary()
    before = torch.get_rng_state()
    placed = memory.to_device(network, CPU, (3, 14, 12))
    assert placed.conv.weight.is_contiguous()
    assert torch.equal(torch.get_rng_state(), before)
    assert (float(placed.seen), placed.training) == (0.0, True)
    assert all(parameter.grad is None for parameter in placed.parameters())
    placed(torch.zeros(2, 3, 14, 12)).sum().backward()


def native(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(names, True))


NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {"name": "mlp", "hidden": [8], "activation": "relu", "dropout": 0.1, "batch_norm": True},
    "lenet": {"name": "lenet"},
    "cnn": CNN,
    "lstm": {"name": "lstm", "cell": "gru", "hidden": 8, "layers": 1, "bidirectional": False, "pool": "last"}
    | {"dropout": 0.0},
    "attention": {"name": "attention", "tokens": "patches", "patch": 2, "width": 8, "depth": 1, "heads": 2}
    | {"dropout": 0.0, "drop_path": 0.0},
}


@pytest.mark.parametrize(
    ("name", "batch_size", "precision"),
    [
        ("mlp", 64, "fp32"),
        ("mlp", 128, "bf16"),
        ("lenet", 64, "fp32"),
        ("lenet", 512, "bf16"),
        ("cnn", 16, "bf16"),
        ("cnn", 8, "fp32"),
        ("lstm", 16, "bf16"),
        ("lstm", 8, "fp32"),
        ("attention", 64, "fp32"),
        ("attention", 128, "bf16"),
    ],
)
def test_auto_chooses_bf16_for_networks_measured_to_be_faster(
    name: str, batch_size: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    native(monkeypatch, "avx512_bf16")
    network = build.model(NETWORKS[name], (3, 14, 12), 10)
    found = devices.resolve_precision(Runtime(CPU.device, "auto", 1), network, batch_size, "classification")
    assert found.precision == precision
    assert found.describe().startswith(f"cpu, 1 thread, {precision} (auto: ")


@pytest.mark.parametrize(("side", "precision"), [(64, "bf16"), (68, "fp32")])
def test_auto_is_bf16_for_attention_up_to_256_tokens(
    side: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    native(monkeypatch, "avx512_bf16")
    network = build.model(NETWORKS["attention"] | {"patch": 4}, (3, side, side), 10)
    found = devices.resolve_precision(Runtime(CPU.device, "auto", 1), network, 128, "classification")
    assert found.precision == precision


@pytest.mark.parametrize("name", NETWORKS)
def test_auto_is_fp32_on_a_cpu_without_bf16(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    native(monkeypatch, "avx512_f", "avx2")
    network = build.model(NETWORKS[name], (3, 14, 12), 10)
    found = devices.resolve_precision(Runtime(CPU.device, "auto", 1), network, 512, "classification")
    assert (found.precision, found.reason) == ("fp32", "this CPU has no bf16")


@pytest.mark.parametrize(
    ("cpu", "names", "precision"),
    [
        ("Intel Xeon", ["avx512_bf16"], "fp32"),
        ("Intel Xeon", ["avx512_bf16", "amx_bf16"], "bf16"),
        ("AMD EPYC", ["avx512_bf16"], "bf16"),
    ],
)
def test_auto_is_fp32_on_intel_without_amx_where_bf16_was_measured_to_be_slower(
    cpu: str, names: list[str], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(names, True) | {"cpu_name": cpu})
    network = build.model(NETWORKS["mlp"], (3, 14, 12), 10)
    assert (
        devices.resolve_precision(Runtime(CPU.device, "auto", 1), network, 512, "classification").precision == precision
    )


@pytest.mark.parametrize(
    ("name", "batch_size", "precision"),
    [
        ("mlp", 64, "fp32"),
        ("mlp", 65_536, "bf16"),
        ("lenet", 64, "fp32"),
        ("attention", 64, "fp32"),
        ("attention", 512, "bf16"),
        ("lstm", 64, "fp32"),
        ("lstm", 1024, "bf16"),
        ("cnn", 64, "bf16"),
        ("cnn", 16, "fp32"),
        ("resnet", 64, "bf16"),
        ("fastnet", 2000, "bf16"),
    ],
)
def test_auto_on_a_gpu_is_bf16_for_steps_that_are_large_enough(
    monkeypatch: pytest.MonkeyPatch, name: str, batch_size: int, precision: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    defaults = yaml.safe_load((CONFIGS / "model" / f"{name}.yaml").read_text())
    network = build.model(defaults, (1, 28, 28), 10)
    found = devices.resolve_precision(Runtime(torch.device("cuda"), "auto", 1), network, batch_size, "classification")
    assert found.precision == precision
    assert precision == "bf16" or found.reason.startswith("only faster from batch size ")


@pytest.mark.parametrize(("precision", "batch_size"), list(itertools.product(["fp32", "bf16"], [1, 512])))
def test_a_precision_that_is_named_stays(precision: str, batch_size: int) -> None:
    named = Runtime(CPU.device, precision, 1)
    for task in ("classification", "regression"):
        assert devices.resolve_precision(named, build.model(CNN, (3, 14, 12), 10), batch_size, task) == named


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("task", ["regression", "reconstruction"])
def test_auto_is_fp32_for_regression(device: str, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    native(monkeypatch, "avx512_bf16")
    network = build.model(NETWORKS["mlp"], (3, 14, 12), 10)
    found = devices.resolve_precision(Runtime(torch.device(device), "auto", 1), network, 512, task)
    assert (found.precision, found.reason) == ("fp32", f"{task} needs more digits than bf16 has")


def test_freed_memory_is_kept_so_that_a_step_maps_no_new_pages() -> None:
    resource = pytest.importorskip("resource")
    memory.keep_freed_memory()

    def step() -> None:
        for _ in range(3):
            del [torch.ones(1 << 20) for _ in range(8)][:]  # 8 times 4 MiB, freed together

    step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults < 8 * 1024  # 24,576 where each is mapped anew


def test_flattened_tensors_are_copied_back_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.tensor(2**62 + 1),
        torch.tensor([True, False]),
        torch.randn(2, 3, 4, 5, generator=generator).to(memory_format=torch.channels_last),
        torch.tensor([[torch.nan, -torch.inf], [0.0, -0.0]]).T,
        torch.randn(3, generator=generator, dtype=torch.float64),
        torch.empty(0),
    ]
    copies = [tensor.clone() for tensor in tensors]
    flat = flattened(tensors)
    assert flat.keys() == {torch.int64, torch.bool, torch.float32, torch.float64}
    for tensor in tensors:
        tensor.zero_()
    for numbers, same in flat.values():
        copy_flat(numbers, same)
    for tensor, copy in zip(tensors, copies, strict=True):
        torch.testing.assert_close(tensor, copy, rtol=0, atol=0, equal_nan=True, check_stride=True)
    assert torch.equal(tensors[3].signbit(), copies[3].signbit())


def test_all_weights_are_known_to_be_finite_by_one_read() -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(5)))
    state = TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1), step=3)
    reads: list[str] = []

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            reads.extend([str(function)] * ("_local_scalar_dense" in str(function)))
            return function(*args, **(kwargs or {}))

    with Reads():
        require_finite(state, "stop")
    assert len(reads) == 1
    with torch.no_grad():
        model[3].bias[1] = torch.nan
    with pytest.raises(NonFiniteLoss):
        require_finite(state, "skip")
