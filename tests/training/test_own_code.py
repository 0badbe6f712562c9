"""A person's own model, data and optimizer: what they may be, and what is told early where they may not."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from dltrain.checkpoints import checkpoint
from dltrain.config import signatures
from dltrain.runtime import devices
from support.command import Command
from support.onnx_files import metadata, session

MINE = """
import torch
from torch import nn

def pictures(split, greatest=1.0, least=0.0, shape=(1, 4, 4), left_out=""):
    if split in ("val", left_out):
        return None
    generator = torch.Generator().manual_seed(len(split))
    labels = torch.arange(40) % 2
    share = torch.rand(40, *shape, generator=generator) * 0.4 + 0.6 * labels.view(-1, 1, 1, 1)
    return share * (greatest - least) + least, labels, ["dark", "light"]

def listed(split):
    found = pictures(split)
    return found and list(found)

def spoiled(split, bad):
    images, labels, names = pictures("train")
    images[0, 0, 0, 0] = float(bad) if split == "train" else 0
    return None if split == "val" else (images, labels, names)

def named(split, kind):
    if (found := pictures(split)) is None:
        return None
    names = {"keys": {"dark": 0, "light": 1}.keys(), "map": map(str, range(2)), "twice": ["dark", "dark"]}[kind]
    return *found[:2], names

def counted(split):
    return (*pictures(split)[:2], 2)

def three(split):
    return 3

def triples(split):
    return [(1, 2, 3)]

class Net(nn.Module):
    def __init__(self, input_shape, num_classes, hidden=4):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(16, hidden), nn.ReLU(), nn.Linear(hidden, num_classes))

    def forward(self, images):
        return self.layers(images)

class Spread(Net):
    def __init__(self, input_shape, num_classes):
        super().__init__(input_shape, num_classes)
        self.register_buffer("mask", torch.ones(1, 1, 1).expand(1, 4, 4))

class Mute(nn.Module):
    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, num_classes))

    def train(self, mode=True):
        super().train(mode)  # and returns nothing

    def forward(self, images):
        return self.layers(images)

class Late(Net):
    def forward(self, images):
        if not hasattr(self, "late"):
            self.register_buffer("late", torch.zeros(3))
        return super().forward(images)

class Counting(Mute):
    def __init__(self, input_shape, num_classes):
        super().__init__(input_shape, num_classes)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, images):
        self.count = self.count + 1
        return super().forward(images)

class Silent(Net):
    def forward(self, images):
        assert not len(images)

class Remembering(torch.optim.SGD):
    def __init__(self, named_parameters, lr=0.1):
        super().__init__([parameter for _, parameter in named_parameters], lr=lr)

    def step(self, closure=None):
        super().step(closure)
        self.state["all"]["seen"] = {1, 2}
"""
QUICK = ("model=mlp", "model.hidden=[8]", "epochs=3", "batch_size=10", "data=custom", "trust=[mine]")
QUICK += ("report=false", "logger=none")


@pytest.fixture
def own(dltrain: Command) -> Iterator[Command]:
    Path("mine.py").write_text(MINE)
    yield dltrain
    sys.modules.pop("mine", None)


def trained(own: Command, *words: str) -> Path:
    result = own("train", *QUICK, "data.name=mine:pictures", *words)
    assert result.code == 0, result.err
    return result.folder


def test_an_input_of_one_second_of_sound_is_trained_evaluated_and_resumed(own: Command) -> None:
    folder = trained(own, "+data.shape=[1,1,16000]")
    assert own("eval", f"ckpt={folder}", "trust=[mine]").code == 0
    assert own("train", f"resume={folder}", "epochs=4", "trust=[mine]").code == 0


def write_pictures(folder: Path) -> None:
    folder.mkdir()
    for number in range(6):
        Image.new("L", (4, 4), 230 if number % 2 else 30).save(folder / f"{number}.png")


def test_images_are_predicted_by_a_network_trained_on_floats_from_0_to_1(own: Command) -> None:
    folder = trained(own, "epochs=20")
    write_pictures(Path("shots"))
    assert own("predict", f"ckpt={folder}", "input=shots", "trust=[mine]").code == 0
    rows = Path("predictions.csv").read_text().splitlines()[1:]
    assert [row.split(",")[1] for row in rows] == ["dark", "light"] * 3


@pytest.mark.parametrize(("least", "greatest"), [(0.0, 255.0), (-1.0, 1.0)])
def test_no_image_is_predicted_by_a_network_trained_on_floats_of_another_scale(
    own: Command, least: float, greatest: float
) -> None:
    words = (f"+data.greatest={greatest}", f"+data.least={least}", "data.mean=[0.5]", "data.std=[1.0]")
    folder = trained(own, *words)
    write_pictures(Path("shots"))
    result = own("predict", f"ckpt={folder}", "input=shots", "trust=[mine]")
    assert (result.code, "trained on values from" in result.err) == (2, True)
    assert own("eval", f"ckpt={folder}", "trust=[mine]").code == 0


def test_an_export_of_a_network_trained_on_floats_takes_floats_even_without_its_data(own: Command) -> None:
    folder = trained(own, "+data.greatest=255", "data.mean=[110]", "data.std=[50]", "+data.left_out=test")
    assert own("export", f"ckpt={folder}", "trust=[mine]").code == 0
    assert session().get_inputs()[0].type == "tensor(float)"
    assert "values as in the data set" in metadata()["input"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["optim=custom", "optim.name=mine:Remembering"], "set"),
        (["model=custom", "model.name=mine:Spread", "~model.hidden"], "a tensor"),
    ],
)
def test_state_that_no_checkpoint_can_hold_is_reported_at_the_start(own: Command, words: list[str], told: str) -> None:
    words = [word for word in words if not word.startswith("~")]
    quick = [word for word in QUICK if not (words[0].startswith("model") and word.startswith("model"))]
    result = own("train", *quick, "data.name=mine:pictures", "epochs=100000", "checkpoint_every=2", *words)
    assert result.code == 2, result.out
    assert "a checkpoint of this run could not be loaded again" in result.err
    assert told in result.err


@pytest.mark.parametrize("words", [[], ["data.name=mine:pictures"]])
def test_a_checkpoint_is_checked_again_once_the_optimizer_has_state(
    own: Command, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    checked: list[object] = []
    monkeypatch.setattr(checkpoint, "_require_readable", lambda *content: checked.append(content))
    quick = QUICK if words else ("model=linear", "data.limit=100")
    assert own("train", *quick, "epochs=3", "checkpoint_every=1", *words).code == 0
    assert len(checked) == 2


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("counted", "class names must be a list of strings, got 2"),
        ("three", "expected (images, labels, class names) or a Dataset; got int"),
        ("triples", "each item of the data set must be (image, label)"),
    ],
)
def test_a_data_function_with_a_wrong_return_value_is_reported_in_one_line(own: Command, name: str, told: str) -> None:
    result = own("train", *QUICK, f"data.name=mine:{name}")
    assert (result.code, result.err.count("\n"), told in result.err) == (66, 1, True), result.err


def test_a_data_function_may_return_a_list_in_place_of_a_tuple(own: Command) -> None:
    assert own("train", *QUICK, "data.name=mine:listed").code == 0


def test_a_model_that_fails_without_a_message_is_reported_by_the_type_of_its_error(own: Command) -> None:
    result = own("train", *QUICK[4:], "data.name=mine:pictures", "model=custom", "model.name=mine:Silent")
    first, place = result.err.splitlines()
    assert (result.code, first) == (2, "error: model=mine:Silent does not fit data of (1, 4, 4): AssertionError")
    assert place.startswith("at mine.py:")


@pytest.mark.parametrize("name", ["Mute", "Late", "Counting"])
def test_a_trial_pass_restores_mode_and_buffers_that_a_model_changes(own: Command, name: str) -> None:
    words = ("data=custom", "data.name=mine:pictures", "model=custom", f"model.name=mine:{name}", "trust=[mine]")
    result = own("train", *words, "epochs=1", "batch_size=10", "data.val=0", "data.limit=30")
    assert result.code == 0, result.err


def test_trial_passes_leave_the_buffers_of_a_network_unchanged(own: Command) -> None:
    network = signatures.user_object("mine:Counting")(input_shape=(1, 4, 4), num_classes=2)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    generator = torch.get_rng_state()
    with pytest.raises(ValueError, match="the true reason"), devices.preserved_state(network):
        network(torch.rand(2, 1, 4, 4))
        raise ValueError("the true reason")
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_missing_parameter_of_a_custom_model_is_suggested_with_a_plus(own: Command) -> None:
    words = ("model=custom", "model.name=mine:Net", *QUICK[2:], "data.name=mine:pictures")
    result = own("train", *words, "model.hidden=3")
    assert (result.code, "model.hidden: no such key; to add it write +model.hidden=" in result.err) == (2, True)
    assert own("train", *words, "+model.hidden=3").code == 0


def test_a_checkpoint_stores_the_value_range_of_floats_and_none_for_bytes(own: Command) -> None:
    numbers = torch.load(trained(own) / "checkpoints" / "last.pt", weights_only=True)
    least, greatest = numbers["data"]["range"]
    assert 0 <= least < 0.1 < 0.9 < greatest <= 1
    folder = own("train", "data=digits", "limit_steps=1").folder
    assert torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["data"]["range"] is None


def test_floats_that_overshoot_from_resampling_count_as_0_to_1(own: Command) -> None:
    folder = trained(own, "+data.greatest=1.03", "+data.least=-0.02")
    write_pictures(Path("shots"))
    assert own("predict", f"ckpt={folder}", "input=shots", "trust=[mine]").code == 0


@pytest.mark.parametrize("bad", ["inf", "nan"])
def test_images_with_nonfinite_values_can_be_skipped(own: Command, bad: str) -> None:
    words = ("data.name=mine:spoiled", f"+data.bad={bad}", "on_nonfinite=skip", "data.val=0")
    result = own("train", *QUICK, *words)
    assert result.code == 0, result.err
    kept = torch.load(result.folder / "checkpoints" / "last.pt", weights_only=True)["data"]["range"]
    assert 0 <= kept[0] < kept[1] <= 1


@pytest.mark.parametrize("kind", ["keys", "map"])
def test_class_names_may_be_any_iterable(own: Command, kind: str) -> None:
    assert own("train", *QUICK, "data.name=mine:named", f"+data.kind={kind}").code == 0


def test_two_classes_with_the_same_name_are_refused(own: Command) -> None:
    result = own("train", *QUICK, "data.name=mine:named", "+data.kind=twice")
    assert (result.code, "has two classes of one name: dark" in result.err) == (66, True)
