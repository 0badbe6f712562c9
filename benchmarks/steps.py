"""Time training steps of dltrain's networks in one process, variants in turn: figures behind the rules for speed.

    python benchmarks/steps.py threads [MODELS] [BATCHES] [--windows N]     # one and two threads
    python benchmarks/steps.py compile [MODELS] [BATCHES] [--data cifar10]  # plain and compiled, on one and two threads

MODELS and BATCHES such as mlp,lenet and 64,512. Inputs are random. Each row has the medians of N windows of 0.1 s, the
median ratio of neighbouring windows and its range, and the load of the machine.
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from time import perf_counter

import torch

import dltrain
from dltrain.config.resolution import resolved
from dltrain.optim.step import OutputTask, TrainState, accumulate_metrics, train_step
from dltrain.runtime import devices, memory, threads
from dltrain.training import build

SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
MODELS = "mlp,lenet,cnn,lstm,attention"
KEYS = {"accumulate": 1, "clip_norm": None, "on_nonfinite": "stop"}
Step = Callable[[], None]


def stepper(model: str, data: str, batch: int, *, is_compiled: bool = False) -> tuple[Step, float]:
    """Return a function that makes one training step, and the operations that the rule for threads sees in it."""
    values = resolved(dltrain.compose("train", [f"model={model}", f"data={data}"]), "train").values
    runtime = devices.device(name="cpu", precision="fp32", threads=None, deterministic=False)
    torch.manual_seed(0)
    network = memory.to_device(build.model(values["model"], SHAPES[data], 10), runtime, SHAPES[data])
    state, task = TrainState(network, build.optimizer(values["optim"], network)), build.task(values, 10, None)
    assert not isinstance(task, OutputTask) or not task.needs_outputs
    make_step = train_step
    if is_compiled:
        from dltrain.optim.compiled_step import CompiledStep

        make_step, runtime = CompiledStep(batch), replace(runtime, compile=True)  # type: ignore[assignment]
    images, labels = torch.randn(batch, *SHAPES[data]), torch.randint(10, (batch,))

    def step() -> None:
        state.pending += make_step(state, images, labels, task, runtime, **KEYS)  # type: ignore[arg-type]
        if len(state.pending) == 50:
            accumulate_metrics(state, task)

    return step, threads.step_flops(network, SHAPES[data], batch)


def window(step: Step, seconds: float = 0.1) -> float:
    """Return the microseconds of a step, over at least two steps and `seconds`."""
    began, count = perf_counter(), 0
    while count < 2 or perf_counter() - began < seconds:
        step()
        count += 1
    return 1e6 * (perf_counter() - began) / count


def in_turn(variants: list[tuple[int, Step]], windows: int) -> list[list[float]]:
    """Return the times of each variant (threads, step), measured in turn after three steps to warm up."""
    times: list[list[float]] = [[] for _ in variants]
    for number, step in variants:
        torch.set_num_threads(number)
        for _ in range(3):
            step()
    for _ in range(windows):
        for (number, step), own in zip(variants, times, strict=True):
            torch.set_num_threads(number)
            step()
            own.append(window(step))
    return times


def row(names: tuple[str, str], times: list[list[float]]) -> str:
    """Return medians and the ratio of the first variant to the second."""
    ratios = sorted(a / b for a, b in zip(*times, strict=True))
    spread = f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    both = ", ".join(f"{name} {median(own):,.0f} us" for name, own in zip(names, times, strict=True))
    return f"{both}, ratio {spread}, n={len(ratios)}, load {os.getloadavg()[0]:.1f}"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("part", choices=["threads", "compile"])
    options.add_argument("models", nargs="?", default=MODELS)
    options.add_argument("batches", nargs="?", default="64")
    options.add_argument("--data", choices=SHAPES, default="mnist")
    options.add_argument("--windows", type=int, default=9)
    given = options.parse_args()
    for model in given.models.split(","):
        for batch in map(int, given.batches.split(",")):
            name = f"{model} {given.data} {batch}"
            plain, flops = stepper(model, given.data, batch)
            if given.part == "threads":
                times = in_turn([(1, plain), (2, plain)], given.windows)
                print(f"{name}, {flops / 1e6:,.0f} MFLOP: {row(('one thread', 'two'), times)}", flush=True)
                continue
            for number in (1, 2):
                torch.set_num_threads(number)
                compiled, _ = stepper(model, given.data, batch, is_compiled=True)
                compiled()  # the first step is a plain one
                began = perf_counter()
                compiled()
                seconds = perf_counter() - began
                times = in_turn([(number, plain), (number, compiled)], given.windows)
                saved = median(times[0]) - median(times[1])
                pays = f"pays from {1e6 * seconds / saved:,.0f} steps" if saved > 0 else "does not pay"
                line = row(("plain", "compiled"), times)
                print(f"{name}, threads {number}: {line}, compiled in {seconds:.1f} s, {pays}", flush=True)


if __name__ == "__main__":
    main()
