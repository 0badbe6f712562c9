"""The parts of benchmarks/gpu.py except those that measure speed: each yields figures as soon as it has them."""

import contextlib
import csv
import functools
import hashlib
import importlib.util
import json
import subprocess
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

import dltrain
from dltrain.config import registry
from dltrain.config.resolution import resolved
from dltrain.data.splits import Examples
from dltrain.engine import Record, fit
from dltrain.runtime import devices, system_info
from dltrain.runtime.errors import UserError
from dltrain.training import build, setup
from dltrain.training.run import FIT_OPTIONS

ROOT, SOURCE = Path(__file__).resolve().parents[1], str(Path(dltrain.__file__).parent)
COLOURED, GREY = (3, 32, 32), (1, 28, 28)
MODELS = {  # a network and, for a dry run, keys that make it small
    "mlp": "",
    "lenet": "",
    "cnn": "model.widths=[4,4]",
    "lstm": "model.hidden=8",
    "attention": "model.depth=1 model.width=8",
    "resnet": "model.widths=[4] model.blocks=1",
    "fastnet": "model.widths=[4,4,4]",
}
# How often a step may make the host wait: these optimizers have no kernel that a flag on the device masks.
WAITS = {"sgd": 0, "adam": 0, "rmsprop": 1, "muon": 1}
# Greatest relative distance of 20 losses from those of a CPU in fp32: where to look closer, from no theory.
FAR = {"fp32": 0.01, "tf32": 0.03, "bf16": 0.1}
QUIET = "report=false", "logger=none", "data=cifar10", "data.val=0", "data.crop=0", "data.flip=false"
PLAIN = *QUIET, "schedule=constant", "epochs=1000"  # limit_steps ends it


class Figure(NamedTuple):
    """A result; `ok` is false if it is not what it should be."""

    name: str
    value: Any
    ok: bool = True


Figures = Iterator[Figure]
Result = tuple[Any, bool]  # value and ok


@dataclass(frozen=True)
class Day:
    """Where a part computes, how much, and in how many seconds."""

    dry: bool
    seconds: float
    began: float = field(default_factory=perf_counter)

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"

    def has_device(self) -> bool:
        return self.dry or torch.cuda.is_available()

    def left(self) -> float:
        return self.seconds - (perf_counter() - self.began)

    def size(self, full: int, dry: int) -> int:
        """Return how many images or steps, of which a dry run needs fewer."""
        return dry if self.dry else full

    def wait(self) -> None:
        """Wait until the GPU has done all."""
        if not self.dry:
            torch.cuda.synchronize()

    def on_waits(self, mode: str) -> None:
        """Set what happens when the host waits for the GPU: default, warn or error."""
        if not self.dry:
            torch.cuda.set_sync_debug_mode(mode)

    def network(self, name: str) -> list[str]:
        """Return the words that choose a network."""
        return [f"model={name}", *(MODELS[name].split() if self.dry else [])]

    def precision(self, name: str, network: str = "") -> str:
        """Return the word that chooses a precision; in a dry run fp32 in place of one that this CPU lacks."""
        lacks_lstm = network == "lstm" and devices.lacks_bf16(torch.device("cpu"), torch.nn.LSTM(1, 1))
        is_lacking = name == "tf32" or (name == "bf16" and lacks_lstm)
        return f"device.precision={'fp32' if self.dry and is_lacking else name}"


def parts() -> dict[str, Callable[[Day], Figures]]:
    """Return the parts by name."""
    from gpu_speed import launches, speed

    functions = machine, waits, tests, bits, graph, numerics, recipes, speed, commands, launches
    return {function.__name__: function for function in functions}


def attempt(name: str, compute: Callable[[], Result]) -> Figure:
    """Return the figure that is computed, or an error in its place, so that the next figures are computed too."""
    try:
        return Figure(name, *compute())
    except Exception as error:
        traceback.print_exc()
        frames = [each for each in traceback.extract_tb(error.__traceback__) if each.filename.startswith(SOURCE)]
        place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
        return Figure(name, f"{type(error).__name__}{place}: {str(error)[:400]}", ok=False)


@functools.cache
def images(count: int, shape: tuple[int, int, int] = COLOURED) -> build.Data:
    """Return a training set of noise over a pattern for each class, so that a loss can fall."""
    bytes_of = partial(torch.randint, 128, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels = torch.arange(count) % 10
    pictures = bytes_of((count, *shape)).add_(bytes_of((10, *shape))[labels])
    examples = Examples(pictures, labels, tuple("0123456789"))
    return build.Data(examples, None, None, ((0.5,) * shape[0], (0.2,) * shape[0]))


@functools.cache
def config(*words: str) -> dict[str, Any]:
    return dltrain.compose("train", list(words))


def train(day: Day, data: build.Data, *words: str, **options: Any) -> dict[str, Any]:
    """Train on generated images; return the summary."""
    return dltrain.train(config(*PLAIN, f"device={day.device}", *words), load=lambda node, seed: data, **options)


def records_of(day: Day, data: build.Data, *words: str) -> list[Record]:
    """Train on generated images; return the records."""
    found: list[Record] = []

    def watch(record: Record) -> str:
        found.append(record)
        return ""

    train(day, data, *words, watch=watch)
    return found


def machine(day: Day) -> Figures:
    """Versions, the GPU, TF32 flags, the first products and convolutions in bf16."""
    began = perf_counter()
    torch.zeros(1, device=day.device)
    yield Figure("seconds until CUDA has started", round(perf_counter() - began, 3))
    with contextlib.chdir(ROOT):
        yield Figure("environment", system_info.environment())
    if not day.dry:
        gpu = torch.cuda.get_device_properties(0)
        about = {"bytes": gpu.total_memory, "processors": gpu.multi_processor_count, "cuda": torch.version.cuda}
        about |= {"capability": [gpu.major, gpu.minor], "cudnn": torch.backends.cudnn.version()}
        yield Figure("gpu", about | {"architectures": torch.cuda.get_arch_list()})
    for precision in FAR:
        yield attempt(f"flags {precision}", partial(_flags, day, precision))
    matrix, filters = torch.randn(1024, 1024, device=day.device), torch.randn(64, 64, 3, 3, device=day.device)
    pictures = matrix.view(16, 64, 32, 32).bfloat16()
    for turn in ("first", "second"):
        yield attempt(f"{turn} bf16 product", partial(_timed, day, lambda: matrix.bfloat16() @ matrix.bfloat16()))
        yield attempt(f"{turn} bf16 convolution", partial(_timed, day, lambda: F.conv2d(pictures, filters.bfloat16())))


def _timed(day: Day, compute: Callable[[], Tensor]) -> Result:
    began = perf_counter()
    out = compute()
    day.wait()
    return {"ms": round(1000 * (perf_counter() - began), 3)}, bool(out.isfinite().all())


def _flags(day: Day, precision: str) -> Result:
    """Return the flags and the errors of float32 operations, which are those of TF32 only if it was asked for."""
    node = config(f"device={day.device}", day.precision(precision))["device"]
    devices.restored_device(node, {}, ())
    found = {"cudnn": torch.backends.cudnn.allow_tf32, "products": torch.get_float32_matmul_precision()}
    ok = True
    for compute, one, other in (
        (torch.matmul, torch.randn(512, 512), torch.randn(512, 512)),
        (F.conv2d, torch.randn(32, 64, 16, 16), torch.randn(64, 64, 3, 3)),
    ):
        exact = compute(one.double(), other.double())
        error = (compute(one.to(day.device), other.to(day.device)).cpu() - exact).norm() / exact.norm()
        found[f"error of {compute.__name__}"] = float(error)
        ok &= (float(error) > 2e-5) == (precision == "tf32" and not day.dry)
    return found, ok


def waits(day: Day) -> Figures:
    """Steps of each network with each optimizer, in which the host waits at most as often as WAITS says."""
    for optimizer, allowed in WAITS.items():
        for model in MODELS:
            words = *day.network(model), f"optim={optimizer}"
            yield attempt(f"{model} {optimizer}", partial(_waits, day, words, allowed))
    every = "ema=0.9", "clip_norm=1", "accumulate=2", "on_nonfinite=skip", "data.crop=4", "data.flip=true"
    yield attempt("resnet with all options", partial(_waits, day, (*day.network("resnet"), *every), 0))
    for model in ("mlp", "attention", "resnet") if "graph" in config()["device"] and not day.dry else ():
        words = *day.network(model), "device.graph=true"
        yield attempt(f"{model} replayed", partial(_waits, day, words, 0))
    yield attempt("a record each step", partial(_waits, day, ("model=mlp", "log_every=1"), 1))


def _waits(day: Day, words: Sequence[str], allowed: int) -> Result:
    """Return where the host waited in 20 steps; where it must not, the first wait ends them with an error."""
    steps, data = day.size(20, 2), images(day.size(4096, 64))
    composed = config(*PLAIN, f"device={day.device}", f"batch_size={day.size(64, 4)}", "log_every=999", *words)
    run = setup.prepare(resolved(composed, "train"), None, lambda node, seed: data)
    schedule = registry.partial_call("schedule", run.config.values["schedule"], scores=())
    options = {key: getattr(run.settings, key) for key in FIT_OPTIONS}
    chunks = fit(run.state, run.train, None, run.task, schedule, run.runtime, **options)
    with contextlib.closing(chunks), warnings.catch_warnings(record=True) as caught, contextlib.ExitStack() as stack:
        warnings.simplefilter("always")
        for _ in range(8):  # a graph is recorded in one of them
            next(chunks)
        caught.clear()
        stack.callback(day.on_waits, "default")
        day.on_waits("warn" if allowed else "error")
        for _ in range(steps):
            next(chunks)
    waited = [each for each in caught if "called a synchronizing" in str(each.message)]
    where = Counter(f"{Path(each.filename).name}:{each.lineno}" for each in waited)
    return {"allowed": allowed * steps, "where": where}, len(waited) <= allowed * steps


def bits(day: Day) -> Figures:
    """The same bits twice. Deterministic runs follow plain ones in one process, as in a sweep's worker."""
    more = {"mlp": "model.dropout=0.2", "lstm": "model.layers=2 model.dropout=0.2", "fastnet": "optim=muon"}
    for mode in ("default", "cudnn", "deterministic"):
        torch.backends.cudnn.deterministic = mode == "cudnn"
        is_deterministic = mode == "deterministic"
        for name in MODELS:
            words = *day.network(name), *more.get(name, "").split(), f"device.deterministic={is_deterministic}"
            yield attempt(f"{name} {mode}", partial(_same, day, words, words, must=is_deterministic))
            if name in ("mlp", "lstm") and mode != "cudnn":
                yield attempt(f"{name} {mode} resumed", partial(_resumed, day, words, must=is_deterministic))


def _run(day: Day, *words: str) -> tuple[str, Any]:
    """Return the digest of the weights of a short run, and its records without times."""
    own = f"limit_steps={day.size(30, 4)}", f"batch_size={day.size(64, 8)}", "log_every=1", *words
    return _outcome(train(day, images(day.size(1000, 20)), *own)["folder"])


def _outcome(folder: str) -> tuple[str, Any]:
    content = torch.load(Path(folder, "checkpoints", "last.pt"), map_location="cpu", weights_only=True)
    weights = b"".join(weight.contiguous().numpy().tobytes() for weight in content["model"].values())
    records = map(json.loads, Path(folder, "metrics.jsonl").read_text().splitlines())
    return hashlib.sha256(weights).hexdigest(), [
        {key: value for key, value in record.items() if key != "examples_per_second"} for record in records
    ]


def _same(day: Day, words: Sequence[str], others: Sequence[str], *, must: bool) -> Result:
    """Return whether two runs have the same bits, and the seconds of the second."""
    expected, began = _run(day, *words), perf_counter()
    weights, records = _run(day, *others)
    same = {"weights": weights == expected[0], "records": records == expected[1]}
    return same | {"seconds": round(perf_counter() - began, 2)}, all(same.values()) or not must


def _resumed(day: Day, words: Sequence[str], *, must: bool) -> Result:
    """Return whether a run that is stopped and resumed has the bits of one that is not."""
    unbroken, data = _run(day, *words), images(day.size(1000, 20))
    own = f"limit_steps={day.size(13, 3)}", f"batch_size={day.size(64, 8)}", "log_every=1", *words
    folder = train(day, data, *own)["folder"]
    dltrain.train([f"resume={folder}", f"limit_steps={day.size(30, 4)}"], load=lambda node, seed: data)
    same = _outcome(folder) == unbroken
    return {"same": same}, same or not must


def graph(day: Day) -> Figures:
    """Recorded steps against eager ones: weights and records, with all that a graph may get wrong."""
    if not (has_graph := "graph" in config()["device"]):
        yield Figure("device.graph", "not there")
        if not day.dry:
            return
    on = f"device.graph={'auto' if day.dry else 'true'}"  # a CPU refuses true
    modes = ("device.graph=false", on) if has_graph else ("seed=0", "seed=0")
    cases = {}
    for name in ("mlp sgd", "cnn adam", "lstm adamw", "resnet sgd", "fastnet muon"):  # with smaller last batches
        model, optimizer = name.split()
        cases[name] = [*day.network(model), f"optim={optimizer}"]
    cases |= {f"dropout {name}": [*day.network(name), "model.dropout=0.2"] for name in ("mlp", "attention")}
    cases["clip, average, skip"] = [*day.network("resnet"), "clip_norm=1", "ema=0.9", "on_nonfinite=skip"]
    cases["accumulate"] = [*day.network("cnn"), "accumulate=2", "model.batch_norm=true"]
    cases["not finite"] = ["model=mlp", "optim.lr=1e30", "on_nonfinite=skip"]
    cases["rates that change"] = ["model=mlp", "schedule=cosine", "epochs=3"]
    cases["augmentation"] = [*day.network("cnn"), "data.crop=4", "data.flip=true", "data.mixup=1"]
    for name, words in cases.items():
        eager, replayed = ([*words, "device.deterministic=true", mode] for mode in modes)
        yield attempt(name, partial(_same, day, eager, replayed, must=True))
    words = "model=mlp", "model.dropout=0.2", "device.deterministic=true", modes[1]
    yield attempt("resumed", partial(_resumed, day, words, must=True))
    if has_graph:
        yield attempt("rmsprop refused", partial(_refused, day, ("model=mlp", "optim=rmsprop", "device.graph=true")))


def _refused(day: Day, words: Sequence[str]) -> Result:
    try:
        train(day, images(20), *words, "batch_size=4", "limit_steps=1")
    except UserError as error:
        return str(error), True
    return "recorded", False


def numerics(day: Day) -> Figures:
    """Losses of 20 steps on the GPU, in each precision, against those of the CPU in fp32."""
    for name in MODELS:
        words = "optim.lr=0.01", f"batch_size={day.size(32, 4)}", f"limit_steps={day.size(20, 3)}", "log_every=1"
        yield attempt(name, partial(_far, day, (*day.network(name), *words)))


def _far(day: Day, words: Sequence[str]) -> Result:
    """Return the first and last loss of the CPU, and how far those of the device are from them at most."""
    data, far = images(day.size(1000, 20)), {}
    exact = [it.values["loss"] for it in records_of(day, data, *words, "device=cpu", "device.precision=fp32")]
    for precision in FAR:
        found = records_of(day, data, *words, day.precision(precision, words[0].removeprefix("model=")))
        far[precision] = max(abs(it.values["loss"] / loss - 1) for it, loss in zip(found, exact, strict=True))
    return {"cpu": [exact[0], exact[-1]], **far}, all(far[name] <= most for name, most in FAR.items())


def recipes(day: Day) -> Figures:
    """The recipes: accuracies, with seconds in the loop and of the command; a dry run takes digits."""
    small = "data=digits", "epochs=1", "batch_size=100", "data.limit=200"
    for name, seeds, views, least in (
        ("mnist_99_fast", 1, "none", 0.985),
        ("cifar10_94", day.size(3, 1), "flip_shift", 0.93),
        ("cifar10_96", 1, "flip_shift", 0.95),
    ):
        words = [f"experiment={name}", f"device={day.device}", "logger=none"]
        words += [*small, "model.widths=[4,4]"] if day.dry else []
        if name == "mnist_99_fast" or (name == "cifar10_94" and not day.dry):
            yield attempt(f"{name} from the shell", partial(_command, words))
        for seed in range(seeds):
            own = [*words, f"seed={seed}"]
            yield attempt(f"{name} seed {seed}", partial(_recipe, own, views, 0.0 if day.dry else least))


def shell(*words: str) -> tuple[float, str]:
    """Run a command line of dltrain; return its seconds and what it printed."""
    began = perf_counter()
    done = subprocess.run([sys.executable, "-m", "dltrain", *words], stdout=subprocess.PIPE, text=True, check=True)
    return round(perf_counter() - began, 2), done.stdout


def _command(words: Sequence[str]) -> Result:
    seconds, out = shell("train", *words, "--json")
    return {"seconds": seconds, "train_seconds": json.loads(out)["train_seconds"]}, True


def _recipe(words: Sequence[str], views: str, least: float) -> Result:
    run = dltrain.train([*words, "report=false"])
    accuracy = dltrain.evaluate(run["folder"], [f"tta={views}"])["accuracy"]
    figures = {key: run[key] for key in ("train_seconds", "total_seconds", "device", "test")}
    return figures | {f"tta={views}": accuracy}, accuracy >= least


def commands(day: Day) -> Figures:
    """Out of memory, and a run after it; a sweep of 4 jobs on one GPU; an evaluation on the CPU."""
    yield Figure("out of memory", "needs a GPU") if day.dry else attempt("out of memory", partial(_out_of_memory, day))
    yield attempt("a sweep of 4 jobs", partial(_sweep, day))
    yield attempt("evaluated on the CPU", partial(_evaluated, day))


def _out_of_memory(day: Day) -> Result:
    data, message = images(20_000), ""
    torch.cuda.set_per_process_memory_fraction(0.01)  # 1.4 GiB of an H200
    try:
        train(day, data, "model=resnet", "batch_size=20000", "limit_steps=1")
    except UserError as error:
        message = str(error)
    torch.cuda.set_per_process_memory_fraction(1.0)
    after = train(day, data, "model=resnet", "limit_steps=1")["steps"]
    return {"message": message, "steps afterwards": after}, message.startswith("out of memory")


def _sweep(day: Day) -> Result:
    words = "model=mlp", "data=digits", "epochs=1", f"device={day.device}", "logger=none"
    seconds, _ = shell("train", "-m", *words, "optim.lr=0.1,0.05,0.02,0.01")
    (path,) = Path().glob("outputs/sweeps/*/*/results.csv")
    states = [row["status"] for row in csv.DictReader(path.read_text().splitlines())]
    return {"seconds": seconds, "status": states}, states == ["done"] * 4


def _evaluated(day: Day) -> Result:
    """Return the accuracies of one checkpoint on the GPU and on the CPU."""
    run = dltrain.train([*QUIET, "data=digits", "model=cnn", "epochs=2", f"device={day.device}"])
    found = run["test"]["accuracy"], dltrain.evaluate(run["folder"], ["device=cpu"])["accuracy"]
    return found, abs(found[0] - found[1]) < 0.01


def tests(day: Day) -> Figures:
    """The tests whose names end in _on_cuda; in a dry run they are skipped."""
    if importlib.util.find_spec("pytest") is None:
        yield Figure("tests", "pytest is not installed", ok=False)
        return
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "_on_cuda(" in path.read_text()]
    options = "-k", "on_cuda", "-q", "--tb=short", "-p", "no:cacheprovider", "-o"
    command = [sys.executable, "-m", "pytest", *options, "addopts=--strict-markers --import-mode=importlib", *files]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout)
    lines = done.stdout.splitlines()
    failed = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
    yield Figure("tests", [lines[-1], *failed], done.returncode == 0)
