"""The parts of benchmarks/gpu.py that measure speed: us a step, and launches a step."""

import contextlib
import itertools
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter
from typing import NamedTuple

import torch
from gpu_parts import COLOURED, GREY, PLAIN, Day, Figure, Figures, Result, attempt, config, images, records_of, train
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from dltrain.training import build, setup

SIZES = {"mlp": (64, 2000), "cnn": (64, 512, 2000), "fastnet": (512, 2000)}  # batches of each network
SHAPES = {"mlp": GREY, "cnn": COLOURED, "fastnet": COLOURED}
STEPS = {64: 100, 512: 40, 2000: 12}  # of an interval by batch: one warms up, two are measured
ROUNDS = 5
SHORT, LONG = 10, 30  # steps of the two runs whose launches are compared
COUNTED = {"launches": ("cudaLaunch", "cuLaunch", "cudaGraphLaunch"), "copies": ("cudaMemcpy", "cudaMemset")}


class Way(NamedTuple):
    """A way to make a step. `layout` is channels_last, contiguous or dltrain's choice; `graph` where it is there."""

    loop: str  # dltrain; plain: the least that trains, written by hand; published: the step of a recipe
    precision: str
    graph: bool = False
    layout: str = ""
    benchmark: bool = False

    def __str__(self) -> str:
        flags = ("replayed", self.graph), (self.layout, self.layout), ("cudnn.benchmark", self.benchmark)
        return " ".join([self.loop, self.precision, *(name for name, is_on in flags if is_on)])


def ways(model: str) -> Iterator[Way]:
    """Yield what is measured for a network, in the order of a round."""
    last = has_graph()
    yield from (Way("plain", precision) for precision in ("fp32", "bf16"))
    for graph in sorted({False, last}):
        yield from (Way("dltrain", precision, graph) for precision in ("fp32", "tf32", "bf16"))
    if model != "mlp":
        yield Way("dltrain", "fp32", last, "channels_last")  # not what it chooses
        yield Way("dltrain", "bf16", last, "contiguous")
        yield from (Way("dltrain", precision, last, benchmark=True) for precision in ("fp32", "bf16"))
    if model == "fastnet":
        yield Way("published", "fp16")


def has_graph() -> bool:
    return "graph" in config()["device"]


def speed(day: Day) -> Figures:
    """Microseconds a step: the median of alternating rounds, as many as there is time for."""
    yield Figure("device.graph", "there" if has_graph() else "not there")
    build.INIT_IMAGES = 100  # a run of fastnet starts earlier
    times: dict[str, list[float]] = defaultdict(list)
    failed: set[str] = set()
    work = [(model, batch, way) for model, sizes in SIZES.items() for batch in sizes for way in ways(model)]
    for model, batch, way in work * day.size(ROUNDS, 1):
        name = f"{model} {batch} {way}"
        if name in failed or (day.dry and batch > min(SIZES[model])):
            continue
        if day.left() < 6:
            return
        figure = attempt(name, partial(_measured, day, model, batch, way))
        if figure.ok:
            times[name].append(figure.value)
            value = {"us": statistics.median(times[name]), "least": min(times[name]), "n": len(times[name])}
            figure = Figure(name, value)
        else:
            failed.add(name)
        yield figure


def _measured(day: Day, model: str, batch: int, way: Way) -> Result:
    """Return the us of a step."""
    torch.backends.cudnn.benchmark = way.benchmark
    data, steps = images(day.size(50_000, 64), SHAPES[model]), day.size(STEPS[batch], 2)
    batch = day.size(batch, 4)
    if way.loop != "dltrain":
        return round(_by_hand(day, data, model, batch, steps, way), 1), True
    limits = f"batch_size={batch}", f"log_every={steps}", f"limit_steps={3 * steps}"
    with _layout(way.layout):
        records = records_of(day, data, *_words(day, model, way), *limits)
    counted = [record for record in records if record.step > steps]
    return round(1e6 * sum(record.seconds for record in counted) / (2 * steps), 1), True


def _words(day: Day, model: str, way: Way) -> list[str]:
    replayed = "auto" if day.dry else "true"
    graph = [f"device.graph={replayed if way.graph else 'false'}"] if has_graph() else []
    return [*day.network(model), day.precision(way.precision), *graph]


@contextlib.contextmanager
def _layout(name: str) -> Iterator[None]:
    """Give networks another memory layout than dltrain would choose; an empty name leaves the choice to it."""
    before = setup.to_device
    layout = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}.get(name)
    if layout is not None:
        setup.to_device = lambda model, runtime, shape: model.to(runtime.device, memory_format=layout)
    try:
        yield
    finally:
        setup.to_device = before


def _by_hand(day: Day, data: build.Data, model: str, batch: int, steps: int, way: Way) -> float:
    """Return the us of a step of a loop over normalised images on the device, with the same network."""
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    pictures = data.train.images.to(day.device).float().div_(255).sub_(0.5).div_(0.2)
    labels = data.train.targets.to(day.device)
    network = build.model(config(*PLAIN, *day.network(model))["model"], tuple(pictures.shape[1:]), 10).to(day.device)
    if way.loop == "published":
        half = torch.bfloat16 if day.dry else torch.float16
        step, pictures = published_step(network, half), pictures.to(half, memory_format=torch.channels_last)
    else:
        step = plain_step(network, way.precision, day.device)
    epochs = iter(lambda: torch.randperm(len(labels), device=day.device).split(batch), None)
    batches = itertools.chain.from_iterable(epochs)

    def seconds(count: int) -> float:
        began = perf_counter()
        for chosen in itertools.islice(batches, count):
            step(pictures[chosen], labels[chosen])
        day.wait()
        return perf_counter() - began

    seconds(steps)
    return 1e6 * seconds(2 * steps) / (2 * steps)


def plain_step(network: nn.Module, precision: str, device: str) -> Callable[[Tensor, Tensor], None]:
    """Return the least step that trains: SGD with momentum, fused; bf16 by autocast, with channels last."""
    if precision == "bf16":
        network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, fused=True)

    def step(inputs: Tensor, targets: Tensor) -> None:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(network(inputs), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def published_step(network: nn.Module, half: torch.dtype) -> Callable[[Tensor, Tensor], None]:
    """Return the step of K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024, written from the paper.

    Weights and images in half precision, norms in fp32, channels last, label smoothing summed over the batch, Nesterov
    momentum with decay, 64 times the rate for the biases of norms, no compilation. The network is dltrain's, which has
    the layers of the paper; its images are augmented once an epoch there, which no step shows.
    """
    network.to(half, memory_format=torch.channels_last)
    norms = [module.float() for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    biases = {norm.bias for norm in norms}
    others = [weight for weight in network.parameters() if weight.requires_grad and weight not in biases]
    rate = 1e-5  # of a sum over a batch; the time does not depend on it
    groups = [{"params": others, "lr": rate}, {"params": [norm.bias for norm in norms], "lr": 64 * rate}]
    optimizer = torch.optim.SGD(groups, momentum=0.85, nesterov=True, weight_decay=0.01, fused=True)

    def step(inputs: Tensor, targets: Tensor) -> None:
        F.cross_entropy(network(inputs), targets, label_smoothing=0.2, reduction="sum").backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def launches(day: Day) -> Figures:
    """Launches and kernels a step at batch 64."""
    for model in SIZES:
        for way in ways(model):
            is_plain = way.loop == "dltrain" and not way.layout and not way.benchmark
            if is_plain and (not day.dry or (model, way.precision) == ("cnn", "fp32")):
                yield attempt(f"{model} {way}", partial(_launches, day, model, way))


def _launches(day: Day, model: str, way: Way) -> Result:
    """Return the difference between two runs of which one is longer, a step."""
    words = *_words(day, model, way), f"batch_size={day.size(64, 4)}"
    short, long = (_counts(day, model, [*words, f"limit_steps={steps}"]) for steps in (SHORT, LONG))
    value = {name: (long[name] - short[name]) / (LONG - SHORT) for name in long}
    return value, value["operations" if day.dry else "kernels"] > 0


def _counts(day: Day, model: str, words: list[str]) -> dict[str, int]:
    """Return how often a run calls what COUNTED names, its kernels and operations."""
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA][: day.size(2, 1)]
    with profile(activities=activities) as profiler:
        train(day, images(4096, SHAPES[model]), *words)
    found = [each for each in profiler.key_averages() if not getattr(each, "is_user_annotation", False)]
    counts = {name: sum(it.count for it in found if it.key.startswith(keys)) for name, keys in COUNTED.items()}
    counts["kernels"] = sum(it.count for it in found if it.device_type == torch.autograd.DeviceType.CUDA)
    return counts | {"operations": sum(it.count for it in found if it.key.startswith("aten::"))}
