"""Steps recorded and repeated, as on a GPU, train to the same bits as steps that are computed one by one."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dltrain.config import registry
from dltrain.data.loader import TensorLoader
from dltrain.data.splits import Examples
from dltrain.engine import fit
from dltrain.optim import schedules
from dltrain.optim.step import TrainState, keep_on_device
from dltrain.runtime.devices import Runtime
from dltrain.training import build
from support.replay import Replay

CONFIGS = Path(__file__).parents[2] / "configs"
CPU = torch.device("cpu")
SHAPE, COUNT, BATCH = (3, 16, 16), 72, 16  # five steps an epoch, the last of half a batch
SCHEDULE = partial(schedules.cosine, warmup=0.2, final=0.0)
LOOP: dict[str, Any] = {"epochs": 3, "log_every": 4, "accumulate": 1, "clip_norm": None, "on_nonfinite": "stop"}


def node(group: str, name: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text())


def train(model: str, optim: str, graph: Replay | None, **options) -> Any:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(COUNT, *SHAPE, generator=generator)
    targets = torch.randint(0, 10, (COUNT,), generator=generator)
    examples = Examples(images, targets, tuple("abcdefghij"))
    torch.manual_seed(1)
    network = build.model(node("model", model), SHAPE, 10)
    state = TrainState(network, build.optimizer(node("optim", optim), network))
    keep_on_device(state, CPU)
    loader = TensorLoader(examples, CPU, batch_size=BATCH, statistics=((0.5,) * 3, (0.5,) * 3))
    runtime = Runtime(CPU, "fp32", 1, graph=None if graph is None else lambda: graph)
    task = registry.partial_call("task", node("task", "classification"))()
    records = []
    for chunk in fit(state, loader, loader, task, SCHEDULE, runtime, **LOOP):
        records += [(r.split, r.step, {k: v for k, v in r.values.items() if k != "examples_per_second"}) for r in chunk]
    return state, records, torch.get_rng_state()


@pytest.mark.parametrize("optim", ["sgd", "adam", "adamw", "muon"])
@pytest.mark.parametrize("model", ["mlp", "lenet"])
def test_x(model, optim) -> None:
    replay = Replay()
    a = train(model, optim, None)
    b = train(model, optim, replay)
    assert replay.replays and replay.captures == 1
    for key, value in a[0].model.state_dict().items():
        assert torch.equal(value, b[0].model.state_dict()[key])
    assert a[1] == b[1]
    assert torch.equal(a[2], b[2])
    print(a[1])
