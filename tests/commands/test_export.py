"""What `export` writes computes what the checkpoint's network computes, and says how it is to be used.

The outputs that are expected are computed here from the checkpoint's weights and the pictures' bytes.
"""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import onnx
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dltrain import __version__
from dltrain.commands import onnx_graph
from dltrain.data import idx
from dltrain.data.datasets.line import line
from dltrain.training import build
from support import generated
from support.command import Command, Result, Trained
from support.onnx_files import metadata, session
from support.tiers import mostly_slow

QUICK = ("epochs=1", "limit_steps=2", "data.limit=150", "device.threads=1")
MODELS = {
    "linear": ["model=linear"],
    "mlp": ["model=mlp"],
    "mlp with all": ["model=mlp", "model.activation=gelu", "model.dropout=0.5", "model.batch_norm=true"],
    "lenet": ["model=lenet"],
    "cnn": ["model=cnn"],
    "cnn with all": ["model=cnn", "model.batch_norm=true", "model.dropout=0.5"],
    "resnet": ["model=resnet", "model.widths=[4,8]", "model.blocks=1"],
    "fastnet": ["model=fastnet", "model.widths=[8,8]"],
    "torchvision": ["model=torchvision", "model.arch=shufflenet_v2_x0_5", "model.freeze=stage2"],
    "lstm": ["model=lstm"],
    "gru, both ways": ["model=lstm", "model.cell=gru", "model.bidirectional=true", "model.hidden=16"],
    "rnn, two layers": ["model=lstm", "model.cell=rnn", "model.layers=2", "model.hidden=16"],
    "lstm with all": [
        "model=lstm",
        "model.layers=2",
        "model.bidirectional=true",
        "model.pool=attention",
        "model.dropout=0.5",
        "model.hidden=16",
    ],
    "attention": ["model=attention"],
    "attention on rows": ["model=attention", "model.tokens=rows", "model.dropout=0.5"],
    "autoencoder": ["model=autoencoder", "task=reconstruction"],
}
RECURRENT = {
    f"{cell}, {pool}, {both}, {layers}": [
        "model=lstm",
        f"model.cell={cell}",
        f"model.pool={pool}",
        f"model.bidirectional={both}",
        f"model.layers={layers}",
    ]
    for cell in ("lstm", "gru", "rnn")
    for pool in ("last", "attention")
    for both in ("true", "false")
    for layers in (1, 2)
}


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated MNIST with 1,000 test pictures."""
    return generated.write_mnist(tmp_path_factory.mktemp("thousand"), test=1000)


@pytest.fixture
def run_folder(trained: Trained) -> Path:
    return trained("model=mlp", *QUICK)


def pixels_of(root: Path) -> Tensor:
    """The first 1,000 test pictures of an MNIST, uint8 (1000, 1, 28, 28)."""
    return idx.read(root / "MNIST" / "raw" / "t10k-images-idx3-ubyte", dimensions=3, sha256=None)[:1000].unsqueeze(1)


def network(folder: Path, weights: dict[str, Tensor] | None = None) -> nn.Module:
    """The network of a run's checkpoint, or with other weights."""
    content = torch.load(folder / "checkpoints" / "best.pt", weights_only=True)
    data = content["data"]
    model = build.model(content["config"]["model"], tuple(data["input_shape"]), data["outputs"])
    model.load_state_dict(content["model"] if weights is None else weights)
    return model.eval()


def normalised(folder: Path, pixels: Tensor) -> Tensor:
    (mean, std) = torch.load(folder / "checkpoints" / "best.pt", weights_only=True)["data"]["statistics"]
    return (pixels / 255 - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)


@torch.no_grad()
def outputs(model: nn.Module, inputs: Tensor) -> numpy.ndarray:
    found: numpy.ndarray = model(inputs).numpy()
    return found


def run(found: Any, inputs: Tensor) -> numpy.ndarray:
    (result,) = found.run(None, {"images": inputs.numpy()})
    return numpy.asarray(result)


def agree(dltrain: Command, trained: Trained, root: Path, words: list[str]) -> Result:
    """Train, export, and compare ONNX, safetensors and the checkpoint's network; returns how the ONNX export ended."""
    folder = trained("data=mnist", f"data.root={root}", *words, *QUICK)
    pixels = pixels_of(root)
    expected = outputs(network(folder), normalised(folder, pixels))
    assert dltrain("export", f"ckpt={folder}", "format=safetensors").code == 0
    assert outputs(network(folder, load_file("model.safetensors")), normalised(folder, pixels)) == pytest.approx(
        expected, abs=1e-5
    )
    result = dltrain("export", f"ckpt={folder}")
    assert (result.code, result.err) == (0, "")
    found = session()
    for count in (1, 7, 1000):
        assert run(found, pixels[:count]) == pytest.approx(expected[:count], abs=1e-5)
    return result


FAST = ("mlp",)


@pytest.mark.parametrize("model", mostly_slow(MODELS, fast=FAST))
def test_onnx_safetensors_and_the_network_agree_on_a_thousand_images(
    dltrain: Command, trained: Trained, thousand: Path, model: str
) -> None:
    result = agree(dltrain, trained, thousand, MODELS[model])
    assert "verified  1,000 examples of the test split, batches of 1, 7, 256" in result.out


@pytest.mark.torture
@pytest.mark.parametrize("options", RECURRENT)
def test_every_recurrent_network_agrees(dltrain: Command, trained: Trained, thousand: Path, options: str) -> None:
    agree(dltrain, trained, thousand, RECURRENT[options])


@pytest.mark.slow
@pytest.mark.parametrize("model", ["lenet", "lstm"])
def test_two_agree_on_real_mnist(dltrain: Command, trained: Trained, real_data: Path, model: str) -> None:
    agree(dltrain, trained, real_data, MODELS[model])


@pytest.mark.torture
@pytest.mark.parametrize("model", ["linear", "mlp", "cnn", "resnet", "fastnet", "attention", "autoencoder"])
def test_all_agree_on_real_mnist(dltrain: Command, trained: Trained, real_data: Path, model: str) -> None:
    agree(dltrain, trained, real_data, MODELS[model])


@pytest.mark.slow
def test_without_normalization_the_input_is_passed_to_the_network_unchanged(
    dltrain: Command, trained: Trained, thousand: Path
) -> None:
    folder = trained("data=mnist", f"data.root={thousand}", *QUICK)
    result = dltrain("export", f"ckpt={folder}", "normalize=false", "output=plain.onnx")
    inputs = normalised(folder, pixels_of(thousand)[:9])
    assert session("plain.onnx").get_inputs()[0].type == "tensor(float)"
    assert run(session("plain.onnx"), inputs) == pytest.approx(outputs(network(folder), inputs), abs=1e-5)
    (mean,), (std,) = (json.loads(metadata("plain.onnx")[key]) for key in ("mean", "std"))
    assert f"with mean {mean:.6g}, std {std:.6g}; x is uint8 / 255" in result.out


@pytest.mark.slow
def test_numbers_that_are_no_bytes_stay_numbers(dltrain: Command, trained: Trained) -> None:
    words = ("data=line", "data.mean=[0.5]", "model=linear", "task=regression", "optim.lr=0.01")
    folder = trained(*words, *QUICK[:2])
    result = dltrain("export", f"ckpt={folder}")
    split = line("test", count=9)
    assert split is not None
    assert "input     images (N, 1, 1, 1), float32, values as in the data set, normalised inside" in result.out
    expected = outputs(network(folder), split.images - 0.5)
    assert run(session(), split.images) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("words", "output", "shape"),
    [
        (["model=mlp"], "logits", [10]),
        pytest.param(MODELS["autoencoder"], "outputs", [1, 28, 28], marks=pytest.mark.slow),
    ],
)
def test_an_onnx_file_has_one_named_input_and_output_and_any_batch(
    dltrain: Command, trained: Trained, words: list[str], output: str, shape: list[int]
) -> None:
    folder = trained(*words, *QUICK)
    dltrain("export", f"ckpt={folder}")
    onnx.checker.check_model("model.onnx", full_check=True)
    ((images,), (found,)) = session().get_inputs(), session().get_outputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(uint8)", ["batch", 1, 28, 28])
    assert (found.name, found.type, found.shape) == (output, "tensor(float)", ["batch", *shape])


def test_an_exported_file_describes_itself(
    dltrain: Command, trained: Trained, data_root: Path, cifar10_sums: dict[str, str]
) -> None:
    words = ("data=cifar10", f"data.root={data_root}", "model=mlp", "model.hidden=[4]")
    folder = trained(*words, *QUICK)
    content = torch.load(folder / "checkpoints" / "best.pt", weights_only=True)
    for kind in ("onnx", "safetensors"):
        result = dltrain("export", f"ckpt={folder}", f"format={kind}")
        with safe_open("model.safetensors", "pt") if kind == "safetensors" else pytest.MonkeyPatch.context() as opened:
            told = metadata() if kind == "onnx" else opened.metadata()
        assert json.loads(told["classes"]) == [f"thing {index}" for index in range(10)]
        assert [json.loads(told["mean"]), json.loads(told["std"])] == content["data"]["statistics"]
        assert (told["dltrain"], told["task"], told["model"]) == (__version__, "classification", "mlp")
        assert told["input"].startswith("images (N, 3, 32, 32), ")
        assert f"input     {told['input']}" in result.out
        assert "classes thing 0, thing 1, " in result.out
        assert f"file      model.{kind}, {Path(f'model.{kind}').stat().st_size:,} bytes" in result.out
    assert json.loads(told["config"]) == content["config"]


@pytest.mark.slow
def test_an_onnx_file_holds_nothing_of_this_machine_and_is_the_same_again(dltrain: Command, run_folder: Path) -> None:
    for name in ("one.onnx", "other.onnx"):
        dltrain("export", f"ckpt={run_folder}", f"output={name}")
    content = Path("one.onnx").read_bytes()
    places = (str(Path(torch.__file__).parent), str(Path(build.__file__).parent), str(Path.cwd()), "stack_trace")
    assert not [place for place in places if place.encode() in content]
    assert content == Path("other.onnx").read_bytes()


def test_references_in_a_config_stay_references(
    dltrain: Command, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIDDEN_SIZE", "[7]")
    folder = trained("model=mlp", "model.hidden=${oc.decode:${oc.env:HIDDEN_SIZE}}", *QUICK)
    assert dltrain("export", f"ckpt={folder}", "format=safetensors").code == 0
    with safe_open("model.safetensors", "pt") as opened:
        assert json.loads(opened.metadata()["config"])["model"]["hidden"] == "${oc.decode:${oc.env:HIDDEN_SIZE}}"


@pytest.mark.slow
def test_nothing_but_a_few_lines_reaches_the_user(dltrain: Command, trained: Trained, run_folder: Path) -> None:
    lstm = trained("model=lstm", "model.hidden=4", *QUICK)
    for folder in (run_folder, lstm):
        command = [sys.executable, "-m", "dltrain", "export", f"ckpt={folder}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert [text.split()[0] for text in done.stdout.splitlines()] == ["file", "input", "output", "verified"]


@pytest.mark.slow
def test_an_export_leaves_nothing_in_the_home_folder(dltrain: Command, run_folder: Path, tmp_path: Path) -> None:
    """As onnxruntime does by itself, unless an environment like that of a test tells it where it is."""
    (tmp_path / "home").mkdir()
    environment = {"HOME": str(tmp_path / "home"), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "dltrain", "export", f"ckpt={run_folder}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert list((tmp_path / "home").iterdir()) == []


@pytest.mark.slow
def test_without_the_test_split_random_pixels_verify_it(dltrain: Command, tmp_path: Path) -> None:
    root = generated.write_mnist(tmp_path / "moved")
    folder = dltrain("train", "data=mnist", f"data.root={root}", "model=mlp", *QUICK).folder
    root.rename(tmp_path / "away")
    result = dltrain("export", f"ckpt={folder}")
    assert result.code == 0
    assert (
        f"no test examples to verify the file with: MNIST is not in {root}/MNIST/raw: export does not download data"
        in result.out
    )
    assert "verified  1,000 images of random pixels" in result.out
    assert not root.exists()


def wrong(kind: str, network: nn.Module, *args: Any, **settings: Any) -> bytes:
    other = copy.deepcopy(network)
    with torch.no_grad():
        list(other.parameters())[-1].add_(0.01)
    return BUILD(kind, other, *args, **settings)


def fixed(kind: str, network: nn.Module, example: Tensor, *args: Any) -> bytes:
    """As an exporter that takes the size of its example for the only one."""
    model = onnx.load_from_string(BUILD(kind, network, example, *args))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    return bytes(model.SerializeToString())


BUILD: Callable[..., bytes] = onnx_graph.build


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (wrong, "its outputs differ from the network's by 0.01"),
        pytest.param(fixed, "onnxruntime cannot run it: ", marks=pytest.mark.slow),
        (lambda *args, **settings: b"no graph", "onnxruntime cannot run it: "),
    ],
    ids=["other weights", "one size of batch", "no graph"],
)
def test_a_file_that_is_wrong_is_not_put_in_place(
    dltrain: Command, run_folder: Path, monkeypatch: pytest.MonkeyPatch, broken: Callable[..., bytes], told: str
) -> None:
    Path("model.onnx").write_text("an older one")
    before = sorted(Path.cwd().iterdir())
    monkeypatch.setattr(onnx_graph, "build", broken)
    result = dltrain("export", f"ckpt={run_folder}")
    assert (result.code, f"model.onnx: not written, {told}" in result.err) == (74, True)
    assert len(result.err.splitlines()) <= 3
    assert Path("model.onnx").read_text() == "an older one"
    assert sorted(Path.cwd().iterdir()) == before


def test_outputs_that_are_no_numbers_are_refused(dltrain: Command, run_folder: Path) -> None:
    weights = {key: torch.full_like(value, torch.nan) for key, value in network(run_folder).state_dict().items()}
    file = onnx_graph.build(
        "onnx", network(run_folder, weights), torch.zeros(1, 1, 28, 28), output="logits", metadata={}
    )
    with pytest.raises(onnx_graph.ExportError, match="differ from the network's by nan"):
        onnx_graph.difference("onnx", file, torch.zeros(2, 1, 28, 28), torch.zeros(2, 10), threads=1)


@pytest.mark.parametrize("output", ["no/such/model.onnx", "folder", "a\0b"], ids=repr)
@pytest.mark.parametrize("kind", mostly_slow(["onnx", "state_dict"], fast=["state_dict"]))
def test_an_output_that_cannot_be_written_is_code_74(
    dltrain: Command, run_folder: Path, kind: str, output: str
) -> None:
    Path("folder").mkdir()
    before = sorted(Path.cwd().rglob("*"))
    result = dltrain("export", f"ckpt={run_folder}", f"format={kind}", f"output={output}")
    assert (result.code, "written" in result.err, len(result.err.splitlines())) == (74, True, 1)
    assert sorted(Path.cwd().rglob("*")) == before


@pytest.mark.parametrize("package", mostly_slow(["onnx", "onnxscript", "onnxruntime"], fast=["onnxscript"]))
def test_a_package_that_is_not_installed_is_reported(
    dltrain: Command, run_folder: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = dltrain("export", f"ckpt={run_folder}")
    told = f"needs {package}; in dltrain's checkout: pip install -e '.[export]'. Or set format=safetensors"
    assert (result.code, result.err) == (2, f"error: format=onnx: {told}\n")
    assert dltrain("export", f"ckpt={run_folder}", "format=safetensors").code == 0


@pytest.mark.parametrize("kind", ["onnx", "safetensors", "state_dict"])
def test_a_damaged_checkpoint_is_refused_and_leaves_nothing(dltrain: Command, run_folder: Path, kind: str) -> None:
    path = run_folder / "checkpoints" / "best.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    before = sorted(Path.cwd().iterdir())
    result = dltrain("export", f"ckpt={run_folder}", f"format={kind}")
    assert (result.code, "not a checkpoint, or a damaged one: its SHA-256 is" in result.err) == (66, True)
    assert sorted(Path.cwd().iterdir()) == before


OWN = """
from torch import nn

class Own(nn.Module):
    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.one = nn.Linear(784, num_classes)
        self.other = nn.Linear(784, num_classes, bias=False)
        self.other.weight = self.one.weight

    def forward(self, images):
        x = images.flatten(1)
        if x.sum() > 1e9:
            return self.other(x)
        return self.one(x)
"""


@pytest.mark.slow
def test_a_custom_network_that_is_not_a_graph_is_refused_and_its_weights_can_be_exported(
    dltrain: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("own_graph.py").write_text(OWN)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_graph", raising=False)
    folder = dltrain("train", "model=custom", "model.name=own_graph:Own", *QUICK).folder
    refused = dltrain("export", f"ckpt={folder}")
    assert (refused.code, "wants to run own_graph:Own" in refused.err) == (2, True)
    result = dltrain("export", f"ckpt={folder}", "trust=[own_graph]")
    assert result.code == 2
    assert "model=own_graph:Own cannot be exported to onnx: Could not guard on data-dependent" in result.err
    assert "\nSet format=safetensors\nat own_graph.py:" in result.err
    assert not Path("model.onnx").exists()
    assert dltrain("export", f"ckpt={folder}", "trust=[own_graph]", "format=safetensors").code == 0
    kept = load_file("model.safetensors")
    assert torch.equal(kept["one.weight"], kept["other.weight"])


def test_a_network_too_large_for_one_file_is_reported(
    dltrain: Command, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_graph, "LARGEST", 1000)
    result = dltrain("export", f"ckpt={run_folder}")
    assert (result.code, "its weights exceed the 2 GiB" in result.err) == (2, True)


def test_normalize_is_for_onnx_alone(dltrain: Command, run_folder: Path) -> None:
    result = dltrain("export", f"ckpt={run_folder}", "format=state_dict", "normalize=false")
    assert (result.code, "normalize: format=state_dict holds weights" in result.err) == (2, True)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_exported_weights_come_back_through_init_to_the_same_outputs(dltrain: Command, name: str) -> None:
    words = ("train", "model=mlp", "model.batch_norm=true", *QUICK)
    folder = dltrain(*words).folder
    kind = "safetensors" if name.endswith("safetensors") else "state_dict"
    assert dltrain("export", f"ckpt={folder}", f"format={kind}").code == 0
    result = dltrain(*words, f"init={name}", "optim.lr=1e-30", "seed=5")
    inputs = torch.randn(20, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert "init:" not in result.out
    # The start of the run: batch norm's own sums go on even where nothing is learned.
    start = torch.load(result.folder / "checkpoints" / "last-1.pt", weights_only=True)
    assert start["step"] == 0
    assert numpy.array_equal(outputs(network(folder), inputs), outputs(network(folder, start["model"]), inputs))


def test_safetensors_of_another_model_are_refused_and_mismatches_are_named(dltrain: Command) -> None:
    save_file({"somewhere.weight": torch.zeros(2)}, "other.safetensors")
    result = dltrain("train", "model=mlp", "init=other.safetensors", *QUICK)
    assert (result.code, "no weight in it matches the model by name and shape" in result.err) == (66, True)
    save_file({"layers.1.bias": torch.ones(128), "layers.3.bias": torch.ones(2)}, "part.safetensors")
    result = dltrain("train", "model=mlp", "init=part.safetensors", "init_partial=true", *QUICK)
    assert result.code == 0
    assert "init: layers.3.bias: (2,) in the file, (64,) in the model" in result.out


HEADER = b'{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,%s]}}'
DAMAGED = {
    "empty": b"",
    "noise": b"\x93noise" * 50,
    "a header of 2**60": (2**60).to_bytes(8, "little") + b"{}",
    "no JSON": (2).to_bytes(8, "little") + b"{x",
    "a tensor larger than the file": (59).to_bytes(8, "little") + HEADER % (b"1000", b"4000") + b"\0" * 8,
    "a shape that overflows": (70).to_bytes(8, "little") + HEADER % (b"4611686018427387904", b"0"),
    "a checkpoint": b"PK\3\4" + b"\0" * 100,
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_safetensors_file_is_code_66_in_one_line(dltrain: Command, damage: str) -> None:
    Path("bad.safetensors").write_bytes(DAMAGED[damage])
    result = dltrain("train", "model=mlp", "init=bad.safetensors", *QUICK)
    assert (result.code, result.err.startswith("error: bad.safetensors: ")) == (66, True)
    assert len(result.err.splitlines()) == 1
    assert not Path("outputs").exists()


def test_a_safetensors_file_is_no_checkpoint_to_evaluate(dltrain: Command, run_folder: Path) -> None:
    dltrain("export", f"ckpt={run_folder}", "format=safetensors")
    result = dltrain("eval", "ckpt=model.safetensors")
    assert (result.code, "Bare weights can be used with init=model.safetensors" in result.err) == (66, True)


def test_a_sweeps_file_chooses_no_file_that_is_written(dltrain: Command, run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "sent").mkdir()
    words = [f"ckpt={run_folder}", "format=state_dict", f"output={tmp_path / 'precious'}"]
    content = {"format": 1, "command": "export", "overrides": words}
    (tmp_path / "sent" / "sweep.json").write_text(json.dumps(content))
    result = dltrain("export", "sweep.resume=sent")
    assert (result.code, f"contains output={tmp_path / 'precious'}, which must be typed" in result.err) == (2, True)
    assert (tmp_path / "precious").read_text() == "mine"
    assert dltrain("export", "sweep.resume=sent", "output=mine.pth").code == 0
    assert Path("mine.pth").is_file()


@pytest.mark.parametrize("model", mostly_slow(MODELS, fast=["mlp"]))
def test_a_torch_export_computes_what_the_network_computes(
    dltrain: Command, trained: Trained, thousand: Path, model: str
) -> None:
    folder = trained("data=mnist", f"data.root={thousand}", *MODELS[model], *QUICK)
    pixels = pixels_of(thousand)
    inputs = normalised(folder, pixels)
    expected = outputs(network(folder), inputs)
    result = dltrain("export", f"ckpt={folder}", "format=torch_export")
    assert (result.code, result.err) == (0, "")
    assert "verified  1,000 examples of the test split, batches of 1, 7, 256" in result.out
    extra = {"classes": "", "input": ""}
    found = torch.export.load("model.pt2", extra_files=extra).module()
    for count in (1, 7, 1000):
        assert outputs(found, pixels[:count]) == pytest.approx(expected[:count], abs=1e-5)
    assert json.loads(extra["classes"])[:2] == ["0", "1"]
    assert "normalised inside" in extra["input"]
    assert dltrain("export", f"ckpt={folder}", "format=torch_export", "normalize=false", "output=plain.pt2").code == 0
    plain = torch.export.load("plain.pt2").module()
    assert outputs(plain, inputs[:9]) == pytest.approx(expected[:9], abs=1e-5)


def test_a_torch_export_that_computes_something_else_is_not_written(
    dltrain: Command, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.export.export
    other = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).eval()
    monkeypatch.setattr(torch.export, "export", lambda _, inputs, **rest: real(other, (inputs[0].float(),), **rest))
    result = dltrain("export", f"ckpt={run_folder}", "format=torch_export", "normalize=false")
    assert result.code == 74
    assert "its outputs differ from the network's by" in result.err
    assert not Path("model.pt2").exists()
