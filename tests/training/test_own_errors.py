"""An error in a user's own code shows its file, line and text, wherever and whenever it is raised."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from dltrain.report import run_reader
from dltrain.runtime.errors import ConfigError, UserError, located, user_line
from support.command import Command, Result

OWN = """
import os
from dataclasses import dataclass
import torch
from torch import nn
from dltrain.optim import optimizers, tasks

def at(place):
    return os.environ.get("FAIL") == place

class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 45

    def __getitem__(self, index):
        if at("item"): [].item
        return torch.full((1, 4, 4), index % 2 / 2 + index / 100), index % 2

def images(split):
    if at("data"): [].data
    if at("file"): open("no/such/file")
    if at("exit"): raise SystemExit(0)
    return Images() if split != "val" else None

class Net(nn.Module):
    def __init__(self, input_shape, num_classes):
        super().__init__()
        if at("init"): [].init
        self.layer = nn.Linear(16, num_classes)

    def forward(self, images):
        if at("forward"): [].forward
        if at("nested"): torch.zeros(3) @ torch.zeros(4)
        if at("last batch") and len(images) == 1 and self.training: [].last_batch
        if at("evaluation") and not self.training and len(images) > 2: [].evaluation
        if at("message"): raise ValueError("one\\ntwo\\nthree\\nfour")
        if at("memory") and self.training: raise MemoryError
        return self.layer(images.flatten(1))

    def initialize_from_images(self, images):
        if at("initialize"): [].initialize

    def attention_map(self, images):
        if at("map"): [].map

    def pretrained_weights(self):
        if at("weights"): [].weights
        if at("value"): raise ValueError("no weights")
        return self.state_dict()

class Step(torch.optim.SGD):
    def __init__(self, named_parameters, lr=0.1):
        if at("optimizer"): [].optimizer
        super().__init__([parameter for _, parameter in named_parameters], lr=lr)

    def step(self, closure=None):
        if at("step"): [].step
        return super().step(closure)

def rate(step, total_steps, **options):
    if at("schedule"): [].schedule
    return 1.0

@dataclass(frozen=True)
class Loss(tasks.Classification):
    def __post_init__(self):
        if at("task"): [].task

    def loss(self, outputs, inputs, targets):
        if at("loss"): [].loss
        return super().loss(outputs, inputs, targets)

    def sums(self, losses, outputs, targets):
        if at("sums"): [].sums
        return super().sums(losses, outputs, targets)

    def metrics(self, sums):
        if at("metrics"): [].metrics
        return super().metrics(sums)

    def mismatch(self, *arguments):
        if at("mismatch"): [].mismatch
        return super().mismatch(*arguments)

def hook(record, state):
    if at("hook"): [].hook
"""
TRAIN = ("train", "data=custom", "data.name=faults:images", "model=custom", "model.name=faults:Net", "optim=custom")
TRAIN += ("optim.name=faults:Step", "task=custom", "task.name=faults:Loss", "hooks=[faults:hook]", "epochs=2")
TRAIN += ("schedule.name=faults:rate", "batch_size=4", "report=false", "logger=none", "device.threads=1", "data.val=5")
# Where it fails, and the exit code: 2 and 66 before the first step, 1 later.
PLACES = {"data": 1, "item": 1, "file": 66, "init": 2, "forward": 2, "nested": 2, "message": 2, "initialize": 1}
PLACES |= {"weights": 1, "value": 2, "optimizer": 1, "schedule": 1, "task": 1, "mismatch": 1, "loss": 1, "sums": 1}
PLACES |= {"step": 1, "metrics": 1, "evaluation": 1, "memory": 1, "hook": 1, "exit": 1}


@pytest.fixture
def own(dltrain: Command) -> Iterator[Command]:
    Path("faults.py").write_text(OWN)
    yield dltrain
    for name in ("faults", "broken", "importing"):
        sys.modules.pop(name, None)


def line_of(text: str, file: str = "faults.py") -> str:
    """The place that an error is to show: FILE:LINE: TEXT."""
    lines = Path(file).read_text().splitlines()
    (number,) = (number for number, line in enumerate(lines, 1) if text in line)
    return f"{file}:{number}: {lines[number - 1].strip()}"


def require_place(result: Result, code: int, place: str) -> None:
    assert result.code == code, result.err
    assert place in result.err
    assert "DLTRAIN_TRACEBACK=1 shows the traceback" in result.err
    lines = result.err[result.err.index("error: ") :].splitlines()
    assert len(lines) <= 3, lines
    assert "Traceback" not in result.err


@pytest.mark.parametrize("place", PLACES)
def test_an_error_of_own_code_in_training_shows_its_line(
    own: Command, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("FAIL", place)
    result = own(*TRAIN)
    require_place(result, PLACES[place], line_of(f'at("{place}")'))
    if place in ("step", "metrics", "evaluation", "memory", "hook"):
        assert line_of(f'at("{place}")') in (result.folder / "train.log").read_text()


def test_an_error_in_the_last_batch_alone_shows_its_line(own: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIL", "last batch")
    require_place(own(*TRAIN, "data.limit=41", "data.val=0"), 1, line_of('at("last batch")'))  # ten batches, and one


@pytest.mark.parametrize("command", ["eval", "predict", "export", "resume", "--summary"])
def test_an_error_of_own_code_in_another_command_shows_its_line(
    own: Command, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    folder = own(*TRAIN, "limit_steps=1").folder
    Image.new("L", (4, 4)).save("a.png")
    monkeypatch.setenv("FAIL", "evaluation" if command in ("eval", "export") else "forward")
    overrides = {
        "eval": ("eval", f"ckpt={folder}"),
        "predict": ("predict", f"ckpt={folder}", "input=a.png"),
        "export": ("export", f"ckpt={folder}"),
        "resume": ("train", f"resume={folder}"),
        "--summary": (*TRAIN, "--summary"),
    }[command]
    result = own(*overrides, "trust=[faults]")
    require_place(result, 1 if command in ("eval", "export") else 2, line_of(f'at("{os.environ["FAIL"]}")'))


@pytest.mark.parametrize(
    ("text", "line"),
    [("import torch\nx = = 3\n", "x = = 3"), ("import torhc\n", "import torhc"), ("x = 1\n[].y\n", "[].y")],
)
@pytest.mark.parametrize("module", ["broken", "importing"])
def test_a_module_that_cannot_be_imported_shows_the_line_in_it(own: Command, text: str, line: str, module: str) -> None:
    Path("broken.py").write_text(text)
    Path("importing.py").write_text("import broken\n")
    own_lines = {key: f"{key}={module}:Net" for key in ("model.name", "task.name")}
    for overrides in (*own_lines.values(), f"hooks=[{module}:hook]"):
        sweep = ("-m", "seed=1,2") if overrides.startswith("hooks") else ()
        require_place(own("train", *sweep, overrides), 2, line_of(line, "broken.py"))


def test_an_analysis_that_fails_in_own_code_shows_its_line(own: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIL", "map")
    result = own(*TRAIN, "report=true")
    assert result.code == 0
    assert line_of('at("map")') in result.out


def test_a_job_of_a_sweep_has_the_line_in_its_reason(own: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIL", "loss")
    assert own(*TRAIN, "-m", "seed=1,2", "sweep.workers=1").code == 1
    (journal,) = Path("outputs").rglob("journal.jsonl")
    assert journal.read_text().count(line_of('at("loss")').replace('"', '\\"')) == 2
    (table,) = Path("outputs").rglob("results.csv")
    assert line_of('at("loss")').replace('"', '""') in table.read_text()


@pytest.mark.parametrize("place", ["loss", "forward"])
def test_the_whole_traceback_is_shown_when_it_is_asked_for(
    own: Command, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("FAIL", place)
    monkeypatch.setenv("DLTRAIN_TRACEBACK", "1")
    err = own(*TRAIN).err
    assert "Traceback (most recent call last)" in err
    assert f"in {place}" in err
    Path("broken.py").write_text("[].y\n")
    assert 'broken.py", line 1, in <module>' in own("train", "model.name=broken:Net").err


def fail_in_text() -> Exception:
    try:
        raise KeyError("text")
    except KeyError as error:
        return error


@pytest.mark.parametrize("lines", range(6))
def test_a_message_with_a_line_of_own_code_has_at_most_three_lines(lines: int) -> None:
    shown = located("\n".join(map(str, range(lines))), fail_in_text())
    assert len(shown.splitlines()) <= 3
    assert "test_own_errors.py" in shown.splitlines()[-1]
    assert located(shown, fail_in_text()) == shown


def test_the_nearest_cause_in_own_code_is_shown_and_errors_of_dltrain_are_not() -> None:
    inner = fail_in_text()
    outer = ConfigError("no")
    outer.__cause__ = ValueError("between")
    outer.__cause__.__cause__ = inner
    assert "raise KeyError" in user_line(outer)
    try:
        raise UserError("on purpose")
    except UserError as error:
        assert (user_line(error), located("as it is", error)) == ("", "as it is")


def test_an_error_in_code_that_is_not_the_users_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r".") as caught:
        run_reader.read(tmp_path)
    trace = caught.value.__traceback__
    assert trace is not None
    assert user_line(caught.value.with_traceback(trace.tb_next)) == ""


FAULTY = """
import torch
from dltrain.optim.tasks import Classification
from torch import nn

class Listed(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layers = [nn.Linear(784, num_classes)]

    def forward(self, images):
        return self.layers[0](images.flatten(1))

class Detached(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layer = nn.Linear(784, num_classes)

    def forward(self, images):
        return self.layer(images.flatten(1)).detach()

class Pair(Detached):
    def forward(self, images):
        outputs = self.layer(images.flatten(1))
        return (outputs, outputs) if self.training else outputs

def foreign(named_parameters):
    return torch.optim.SGD([nn.Parameter(torch.zeros(3))], lr=0.1)

def closing(named_parameters):
    return torch.optim.LBFGS([weight for _, weight in named_parameters])

def data():
    pass

class Few(Classification):
    def sums(self, losses, outputs, targets):
        return super().sums(losses, outputs, targets)[:, :2]
"""
LISTED = "no weights to train; are they frozen, or layers in a plain list?"


@pytest.mark.parametrize(
    ("override", "code", "text"),
    [
        ("model=faults:Listed", 2, LISTED),
        ("model=faults:Detached", 1, "with a gradient: no detach(), no_grad() here or in the model."),
        ("model=faults:Pair", 1, "Check your code: faults:Pair"),
        ("optim=faults:foreign", 2, LISTED),
        ("optim=faults:closing", 1, "Check your code: faults:closing"),
        ("task=faults:Few", 1, "not enough values to unpack (expected 3, got 2)\nCheck your code: faults:Few"),
        ("data=faults:data", 1, "Check your code: faults:data"),
    ],
)
def test_own_code_that_fails_outside_its_own_lines_is_named_in_three_lines_at_most(
    own: Command, override: str, code: int, text: str
) -> None:
    Path("faults.py").write_text(FAULTY)
    group, _, name = override.partition("=")
    result = own("train", "model=linear", f"{group}=custom", f"{group}.name={name}", "limit_steps=1", "report=false")
    assert (result.code, text in result.err, "Traceback" in result.err) == (code, True, False), result.err
    assert len(result.err.splitlines()) <= 3


@pytest.mark.parametrize("name", ["MyNet", "my_nets.MyNet"])
def test_a_class_without_its_module_is_explained(dltrain: Command, name: str) -> None:
    result = dltrain("train", "model=custom", f"model.name={name}")
    assert (result.code, f"give its module, model.name=module:{name}" in result.err) == (2, True), result.err
