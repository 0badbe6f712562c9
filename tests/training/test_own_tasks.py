"""A user's own task and hooks, in a module outside the package: trained, resumed, evaluated, swept, reported."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dltrain.checkpoints import checkpoint
from dltrain.config import registry, saved_config
from support.command import Command
from support.lives import Nursery
from support.tiers import mostly_slow

OWN = """
import os
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Interval
from dltrain.optim.tasks import Classification, Regression

@dataclass(frozen=True)
class Ordinal(Classification):
    \"\"\"Cross entropy plus the expected distance from the true class.

    Args:
        distance: weight of that distance
    \"\"\"

    distance: Annotated[float, Interval(ge=0)] = 1.0

    def loss(self, outputs, inputs, targets):
        distances = (torch.arange(outputs.shape[1]) - targets.unsqueeze(1)).abs()  # (B, K)
        expected = (outputs.softmax(dim=1) * distances).sum(dim=1).mean()
        return super().loss(outputs, inputs, targets) + self.distance * expected

    def sums(self, losses, outputs, targets):
        off = (outputs.argmax(dim=2) - targets).abs().double().sum(dim=1, keepdim=True)
        return torch.cat([super().sums(losses, outputs, targets), off], dim=1)

    def metrics(self, sums):
        return super().metrics(sums[:3]) | {"off_by": sums[3] / sums[0]}

class Plain(Classification):
    pass

class Squared(Regression):
    def mismatch(self, *arguments):
        return ""

    def loss(self, outputs, inputs, targets):
        return super().loss(outputs, inputs, torch.nn.functional.one_hot(targets, 10).float())

    def sums(self, losses, outputs, targets):
        return super().sums(losses, outputs, torch.nn.functional.one_hot(targets, 10).float())

class Alone:
    \"\"\"Of no base.\"\"\"

    def loss(self, outputs, inputs, targets):
        return torch.nn.functional.cross_entropy(outputs, targets)

    def sums(self, losses, outputs, targets):
        return torch.stack([torch.full_like(losses, targets.shape[1]), losses], dim=1).double()

    def metrics(self, sums):
        return {"loss": sums[1]}

    def score(self, metrics):
        return (-metrics["loss"],)

    def mismatch(self, *arguments):
        return ""

class EachByItself(Classification):
    def loss(self, outputs, inputs, targets):
        return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")

class Wrong(Classification):
    def loss(self, outputs, inputs, targets):
        loss = super().loss(outputs, inputs, targets)
        return {"number": 1.0, "nothing": None, "detached": loss.detach(), "row": loss[None]}.get(at(), loss)

    def sums(self, losses, outputs, targets):
        rows = super().sums(losses, outputs, targets)
        return {"sums": 1.0, "one row": rows.sum(0, keepdim=True)}.get(at(), rows)

    def metrics(self, sums):
        wrong = {"no metrics": None, "no loss": {"accuracy": 0.5}, "tensor": {"loss": torch.ones(())}}
        return wrong.get(at(), super().metrics(sums))

    def score(self, metrics):
        return {"no tuple": 0.5, "nan": (float("nan"),)}.get(at(), super().score(metrics))

def at():
    return os.environ.get("WRONG")

def rate(step, total_steps, scores):
    factor = torch.rand(()).double().numpy()[()]
    return factor if step < 2 else {"none": None, "text": "0.1", "nan": float("nan"), "negative": -1.0}[at()]

class Lacking:
    def loss(self, outputs, inputs, targets):
        return outputs.mean()

def seen(name, record):
    with open("seen.txt", "a") as file:
        file.write(f"{name} {record.split} {record.step}\\n")

def first(record, state):
    assert state.step == record.step
    seen("first", record)
    if record.split == "val" and record.step >= 8:
        return "loss is low" if torch.rand(()) < 2 else None

def second(record, state):
    seen("second", record)
    return record.split == "val" and record.step >= 12

def noisy(record, state):
    with torch.no_grad():
        for weight in state.model.parameters():
            weight.add_(torch.randn_like(weight) / 100)

def failing(record, state):
    seen("failing", record)
    if record.step == 8 and record.split == "train" and not os.path.exists("mended"):
        raise RuntimeError("a mistake")

def leaving(record, state):
    raise SystemExit(0)

def interrupted(record, state):
    return "interrupted"

def blank(record, state):
    return " "

def without_gradients(record, state):
    torch.set_grad_enabled(False)

def in_double(record, state):
    torch.set_default_dtype(torch.float64)

def back_to_the_start(record, state):
    state.step = 0

def yielding(record, state):
    yield "never run"

def evaluating(record, state):
    state.model.eval()

def emptying(record, state):
    record.values.clear()

def ruining(record, state):
    for weight in state.model.parameters():
        weight.data.fill_(float("nan"))
    raise RuntimeError("a mistake")

def of_rank_1(record, state):
    if os.environ["RANK"] == "1" and record.step == 8:
        if os.path.exists("fail"):
            raise RuntimeError("of rank 1")
        return "rank 1 has seen enough"
"""
QUICK = ("model=mlp", "model.hidden=[8]", "data.limit=100", "data.val=20", "epochs=4", "batch_size=20", "report=false")
QUICK += ("logger=none", "device.threads=1", "trust=[own_tasks]")  # four steps in an epoch
ORDINAL = ("task=custom", "task.name=own_tasks:Ordinal")


@pytest.fixture
def own(dltrain: Command) -> Iterator[Command]:
    Path("own_tasks.py").write_text(OWN)
    yield dltrain
    sys.modules.pop("own_tasks", None)


def last(folder: Path) -> dict[str, Any]:
    return checkpoint.load(folder / "checkpoints" / "last.pt")


def weights(folder: Path) -> dict[str, bytes]:
    return {key: value.numpy().tobytes() for key, value in last(folder)["model"].items()}


def records(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in ("examples_per_second", "time")} for line in lines]


def summary(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return content


def test_an_own_task_is_trained_evaluated_predicted_exported_and_reported_like_its_base(own: Command) -> None:
    folder = own("train", *QUICK, *ORDINAL, "+task.distance=0.5", "report=true").folder
    assert set(summary(folder)["test"]) == {"loss", "accuracy", "off_by"}
    assert "Confusion matrix" in (folder / "report.html").read_text()
    result = own("eval", f"ckpt={folder}", "tta=flip", "trust=[own_tasks]", "--json")
    document = json.loads(result.out)
    assert {"off_by", "accuracy", "confusion"} <= set(document)
    Image.new("L", (28, 28)).save("a.png")
    assert own("predict", f"ckpt={folder}", "input=a.png", "trust=[own_tasks]").code == 0
    assert Path("predictions.csv").read_text().startswith("file,class_1")
    assert own("export", f"ckpt={folder}", "format=safetensors", "trust=[own_tasks]").code == 0
    assert own("report", str(folder)).code == 0


def test_an_own_task_has_the_keys_defaults_and_meanings_of_its_base(own: Command) -> None:
    for name in ("Ordinal", "Plain"):
        found = registry.signature("task", f"own_tasks:{name}")
        known = registry.signature("task", "classification")
        assert found is not None
        assert known is not None
        for key, rule in known.keys.items():
            assert (found.keys[key].hint, found.keys[key].meaning) == (rule.hint, rule.meaning)
            assert not found.keys[key].required
        assert registry.partial_call("task", {"name": f"own_tasks:{name}"})().label_smoothing == 0
        node = {"name": f"own_tasks:{name}", "label_smoothing": 0.1}
        assert registry.partial_call("task", node)().label_smoothing == 0.1
    result = own("train", *QUICK, *ORDINAL, "+task.distance=-1", "+task.label_smoothing=2", "+task.distanec=1")
    assert result.code == 2
    told = ("task.distance=-1: must be a number >= 0", "task.label_smoothing=2: must be", "did you mean task.distance?")
    assert all(text in result.err for text in told), result.err


@pytest.mark.parametrize("name", ["Squared", "Alone"])
def test_an_own_task_without_classes_is_evaluated_and_refused_where_classes_are_needed(own: Command, name: str) -> None:
    folder = own("train", *QUICK, "task=custom", f"task.name=own_tasks:{name}", "report=true").folder
    trust = "trust=[own_tasks]"
    assert own("eval", f"ckpt={folder}", trust).code == 0
    result = own("eval", f"ckpt={folder}", "tta=flip", trust)
    assert (result.code, "needs a classifier" in result.err) == (2, True)
    Image.new("L", (28, 28)).save("a.png")
    result = own("predict", f"ckpt={folder}", "input=a.png", trust)
    if name == "Alone":
        assert (result.code, "was trained with own_tasks:Alone" in result.err) == (2, True)


def test_a_task_that_lacks_a_method_is_refused_before_the_data_is_read(own: Command) -> None:
    result = own("train", *QUICK, "data=mnist", "task=custom", "task.name=own_tasks:Lacking")
    assert (result.code, "lacks sums, metrics, score, mismatch; derive it" in result.err) == (2, True), result.err


@pytest.mark.parametrize("stop", mostly_slow([1, 4, 6, 8, 11], fast=[6]))
def test_a_run_with_an_own_task_and_a_hook_that_draws_resumes_to_the_same_bits(own: Command, stop: int) -> None:
    overrides = (*QUICK, *ORDINAL, "hooks=[own_tasks:noisy]", "model.dropout=0.2", "log_every=3", "ema=0.9")
    whole = own("train", *overrides).folder
    part = own("train", *overrides, f"limit_steps={stop}").folder
    assert own("train", f"resume={part}", "limit_steps=null", "trust=[own_tasks]").code == 0
    assert weights(part) == weights(whole)
    assert records(part) == records(whole)
    assert weights(own("train", *QUICK, *ORDINAL, "model.dropout=0.2").folder) != weights(whole)


def test_hooks_are_called_in_their_order_after_each_record_and_a_text_ends_the_run(own: Command) -> None:
    folder = own("train", *QUICK, "hooks=[own_tasks:second,own_tasks:first]").folder
    calls = [(split, step) for step in (4, 8) for split in ("train", "val")]
    expected = [f"{name} {split} {step}" for split, step in calls for name in ("second", "first")]
    assert sorted(Path("seen.txt").read_text().splitlines()) == sorted(expected)
    assert Path("seen.txt").read_text().splitlines() == expected
    assert summary(folder)["status"] == "loss is low"
    assert summary(folder)["test"] is not None
    result = own("train", f"resume={folder}", "hooks=[own_tasks:second]", "trust=[own_tasks]")
    assert "resume: hooks changed: from here on the run differs" in result.out
    assert (summary(folder)["status"], summary(folder)["steps"]) == ("own_tasks:second", 12)


def test_a_failing_hook_ends_a_run_that_is_saved_with_all_its_records(own: Command) -> None:
    whole = own("train", *QUICK).folder
    result = own("train", *QUICK, "hooks=[own_tasks:failing]", "checkpoint_every=1000")
    assert result.code == 1
    folder = result.folder
    first, place, saved = result.err.splitlines()
    assert first == "error: hook own_tasks:failing failed: RuntimeError: a mistake"
    assert 'raise RuntimeError("a mistake")' in place
    assert f"resume={folder}" in saved
    assert last(folder)["step"] == 8
    Path("mended").touch()
    assert own("train", f"resume={folder}", "trust=[own_tasks]").code == 0
    assert (weights(folder), records(folder)) == (weights(whole), records(whole))


@pytest.mark.parametrize(
    ("hooks", "told"),
    [
        ("own_tasks:first", "must be a list, each module:function"),
        ("[os.system]", "must be a list, each module:function"),
        ("[own_tasks:nothing]", "hooks=own_tasks:nothing: own_tasks has no function or class nothing"),
        ("[nowhere:first]", "hooks=nowhere:first: cannot import nowhere (ModuleNotFoundError"),
        ("[own_tasks:QUICK]", "has no function or class QUICK"),
    ],
)
def test_hooks_that_cannot_be_called_are_refused_before_the_data_is_read(own: Command, hooks: str, told: str) -> None:
    result = own("train", "data=mnist", f"hooks={hooks}")
    assert (result.code, told in result.err) == (2, True), result.err


def test_jobs_of_a_sweep_call_hooks_and_may_search_keys_of_an_own_task(own: Command) -> None:
    result = own("train", "-m", *QUICK, *ORDINAL, "hooks=[own_tasks:first]", "+task.distance=0,2", "sweep.workers=1")
    assert result.code == 0, result.err
    (table,) = Path("outputs").rglob("results.csv")
    assert table.read_text().count("loss is low") == 2
    assert "test_off_by" in table.read_text()
    search = ("sweep.search=random", "sweep.trials=2", "sweep.workers=1", "epochs=1")
    result = own("train", "-m", *QUICK, *ORDINAL, "+task.distance=0,2", *search)
    assert (result.code, "val_accuracy" in result.out) == (0, True), result.err


def test_hooks_of_a_checkpoint_need_trust_and_are_shown_by_inspect(own: Command) -> None:
    folder = own("train", *QUICK, "hooks=[own_tasks:noisy]", "limit_steps=2").folder
    for arguments in (("train", f"resume={folder}"), ("eval", f"ckpt={folder}")):
        result = own(*arguments)
        assert (result.code, "add trust=[own_tasks]" in result.err) == (2, True)
    assert "own_tasks:noisy: runs only with trust=" in own("inspect", folder / "checkpoints" / "last.pt").out
    assert saved_config.with_added({"seed": 0})["hooks"] == []


def test_a_loss_that_is_no_mean_is_named_with_its_shape(own: Command) -> None:
    result = own("train", *QUICK, "task=custom", "task.name=own_tasks:EachByItself", "metric=f1_macro")
    assert result.code == 1
    assert "error: task=own_tasks:EachByItself: loss returned a tensor (20,)" in result.err


@pytest.mark.parametrize(
    ("wrong", "shown", "rule"),
    [
        ("number", "loss returned 1.0", "It must return the mean loss ()"),
        ("nothing", "loss returned None", "It must return the mean loss ()"),
        ("detached", "loss returned a tensor () with grad_fn=None", "with a gradient: no detach()"),
        ("row", "loss returned a tensor (1,)", "It must return the mean loss ()"),
        ("sums", "sums returned 1.0", "It must return float64 sums (N, S)"),
        ("one row", "sums returned a tensor (1, 3)", "a row for each of N batches"),
        ("no metrics", "metrics returned None", "It must return metrics by name, a dict of floats"),
        ("no loss", "metrics returned {'accuracy': 0.5}", "the first one is `loss`"),
        ("tensor", "metrics returned {'loss': tensor(1.)}", "It must return metrics by name, a dict of floats"),
        ("no tuple", "score returned 0.5", "It must return a tuple of finite floats"),
        ("nan", "score returned (nan,)", "It must return a tuple of finite floats"),
    ],
)
def test_a_method_of_a_task_that_returns_something_else_is_named_with_what_it_must_return(
    own: Command, monkeypatch: pytest.MonkeyPatch, wrong: str, shown: str, rule: str
) -> None:
    monkeypatch.setenv("WRONG", wrong)
    result = own("train", *QUICK, "task=custom", "task.name=own_tasks:Wrong", "epochs=1")
    lines = result.err.splitlines()
    assert (result.code, len(lines)) == (1, 2), result.err
    assert shown in lines[0]
    assert "task=own_tasks:Wrong: " in lines[0]
    assert rule in lines[1]


@pytest.mark.parametrize(
    ("wrong", "shown"), [("none", "None"), ("text", "'0.1'"), ("nan", "nan"), ("negative", "-1.0")]
)
def test_a_schedule_that_returns_no_factor_is_named(
    own: Command, monkeypatch: pytest.MonkeyPatch, wrong: str, shown: str
) -> None:
    monkeypatch.setenv("WRONG", wrong)
    schedule = ("schedule=custom", "schedule.name=own_tasks:rate")
    result = own("train", *QUICK, *schedule, "checkpoint_every=1")
    expected = f"error: schedule rate: {shown} is no finite number >= 0, a factor on optim.lr\n"
    assert (result.code, result.err) == (1, expected)
    folder = result.folder
    assert last(folder)["step"] == 2


@pytest.mark.parametrize("hook", ["without_gradients", "in_double", "back_to_the_start", "yielding"])
def test_a_hook_that_changes_what_training_needs_ends_the_run_saved_and_leaves_no_trace(
    own: Command, hook: str
) -> None:
    result = own("train", *QUICK, f"hooks=[own_tasks:{hook}]")
    first, second = result.err.splitlines()
    assert (result.code, torch.is_grad_enabled(), torch.get_default_dtype()) == (1, True, torch.float32)
    assert f"hook own_tasks:{hook} failed: RuntimeError: it must leave gradient mode, default dtype and state" in first
    assert f"The run is saved: resume={result.folder}" in second
    assert last(result.folder)["step"] == 4


def test_a_hook_that_leaves_the_model_in_evaluation_mode_changes_no_weights(own: Command) -> None:
    overrides = (*QUICK, "model.dropout=0.5", "log_every=1", "epochs=1")
    whole, part = own("train", *overrides).folder, own("train", *overrides, "hooks=[own_tasks:evaluating]").folder
    assert weights(part) == weights(whole)


def test_checkpoints_of_an_own_classification_and_its_base_are_ranked_by_accuracy_and_averaged(own: Command) -> None:
    folders = [own("train", *QUICK, "epochs=1").folder, own("train", *QUICK, *ORDINAL, "epochs=2").folder]
    result = own("eval", f"ckpt=[{folders[0]},{folders[1]}]", "ensemble=true", "trust=[own_tasks]", "--json")
    document = json.loads(result.out)
    assert (result.code, "different tasks or metrics: ranked by accuracy" in result.err) == (0, True), result.err
    best = max(document["members"], key=lambda member: member["accuracy"])["checkpoint"]
    first = next(line for line in result.err.splitlines() if line.startswith("│"))
    assert next(folder for folder in folders if f"{folder}/" in first) == Path(best).parents[1]


def test_a_hook_that_exits_with_code_0_is_a_failure(own: Command) -> None:
    result = own("train", *QUICK, "hooks=[own_tasks:leaving]", "checkpoint_every=1000")
    assert (result.code, last(result.folder)["step"]) == (1, 4)
    assert "error: hook own_tasks:leaving failed: SystemExit: 0" in result.err


@pytest.mark.parametrize("name", ["interrupted", "blank"])
def test_a_text_that_means_something_else_to_sweeps_is_no_status(own: Command, name: str) -> None:
    found = summary(own("train", *QUICK, f"hooks=[own_tasks:{name}]").folder)
    assert (found["status"], found["steps"], "test" in found) == (f"own_tasks:{name}", 4, True)


def test_a_hook_that_changes_its_record_changes_no_metrics_of_the_run(own: Command) -> None:
    whole, changed = own("train", *QUICK).folder, own("train", *QUICK, "hooks=[own_tasks:emptying]").folder
    assert (summary(changed)["best"], summary(changed)["val"]) == (summary(whole)["best"], summary(whole)["val"])


def test_a_failing_hook_that_has_ruined_the_weights_leaves_the_checkpoint_before_it(own: Command) -> None:
    result = own("train", *QUICK, "hooks=[own_tasks:ruining]", "checkpoint_every=3")
    assert (result.code, last(result.folder)["step"]) == (1, 3)
    assert "failed: RuntimeError: a mistake" in result.err
    assert f"A weight is not finite; earlier checkpoints are kept: resume={result.folder}" in result.err


@pytest.mark.parametrize("fails", mostly_slow([False, True], fast=[True]))
def test_what_a_hook_of_one_rank_says_ends_all_ranks(lives: Nursery, tmp_path: Path, fails: bool) -> None:
    from runtime.test_distributed import end, printed, start

    (tmp_path / "own_tasks.py").write_text(OWN)
    if fails:
        (tmp_path / "fail").touch()
    processes = start(lives, tmp_path, "train", *QUICK, "hooks=[own_tasks:of_rank_1]")
    codes = end(lives, processes)
    (folder,) = tmp_path.glob("outputs/*/*")
    assert last(folder)["step"] == 8
    if fails:
        assert codes in ([1, 1], [1, 143])  # rank 1 leaves the report to rank 0, and is ended while it waits
        assert (
            "error: hook own_tasks:of_rank_1 failed: RuntimeError: of rank 1\nat own_tasks.py:" in printed(processes)[0]
        )
    else:
        assert codes == [0, 0], printed(processes)
        assert summary(folder)["status"] == "rank 1 has seen enough"
