"""Device, precision, threads and seeds: decided once, and the generators of a process can be kept and brought back."""

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from dltrain.checkpoints import checkpoint
from dltrain.runtime import devices, process_state
from dltrain.runtime.devices import Runtime
from dltrain.runtime.errors import DeviceError, UserError
from dltrain.runtime.graphs import CudaGraph
from support.command import Command
from support.contents import content

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
with_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
AUTO: dict[str, Any] = {"name": "auto", "precision": None, "threads": None, "deterministic": False}


@pytest.fixture(autouse=True)
def _settings_of_the_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Bring back torch's determinism and its environment variable, and TF32."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before, tf32 = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.allow_tf32
    yield
    torch.use_deterministic_algorithms(before)
    torch.backends.cudnn.allow_tf32 = tf32
    torch.set_float32_matmul_precision("highest")


@without_cuda
def test_cuda_without_a_gpu_is_a_device_error_with_what_to_set() -> None:
    with pytest.raises(DeviceError) as caught:
        devices.device(**(AUTO | {"name": "cuda"}))
    assert caught.value.exit_code == 69
    assert str(caught.value).startswith("device=cuda: ")
    assert str(caught.value).endswith("Set device=cpu, or device=auto to use what is available")


@without_cuda
def test_auto_without_a_gpu_is_the_cpu_in_fp32() -> None:
    found = devices.device(**AUTO)
    assert (found.device, found.precision) == (torch.device("cpu"), "fp32")


@with_cuda
def test_auto_with_a_gpu_is_cuda() -> None:
    assert devices.device(**AUTO).device.type == "cuda"


def test_cpu_is_the_cpu_even_with_a_gpu() -> None:
    found = devices.device(**(AUTO | {"name": "cpu"}))
    assert (found.device, found.precision) == (torch.device("cpu"), "fp32")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_explicit_precision_is_used(precision: str) -> None:
    assert devices.device(**(AUTO | {"name": "cpu", "precision": precision})).precision == precision


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_set_for_the_process_and_reported(threads: int) -> None:
    found = devices.device(**(AUTO | {"name": "cpu", "threads": threads}))
    assert (found.threads, torch.get_num_threads()) == (threads, threads)


def test_threads_null_keeps_the_default_of_torch() -> None:
    torch.set_num_threads(2)
    assert devices.device(**(AUTO | {"name": "cpu"})).threads == 2
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("deterministic", [True, False])
def test_determinism_is_switched_for_the_process(deterministic: bool) -> None:
    torch.use_deterministic_algorithms(not deterministic)
    devices.device(**(AUTO | {"name": "cpu", "deterministic": deterministic}))
    assert torch.are_deterministic_algorithms_enabled() == deterministic


def test_determinism_sets_the_cublas_workspace_unless_the_user_did(monkeypatch: pytest.MonkeyPatch) -> None:
    devices.device(**(AUTO | {"name": "cpu", "deterministic": True}))
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    devices.device(**(AUTO | {"name": "cpu", "deterministic": True}))
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def fake_gpu(
    monkeypatch: pytest.MonkeyPatch, *, capability: tuple[int, int] = (9, 0), archs: str = "sm_75 sm_90", count: int = 1
) -> None:
    """Let torch report GPUs of this compute capability, and code for these architectures."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.cuda, "get_arch_list", archs.split)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _=None: "Tesla")


@pytest.mark.parametrize("deterministic", [False, True])
def test_every_gpu_run_sets_the_cublas_workspace_as_a_later_one_may_be_deterministic(
    monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    fake_gpu(monkeypatch)
    assert devices.device(**(AUTO | {"deterministic": deterministic})).device.type == "cuda"
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.parametrize(("graph", "is_recorded"), [("auto", False), (False, False), (True, True)])
def test_steps_are_recorded_on_a_gpu_only_if_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, graph: bool | str, is_recorded: bool
) -> None:
    fake_gpu(monkeypatch)
    assert (devices.device(**(AUTO | {"graph": graph})).graph is CudaGraph) == is_recorded


@pytest.mark.parametrize(
    ("capability", "archs", "is_usable"),
    [
        ((7, 5), "sm_75 sm_90", True),
        ((8, 9), "sm_86 sm_90", True),
        ((8, 0), "sm_86 sm_90", False),
        ((6, 1), "sm_75 sm_90", False),
        ((10, 0), "sm_90", False),
        ((10, 0), "sm_90 compute_90", True),
        ((12, 1), "sm_90a sm_120", True),
        ((9, 4), "gfx90a gfx942", True),
    ],
)
def test_auto_takes_only_a_gpu_that_this_pytorch_has_code_for(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capability: tuple[int, int],
    archs: str,
    is_usable: bool,
) -> None:
    fake_gpu(monkeypatch, capability=capability, archs=archs)
    assert devices.device(**AUTO).device.type == ("cuda" if is_usable else "cpu")
    if is_usable:
        assert devices.device(**(AUTO | {"name": "cuda"})).device.type == "cuda"
        return
    assert "computing on the CPU: Tesla is of capability" in caplog.text
    with pytest.raises(DeviceError, match=r"device=cuda: Tesla is of capability \d+\.\d, this PyTorch has code for"):
        devices.device(**(AUTO | {"name": "cuda"}))


@pytest.mark.parametrize(
    ("version", "told"),
    [("cuda", "no usable GPU was found"), ("hip", "no usable GPU was found"), ("none", "built without CUDA or ROCm")],
)
def test_the_error_without_a_gpu_tells_whether_pytorch_was_built_for_one(
    monkeypatch: pytest.MonkeyPatch, version: str, told: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("cuda", "hip"):
        monkeypatch.setattr(torch.version, name, "9" if name == version else None)
    with pytest.raises(DeviceError, match=told):
        devices.device(**(AUTO | {"name": "cuda"}))


@pytest.mark.parametrize(
    ("count", "environment", "index"),
    [
        (2, {}, 1),
        (1, {"CUDA_VISIBLE_DEVICES": "1"}, 0),
        (1, {"HIP_VISIBLE_DEVICES": "1"}, 0),
        (1, {"SLURM_JOB_ID": "7"}, 0),
        (1, {}, None),
        (0, {"CUDA_VISIBLE_DEVICES": "1"}, None),
    ],
)
def test_a_process_takes_the_gpu_of_its_local_rank_or_the_only_one_that_it_is_given(
    monkeypatch: pytest.MonkeyPatch, count: int, environment: dict[str, str], index: int | None
) -> None:
    fake_gpu(monkeypatch, count=count)
    ranks = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in (ranks | environment).items():
        monkeypatch.setenv(name, value)
    if index is None:
        with pytest.raises(DeviceError, match=f"local rank 1 has no GPU, this machine has {count} GPU"):
            devices.device(**AUTO)
    else:
        assert devices.device(**AUTO).device == torch.device("cuda", index)


def tf32() -> tuple[bool, bool]:
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("precision", ["tf32", "fp32", "auto", "bf16", None])
def test_on_a_gpu_convolutions_and_products_are_in_tf32_only_if_it_is_named(
    monkeypatch: pytest.MonkeyPatch, precision: str | None
) -> None:
    fake_gpu(monkeypatch)
    for before in ("tf32", "fp32"):
        devices.device(**(AUTO | {"precision": before}))
        found = devices.device(**(AUTO | {"precision": precision}))
        assert tf32() == (precision == "tf32",) * 2
        assert found.precision == (precision or "auto")
    with Runtime(torch.device("cpu"), "tf32", 1).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_tf32_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu(monkeypatch, capability=(7, 5))
    before = tf32()
    for name in ("cpu", "cuda"):
        with pytest.raises(DeviceError, match="tf32: needs a GPU of compute capability 8"):
            devices.device(**(AUTO | {"name": name, "precision": "tf32"}))
    devices.device(**(AUTO | {"name": "cpu"}))
    assert tf32() == before


def test_an_lstm_with_projections_needs_no_bf16_of_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    cpu = torch.device("cpu")
    assert not devices.lacks_bf16(cpu, torch.nn.LSTM(2, 4, proj_size=2))
    assert devices.lacks_bf16(cpu, torch.nn.LSTM(2, 4)) == torch.backends.mkldnn.is_available()


@pytest.mark.parametrize(("cell", "code"), [("lstm", 69), ("gru", 0)])
def test_an_lstm_in_bf16_is_refused_on_a_cpu_that_has_none(
    dltrain: Command, monkeypatch: pytest.MonkeyPatch, cell: str, code: int
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    words = "model=lstm", f"model.cell={cell}", "model.hidden=4", "data.limit=20", "epochs=1", "report=false"
    result = dltrain("train", *words, "device.precision=bf16")
    assert result.code == code, result.err
    if code:
        message = "this CPU cannot compute an LSTM in bf16. Set device.precision=fp32"
        assert result.err == f"error: device.precision=bf16: {message}\n"
        assert not Path("outputs").exists()


def test_a_run_from_python_restores_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu(monkeypatch)
    for cudnn, products in ((True, "highest"), (False, "medium")):
        torch.backends.cudnn.allow_tf32 = cudnn
        torch.set_float32_matmul_precision(products)
        for precision in ("fp32", "tf32"):
            with process_state.preserved():
                devices.device(**(AUTO | {"precision": precision}))
            assert (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == (cudnn, products)


def test_precision_and_threads_of_a_run_are_kept_on_the_same_kind_of_device_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_gpu(monkeypatch)
    torch.set_num_threads(2)
    on_gpu, on_cpu = {"precision": "bf16", "threads": 1, "device": "cuda"}, {"precision": "bf16", "threads": 1}
    for name, before, kept in (("cpu", on_gpu, ("fp32", 2)), ("auto", on_cpu, ("auto", 2)), ("cpu", {}, ("fp32", 2))):
        found = devices.restored_device(AUTO | {"name": name}, before, ())
        assert (found.precision, found.threads) == kept
    for name, before in (("auto", on_gpu), ("cuda", on_gpu), ("cpu", on_cpu)):
        found = devices.restored_device(AUTO | {"name": name}, before, ())
        assert (found.precision, found.threads) == ("bf16", 1)
        assert devices.restored_device(AUTO | {"name": name}, before, ("device",)).precision != "bf16"


def test_a_cpu_run_sets_no_cublas_workspace() -> None:
    devices.device(**(AUTO | {"name": "cpu"}))
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


@pytest.mark.parametrize(
    ("precision", "threads", "words"), [("fp32", 1, "cpu, 1 thread, fp32"), ("bf16", 8, "cpu, 8 threads, bf16")]
)
def test_a_runtime_is_described_in_one_line(precision: str, threads: int, words: str) -> None:
    assert Runtime(torch.device("cpu"), precision, threads).describe() == words


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_multiplies_in_the_chosen_precision(precision: str, dtype: torch.dtype) -> None:
    matrix = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    with Runtime(torch.device("cpu"), precision, 1).autocast():
        product = matrix @ matrix
    expected = matrix.to(dtype) @ matrix.to(dtype)
    assert product.dtype == dtype
    assert torch.equal(product, expected)


def test_bf16_ends_with_the_autocast() -> None:
    with Runtime(torch.device("cpu"), "bf16", 1).autocast():
        pass
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


DRAWS: dict[str, Callable[[], Any]] = {
    "torch": lambda: torch.rand(3).tolist(),
    "random": random.random,
    "numpy": lambda: numpy.random.random(3).tolist(),
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("seed", [0, 5, 2**32, 2**64 - 1])
def test_a_seed_makes_every_generator_repeat(name: str, seed: int) -> None:
    devices.seed_everything(seed)
    first = DRAWS[name]()
    DRAWS[name]()
    devices.seed_everything(seed)
    assert DRAWS[name]() == first


@pytest.mark.parametrize("started", [False, True])
def test_seeding_at_each_step_gives_the_same_numbers_and_queues_nothing(
    monkeypatch: pytest.MonkeyPatch, started: bool
) -> None:
    devices.seed_everything(7)
    expected = draw_all()
    seeded: list[int] = []
    monkeypatch.setattr(torch, "manual_seed", seeded.append)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: started)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    devices.seed_everything(7, each_step=True)
    assert draw_all() == expected
    assert seeded == [7] * started


@pytest.mark.parametrize("name", DRAWS)
def test_another_seed_gives_other_random_numbers(name: str) -> None:
    drawn = []
    for seed in (0, 1):
        devices.seed_everything(seed)
        drawn.append(DRAWS[name]())
    assert drawn[0] != drawn[1]


def draw_all() -> list[Any]:
    """Of each kind of number, also those that a generator draws in pairs and keeps one of."""
    return [*(draw() for draw in DRAWS.values()), random.gauss(0, 1), numpy.random.normal(), torch.randn(3).tolist()]


@pytest.mark.parametrize("before", range(5))
def test_restored_generators_continue_their_sequences(before: int) -> None:
    devices.seed_everything(0)
    for _ in range(before):
        draw_all()
    states = devices.generator_states()
    expected = draw_all()
    devices.seed_everything(1)
    devices.restore_generators(states)
    assert draw_all() == expected


def test_generator_states_survive_a_checkpoint(tmp_path: Path) -> None:
    devices.seed_everything(0)
    random.gauss(0, 1)
    checkpoint.save(tmp_path / "last.pt", content() | {"generators": devices.generator_states()})
    expected = draw_all()
    devices.restore_generators(checkpoint.load(tmp_path / "last.pt")["generators"])
    assert draw_all() == expected


def what_torch_says() -> str:
    """The error of torch itself where the host has too little memory."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    return str(caught.value)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more"), "CUDA out of memory"),
        (MemoryError(), "MemoryError"),
        (numpy.exceptions.AxisError("no"), None),
        (RuntimeError("shapes cannot be multiplied"), None),
        (RuntimeError(), None),
        (NotImplementedError("no kernel for bfloat16"), None),
        (RecursionError("too deep"), None),
        (KeyError("memory"), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_out_of_memory_errors_become_user_errors(error: Exception, told: str | None) -> None:
    with pytest.raises(type(error) if told is None else UserError) as caught, devices.memory_errors("Lower it"):
        raise error
    if told is None:
        assert caught.value is error
    else:
        first, advice = str(caught.value).splitlines()
        assert first.startswith(f"out of memory: {told}")
        assert advice == "Lower it"


def test_out_of_memory_errors_of_torch_are_recognized_by_their_text() -> None:
    with pytest.raises(UserError, match="tried to allocate 4000000000000000 bytes"), devices.memory_errors("Lower it"):
        torch.empty(10**15)
    older = "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
    of_the_driver = "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"
    of_a_library = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    no_handle = "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"
    for text in (what_torch_says(), older, of_the_driver, of_a_library, no_handle):
        with pytest.raises(UserError, match="out of memory: "), devices.memory_errors("Lower it"):
            raise RuntimeError(text)


def test_saved_generator_states_do_not_change_afterwards() -> None:
    devices.seed_everything(0)
    states = devices.generator_states()
    before = states["cpu"].clone()
    torch.rand(5)
    assert torch.equal(states["cpu"], before)


@without_cuda
def test_cuda_generator_states_are_ignored_without_a_gpu() -> None:
    devices.seed_everything(0)
    states = devices.generator_states() | {"cuda": torch.zeros(16, dtype=torch.uint8)}
    expected = torch.rand(3)
    devices.restore_generators(states)
    assert torch.equal(torch.rand(3), expected)
