"""The moving average of the weights: its definition, what is validated, tested and kept, the same after a resume."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dltrain.checkpoints import checkpoint
from dltrain.data.loader import TensorLoader
from dltrain.data.splits import Examples
from dltrain.engine import evaluate, fit
from dltrain.optim import schedules
from dltrain.optim.ema import swapped_in_ema, update_ema
from dltrain.optim.step import TrainState
from dltrain.optim.tasks import Classification
from dltrain.runtime.devices import Runtime
from support.command import Command
from support.tiers import mostly_slow

CPU = Runtime(torch.device("cpu"), "fp32", 1)
RUN = (
    "train",
    "model=cnn",
    "model.widths=[4]",
    "model.hidden=8",
    "model.batch_norm=true",
    "data.limit=150",
    "epochs=3",
)
RUN += ("batch_size=20", "log_every=3", "ema=0.9", "report=false", "logger=none")


def fresh() -> TrainState:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))
    return TrainState(model, torch.optim.SGD([{"params": model.parameters(), "initial_lr": 0.5}], lr=0.5))


def batches() -> TensorLoader:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (40, 1, 2, 2), generator=generator, dtype=torch.uint8)
    examples = Examples(images, torch.randint(0, 3, (40,), generator=generator), tuple("abc"))
    return TensorLoader(examples, CPU.device, batch_size=8, statistics=((0.5,), (0.25,)))


def trained(state: TrainState, ema: float | None, epochs: int = 2) -> Any:
    settings = {
        "epochs": epochs,
        "log_every": 100,
        "accumulate": 1,
        "clip_norm": None,
        "on_nonfinite": "stop",
        "ema": ema,
    }
    return fit(
        state, batches(), batches(), Classification(0.0), partial(schedules.constant, warmup=0.0), CPU, **settings
    )


def copied(state: TrainState) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in state.model.state_dict().items()}


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_the_average_is_that_of_its_definition(decay: float) -> None:
    state, expected = fresh(), None
    for _ in trained(state, decay):
        own = copied(state)
        if expected is None:
            expected = own
            continue
        kept = min(decay, (1 + state.step) / (10 + state.step))
        for key, value in own.items():
            expected[key] = kept * expected[key] + (1 - kept) * value if value.is_floating_point() else value
    assert expected is not None and state.ema_weights is not None
    for key, value in expected.items():
        torch.testing.assert_close(state.ema_weights[key], value, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(expected["1.weight"], state.model.state_dict()["1.weight"], atol=1e-3)


def test_the_weights_themselves_are_trained_as_without_an_average() -> None:
    plain, state = fresh(), fresh()
    list(trained(plain, None))
    list(trained(state, 0.9))
    assert plain.ema_weights is None
    assert all(torch.equal(value, copied(state)[key]) for key, value in copied(plain).items())


def test_validation_uses_the_averaged_weights() -> None:
    state = fresh()
    for chunk in trained(state, 0.8, epochs=1):
        found = [record.values for record in chunk if record.split == "val"]
    (values,) = found
    own = evaluate(state.model, batches(), Classification(0.0), CPU)
    assert state.ema_weights is not None
    state.model.load_state_dict(state.ema_weights)
    assert values == evaluate(state.model, batches(), Classification(0.0), CPU)
    assert values != own


def test_the_weights_are_restored_to_the_bit_even_after_an_error() -> None:
    state = fresh()
    list(trained(state, 0.9))
    before = copied(state)
    with pytest.raises(KeyError), swapped_in_ema(state):
        assert state.ema_weights is not None
        assert all(torch.equal(value, state.ema_weights[key]) for key, value in copied(state).items())
        raise KeyError
    assert all(torch.equal(value, before[key]) for key, value in copied(state).items())


def test_averages_do_not_depend_on_the_memory_layout() -> None:
    states = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = nn.Conv2d(3, 4, 3).to(memory_format=layout)
        state = TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1))
        for step in range(4):
            with torch.no_grad():
                model.weight.mul_(0.5).add_(step)
            state.step += 1
            update_ema(state, 0.9)
        states.append(state.ema_weights)
    torch.testing.assert_close(states[0], states[1])


def test_a_mask_of_infinite_values_stays_unchanged_in_the_ema() -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
    state = TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for _ in range(3):
        state.step += 1
        update_ema(state, 0.9)
    assert state.ema_weights is not None
    assert torch.equal(state.ema_weights["mask"], model.state_dict()["mask"])


# --- runs


def weights(folder: Path, name: str) -> dict[str, Any]:
    return checkpoint.load(folder / "checkpoints" / name)


def figures(folder: Path, split: str) -> dict[str, float]:
    return json.loads((folder / "summary.json").read_text())[split]


def test_best_and_last_are_evaluated_by_their_averages(dltrain: Command) -> None:
    folder = dltrain(*RUN).folder
    best, last = weights(folder, "best.pt")["model"], weights(folder, "last.pt")
    assert best.keys() == last["averages"].keys()
    assert not torch.equal(best["features.0.weight"], last["model"]["features.0.weight"])
    assert dltrain("eval", f"ckpt={folder}").code == 0
    found = json.loads((folder / "checkpoints" / "eval.json").read_text())
    assert {key: found[key] for key in ("loss", "accuracy")} == figures(folder, "test")
    assert dltrain("eval", f"ckpt={folder}/checkpoints/last.pt", "split=val").code == 0
    found = json.loads((folder / "checkpoints" / "last-eval-val.json").read_text())
    assert {key: found[key] for key in ("loss", "accuracy")} == figures(folder, "val")


def test_without_validation_the_last_average_is_tested_and_kept(dltrain: Command) -> None:
    folder = dltrain(*RUN, "data.val=0").folder
    averages = weights(folder, "last.pt")["averages"]
    assert all(torch.equal(value, averages[key]) for key, value in weights(folder, "best.pt")["model"].items())
    assert dltrain("eval", f"ckpt={folder}").code == 0
    found = json.loads((folder / "checkpoints" / "eval.json").read_text())
    assert {key: found[key] for key in ("loss", "accuracy")} == figures(folder, "test")


@pytest.mark.parametrize("stop", mostly_slow([1, 7, 13, 20], fast=[7]))
def test_a_stopped_and_resumed_run_has_the_averages_of_an_unbroken_one(dltrain: Command, stop: int) -> None:
    whole, stopped = dltrain(*RUN).folder, dltrain(*RUN, f"limit_steps={stop}").folder
    assert dltrain("train", f"resume={stopped}", "limit_steps=null").code == 0
    for name, parts in (("last.pt", ("model", "averages")), ("best.pt", ("model",))):
        one, other = weights(whole, name), weights(stopped, name)
        assert all(torch.equal(value, other[part][key]) for part in parts for key, value in one[part].items())


def test_a_resume_may_begin_and_end_to_average(dltrain: Command) -> None:
    folder = dltrain(*RUN[:-1], "limit_steps=7").folder
    assert dltrain("train", f"resume={folder}", "limit_steps=14", "ema=0.5").code == 0
    assert weights(folder, "last.pt")["averages"]
    assert dltrain("train", f"resume={folder}", "limit_steps=null", "ema=null").code == 0
    assert weights(folder, "last.pt")["averages"] is None


def test_a_run_that_starts_from_the_last_checkpoint_starts_from_its_averages(dltrain: Command) -> None:
    folder = dltrain(*RUN, "limit_steps=12").folder
    other = dltrain(*RUN, "limit_steps=1", "optim.lr=1e-12", f"init={folder}/checkpoints/last.pt").folder
    found, wanted = weights(other, "last.pt")["model"], weights(folder, "last.pt")["averages"]
    torch.testing.assert_close(found["features.0.weight"], wanted["features.0.weight"], rtol=0, atol=1e-6)


def test_averages_that_are_not_the_model_s_are_refused(dltrain: Command) -> None:
    folder = dltrain(*RUN, "limit_steps=7").folder
    path = folder / "checkpoints" / "last.pt"
    content = checkpoint.load(path)
    content["averages"]["classifier.1.weight"] = torch.zeros(1)
    checkpoint.save(path, content, keep=1)
    result = dltrain("train", f"resume={folder}", "limit_steps=null")
    assert result.code == 66
    assert len(result.err.splitlines()) <= 3
    assert dltrain("eval", f"ckpt={path}").code == 66


def test_an_ema_decay_outside_its_range_is_refused(dltrain: Command) -> None:
    for share in ("0", "1", "1.5"):
        result = dltrain("train", f"ema={share}")
        assert result.code == 2
        assert f"ema={share}: must be a number > 0, < 1 or null" in result.err
