"""The number of threads follows from the work of a step and the cores that may be used, on any machine."""

import dataclasses
import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import dltrain
from dltrain.config.resolution import resolved
from dltrain.runtime import devices, system_info, threads
from dltrain.training import build
from support.command import Command

MNIST, CIFAR10 = (1, 28, 28), (3, 32, 32)
# Batch sizes from which on two threads were faster than one on a machine of two cores; docs/LOG.md.
TWO_PAY = {"mlp": 512, "lenet": 32, "lstm": 16, "attention": 16, "cnn": 16}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def network(model: str, shape: tuple[int, ...] = MNIST) -> nn.Module:
    values = resolved(dltrain.compose("train", [f"model={model}", "data=mnist"]), "train").values
    return build.model(values["model"], shape, 10)  # type: ignore[arg-type]


@pytest.mark.parametrize(("model", "first"), TWO_PAY.items())
def test_two_threads_begin_where_they_were_measured_to_pay(model: str, first: int) -> None:
    built = network(model)
    for batch_size in (16, 32, 64, 128, 256, 512):
        chosen = threads.choose(threads.step_flops(built, MNIST, batch_size), 2)
        assert (chosen == 2) == (batch_size >= first), (batch_size, chosen)


@pytest.mark.parametrize(("cores", "most"), [(0.5, 1), (1, 1), (1.9, 1), (2, 2), (8, 8), (64, 64)])
def test_no_more_threads_than_usable_cores_whatever_the_work(
    monkeypatch: pytest.MonkeyPatch, cores: float, most: int
) -> None:
    monkeypatch.setattr(system_info, "usable_cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert threads.available() == most
    assert threads.choose(1e15, threads.available()) == most


def test_omp_num_threads_and_the_share_of_a_sweeps_job_are_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_info, "usable_cores", lambda: 64.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert threads.available() == 3


@pytest.mark.parametrize("most", [1, 2, 8, 64, 1024])
def test_many_threads_are_never_taken_for_little_work(most: int) -> None:
    for flops in (10**power * factor for power in range(5, 14) for factor in (1, 2, 5)):
        chosen = threads.choose(flops, most)
        assert 1 <= chosen <= most
        assert chosen == 1 or flops / chosen >= chosen * threads.FLOPS_FOR_A_THREAD


def test_more_work_or_more_cores_never_mean_fewer_threads() -> None:
    numbers = [[threads.choose(10**power, most) for power in range(4, 14)] for most in (1, 2, 8, 64)]
    assert all(a <= b for row in numbers for a, b in itertools.pairwise(row))
    assert all(a <= b for column in zip(*numbers, strict=True) for a, b in itertools.pairwise(column))


def test_the_work_of_a_layer_is_that_of_its_products_three_times_and_of_what_it_writes() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 32 * 32, 10))
    products = 2 * (3 * 8 * 9 * 32 * 32 + 8 * 32 * 32 * 10)
    written = 8 * 32 * 32 + 10  # flattening writes nothing
    assert threads.step_flops(layers, CIFAR10, 4) == 4 * (3 * products + threads.FLOPS_OF_A_WRITE * written)


@pytest.mark.parametrize("model", ["linear", "mlp", "lenet", "lstm", "attention", "cnn", "resnet", "fastnet"])
def test_estimating_the_work_changes_nothing_in_the_network(model: str) -> None:
    built = network(model, CIFAR10)
    before, state = {key: value.clone() for key, value in built.state_dict().items()}, torch.get_rng_state()
    assert threads.step_flops(built, CIFAR10, 64) > 0
    assert all(torch.equal(value, before[key]) for key, value in built.state_dict().items())
    assert built.training
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks for module in built.modules())


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch.jit is deprecated, networks with it are not gone
def test_a_scripted_part_of_a_network_takes_no_hook_and_does_not_count() -> None:
    part = torch.jit.trace(nn.Linear(784, 10), torch.zeros(1, 784))
    network = nn.Sequential(nn.Flatten(), part, nn.ReLU())
    assert threads.step_flops(network, MNIST, 1) == threads.FLOPS_OF_A_WRITE * 10


def test_a_network_without_weights_has_work_too() -> None:
    assert threads.step_flops(nn.Sequential(nn.ReLU()), MNIST, 2) == 2 * 784 * threads.FLOPS_OF_A_WRITE


def test_a_run_says_how_many_threads_the_rule_chose_and_why(dltrain: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_info, "usable_cores", lambda: 2.0)
    torch.set_num_threads(2)
    ran = dltrain("train", "model=mlp", "data.limit=100", "epochs=1", "report=false", "logger=none")
    assert "cpu, 1 thread (auto: about 55 MFLOP a step, 2 cores), fp32" in ran.out
    torch.set_num_threads(2)
    resumed = dltrain("train", f"resume={ran.folder}", "epochs=2")
    assert "cpu, 1 thread, fp32" in resumed.out  # the checkpoint's, not the rule's


def test_threads_that_the_user_sets_are_not_changed_by_the_rule() -> None:
    runtime = devices.device(name="cpu", precision=None, threads=2, deterministic=False)
    assert devices.resolve_threads(runtime, network("linear"), MNIST, 1) == runtime
    assert torch.get_num_threads() == 2


def test_on_a_gpu_the_rule_does_not_apply() -> None:
    runtime = dataclasses.replace(devices.Runtime(torch.device("cpu"), "fp32", 2), auto_threads=True)
    on_gpu = dataclasses.replace(runtime, device=torch.device("cuda"))
    assert devices.resolve_threads(on_gpu, network("linear"), MNIST, 1) == on_gpu
