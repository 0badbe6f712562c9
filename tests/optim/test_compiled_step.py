"""device.compile computes what the plain step computes, to rounding; resumed to the bit; and says where it cannot."""

import dataclasses
import importlib
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dltrain as package
from dltrain.config.resolution import resolved
from dltrain.optim import step
from dltrain.optim.step import StepOutput, TrainState
from dltrain.runtime.devices import Runtime
from dltrain.training import build, checks
from support.command import Command

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler, g++")
CPU = Runtime(torch.device("cpu"), "fp32", 1, compile=True)
PLAIN: dict[str, Any] = {"hooks": [], "hardest": None}
QUICK = ("model=mlp", "model.hidden=[8]", "data.limit=150", "epochs=2", "report=false", "logger=none", "batch_size=40")
QUICK += ("device.threads=1", "data.val=0.2")  # three full batches in an epoch
Step = Callable[..., list[StepOutput]]


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    root = tmp_path_factory.getbasetemp().parent  # shared by the processes of a test run
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(root / "compiled"))
    yield
    torch.set_num_threads(before)


def compiled_step(size: int) -> Any:
    return importlib.import_module("dltrain.optim.compiled_step").CompiledStep(size)


def parts(overrides: tuple[str, ...], shape: tuple[int, int, int]) -> tuple[TrainState, Any]:
    """A network and its task; equal weights each time."""
    values = resolved(package.compose("train", ["data=mnist", *overrides]), "train").values
    torch.manual_seed(0)
    network = build.model(values["model"], shape, 10)
    state = TrainState(network, build.optimizer(values["optim"], network))
    for group in state.optimizer.param_groups:
        group["lr"] = 0.01
    return state, build.task(values, 10, [3] * 10)


def run(
    make_step: Step, state: TrainState, task: Any, runtime: Runtime, shape: tuple[int, int, int], **options: Any
) -> tuple[list[float], list[bool]]:
    """Five steps, the rate falling; return the losses of micro-batches, and which were skipped."""
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(2)
    settings = {"accumulate": 1, "clip_norm": None, "on_nonfinite": "stop"} | options
    poisoned = settings.pop("poisoned", None)
    found: list[StepOutput] = []
    for number in range(5):
        inputs, targets = torch.randn(8, *shape, generator=generator), torch.randint(10, (8,), generator=generator)
        if number == poisoned:
            inputs[0] = math.nan
        for group in state.optimizer.param_groups:
            group["lr"] *= 0.9
        found += make_step(state, inputs, targets, task, runtime, **settings)
        state.step += 1
    assert all(part.outputs.shape == (8 // settings["accumulate"], 10) for part in found)
    return [float(part.loss) for part in found], [bool(part.skipped) for part in found]


def compare(overrides: tuple[str, ...], shape: tuple[int, int, int] = (1, 14, 14), **options: Any) -> Any:
    """Compare five compiled steps with plain ones; return the compiled step."""
    precision, tolerance = options.pop("precision", "fp32"), options.pop("tolerance", 1e-5)
    runtime, found = dataclasses.replace(CPU, precision=precision), []
    ours = compiled_step(8)
    for make_step in (step.train_step, ours):
        state, task = parts(overrides, shape)
        losses = run(make_step, state, task, runtime, shape, **options)
        moments = [each for it in state.optimizer.state.values() for each in it.values() if isinstance(each, Tensor)]
        found.append((losses, [*state.model.state_dict().values(), *moments], state.faults))
        assert all(isinstance(group["lr"], float) for group in state.optimizer.param_groups)  # as checkpoints have it
        assert all(weight.grad is None for weight in state.model.parameters())
    for plain, compiled in zip(*(it[1] for it in found), strict=True):
        torch.testing.assert_close(compiled, plain, rtol=100 * tolerance, atol=tolerance, equal_nan=True)
    (losses, skipped), (ours_losses, ours_skipped) = (it[0] for it in found)
    assert ours_losses == pytest.approx(losses, rel=100 * tolerance, nan_ok=True)
    assert ours_skipped == skipped
    assert found[0][2] == found[1][2]
    return ours


NETWORKS: dict[str, tuple[tuple[str, ...], tuple[int, int, int]]] = {
    "linear": (("model=linear",), (1, 8, 8)),
    "mlp": (("model=mlp", "model.hidden=[8,8]", "model.batch_norm=true", "model.dropout=0.3"), (1, 8, 8)),
    "attention": (("model=attention", "model.width=8", "model.heads=2", "model.dropout=0.2"), (1, 8, 8)),
    "lenet": (("model=lenet",), (1, 14, 14)),
    "cnn": (("model=cnn", "model.widths=[4,8]", "model.batch_norm=true", "model.hidden=8"), (3, 8, 8)),
    "resnet": (("model=resnet", "model.widths=[4,8]", "model.blocks=1"), (3, 8, 8)),
    "fastnet": (("model=fastnet", "model.widths=[8,8,8]"), (3, 32, 32)),
}


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [*list(NETWORKS)[:5], *(pytest.param(name, marks=pytest.mark.torture) for name in list(NETWORKS)[5:])]
)
def test_compiled_equals_plain_for_every_network(name: str) -> None:
    overrides, shape = NETWORKS[name]
    ours = compare(overrides, shape)
    assert ours.step is not None
    assert not ours.is_off


SMALL = ("model=mlp", "model.hidden=[8]")
OPTIONS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "sgd without momentum": (("optim.momentum=0", "optim.weight_decay=0.1"), {}),
    "nesterov": (("optim.nesterov=true",), {}),
    "adam": (("optim=adam",), {}),
    "adamw": (("optim=adamw", "optim.weight_decay=0.1"), {}),
    "rmsprop": (("optim=rmsprop",), {"tolerance": 1e-3}),
    "muon": (("optim=muon",), {"tolerance": 1e-2}),  # bf16 inside
    "factors on rates": (("optim.head_factor=3", "optim.bias_factor=0.5"), {}),
    "micro-batches, clipped, a step skipped": (
        ("optim=adamw",),
        {"accumulate": 2, "clip_norm": 0.1, "on_nonfinite": "skip", "poisoned": 3},
    ),
    "clipped by rmsprop": (("optim=rmsprop",), {"clip_norm": 0.1, "tolerance": 1e-3}),
    "a step skipped with batch norm": (("model.batch_norm=true",), {"on_nonfinite": "skip", "poisoned": 2}),
    "the first step skipped": ((), {"on_nonfinite": "skip", "poisoned": 0}),
    "stopped": ((), {"poisoned": 3}),
    "bf16": ((), {"precision": "bf16", "tolerance": 1e-3}),
    "class weights with focal loss": (("task.class_weights=balanced", "task.focal=2"), {}),
    "label smoothing": (("task.label_smoothing=0.1",), {}),
}


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_compiled_equals_plain_for_every_optimizer_and_option(name: str) -> None:
    overrides, options = OPTIONS[name]
    assert not compare((*SMALL, *overrides), (1, 6, 6), **options).is_off


class Unused(nn.Module):
    """A network with a weight that no output depends on, and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused, self.frozen = nn.Linear(36, 10), nn.Linear(2, 2), nn.Linear(10, 10)
        self.frozen.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.frozen(self.used(images.flatten(1)))


class Replacing(Unused):
    """A network that replaces a buffer, which a function of its weights cannot show."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(36))

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + images.detach().flatten(1).mean(0)
        return super().forward(images - self.mean.view(1, 6, 6))


class Masked(Unused):
    """A network that masks a gradient by a hook of its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.used.weight.register_hook(lambda gradient: gradient * (gradient > 0))


def custom(network: type[nn.Module]) -> list[TrainState]:
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        built = network()
        states.append(TrainState(built, torch.optim.SGD(built.parameters(), 0.01, momentum=0.9, weight_decay=0.1)))
    return states


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("network", "is_off"), [(Unused, False), (Replacing, True), (Masked, True)])
def test_networks_that_hide_something_are_trained_as_without(network: type[nn.Module], is_off: bool) -> None:
    _, task = parts(SMALL, (1, 6, 6))
    plain, ours = custom(network)
    compiled = compiled_step(8)
    losses, _ = run(step.train_step, plain, task, CPU, (1, 6, 6))
    assert run(compiled, ours, task, CPU, (1, 6, 6))[0] == pytest.approx(losses, rel=1e-5)
    for key, value in plain.model.state_dict().items():
        torch.testing.assert_close(ours.model.state_dict()[key], value, rtol=1e-4, atol=1e-6)
    assert compiled.is_off == is_off


@needs_compiler
@pytest.mark.slow
def test_a_network_that_cannot_be_compiled_is_trained_without_and_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("WARNING")
    ours = compare(("model=lstm", "model.hidden=8"), (1, 6, 6))
    assert ours.is_off
    assert [it.getMessage() for it in caplog.records if "device.compile" in it.getMessage()] == [
        "device.compile: the step is computed without it: Attempted to wrap RNN, GRU, or LSTM"
    ]


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("ema=0.9", "clip_norm=1", "accumulate=2"), ("optim=adamw",)])
def test_a_compiled_run_is_resumed_to_the_bit_with_and_without_the_cache(
    dltrain: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    train = ("train", *QUICK, *options, "device.compile=true")
    whole = dltrain(*train)
    assert ", compiled" in whole.out
    for number, limit in enumerate(("limit_steps=1", "limit_steps=2")):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / str(number)))
        torch._dynamo.reset()
        half = dltrain(*train, limit).folder
        resumed = dltrain("train", f"resume={half}", "limit_steps=null")
        assert "not bit-identical" not in resumed.out
        ours, theirs = (torch.load(it / "checkpoints" / "last.pt", weights_only=True) for it in (half, whole.folder))
        assert all(torch.equal(ours["model"][key], theirs["model"][key]) for key in theirs["model"])
        assert (half / "metrics.jsonl").read_text().count('"test"') == 1


@needs_compiler
@pytest.mark.slow
def test_a_library_that_a_killed_process_left_unfinished_is_built_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    assert not compare(SMALL, (1, 5, 5)).is_off
    libraries = [*tmp_path.rglob("*.so")]
    assert libraries
    for library in libraries:
        library.unlink()  # a loaded one must not be written to
        library.write_bytes(b"\x7fELF")
    torch._dynamo.reset()
    importlib.import_module("torch._inductor.codecache").PyCodeCache.cache_clear()
    assert not compare(SMALL, (1, 5, 5)).is_off


@needs_compiler
@pytest.mark.slow
def test_switching_the_compiler_on_or_off_at_a_resume_is_reported(dltrain: Command) -> None:
    half = dltrain("train", *QUICK, "limit_steps=1").folder
    on = dltrain("train", f"resume={half}", "device.compile=true", "limit_steps=2")
    assert "not bit-identical because compile was false, is true" in on.out
    off = dltrain("train", f"resume={half}", "device.compile=false", "limit_steps=null")
    assert "not bit-identical because compile was true, is false" in off.out


def test_without_a_compiler_the_run_goes_on_and_says_so(dltrain: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    ran = dltrain("train", *QUICK, "device.compile=true")
    assert ran.code == 0
    assert "device.compile: steps are computed without it: there is no C++ compiler (no-such-compiler)" in ran.out
    assert ", compiled" not in json.loads((ran.folder / "summary.json").read_text())["device"]


def test_several_processes_train_without_the_compiler(caplog: pytest.LogCaptureFixture) -> None:
    processes = dataclasses.replace(CPU.processes, world_size=2)
    assert not checks.check_compile(dataclasses.replace(CPU, processes=processes), PLAIN).compile
    assert "several processes train together" in caplog.text


def test_a_run_with_hooks_or_a_proxy_trains_without_the_compiler(caplog: pytest.LogCaptureFixture) -> None:
    assert not checks.check_compile(CPU, PLAIN | {"hooks": ["mine:freeze"]}).compile
    assert "mine:freeze may change the network or the optimizer" in caplog.text
    assert not checks.check_compile(CPU, PLAIN | {"hardest": 0.5}).compile
    assert "a proxy picks the hardest examples" in caplog.text


def test_compiled_code_lies_in_the_users_cache_not_in_a_folder_that_others_may_write_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: name)
    for cache in (str(tmp_path), ""):
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
        monkeypatch.setenv("DLTRAIN_CACHE", cache)
        assert checks.check_compile(CPU, PLAIN).compile
        folder = Path(checks.os.environ["TORCHINDUCTOR_CACHE_DIR"])
        assert folder == tmp_path / "compiled" or folder.stat().st_mode & 0o77 == 0
