"""Calls from Python: they return plain data, leave the process as it was, and work wherever a program calls them."""

import gc
import io
import json
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hydra
import numpy
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from PIL import Image

import dltrain
from dltrain.commands.from_python import TrainedNetwork
from dltrain.runtime.errors import ConfigError, DeviceError, InputError, OutputError, UserError, user_line
from support.command import Command, Trained
from support.tiers import mostly_slow

QUICK = ["model=linear", "epochs=1", "data.limit=40", "limit_steps=1", "report=false", "logger=none"]
LOGGER = logging.getLogger("dltrain")

STATES: dict[str, Callable[[], Any]] = {
    "threads": torch.get_num_threads,
    "determinism": torch.get_deterministic_debug_mode,
    "default dtype": torch.get_default_dtype,
    "default device": torch.get_default_device,
    "grad mode": torch.is_grad_enabled,
    "the generator of Python": random.getstate,
    "the generator of NumPy": lambda: str(numpy.random.get_state()),
    "the generator of torch": lambda: torch.get_rng_state().tolist(),
    "the seed that CUDA will start with": torch.initial_seed,
    "warning filters": lambda: warnings.filters[:],
    "the environment": lambda: dict(os.environ),
    "signal handlers": lambda: [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
    "logging": lambda: (LOGGER.level, LOGGER.propagate, LOGGER.handlers[:]),
    "the module path": lambda: sys.path[:],
    "garbage collection": gc.isenabled,
    "standard output": lambda: (sys.stdout, sys.__stdout__, sys.stderr),
}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DLTRAIN_DATA", raising=False)


def disturb(record: Any) -> str:
    """Change every state of the table from within a run, as a user's code may."""
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.set_default_dtype(torch.float64)
    random.seed(1), numpy.random.seed(1), torch.manual_seed(1)
    warnings.simplefilter("ignore")
    os.environ["DLTRAIN_TEST"] = "1"
    os.environ["HOME"] = "elsewhere"
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    LOGGER.addHandler(logging.NullHandler())
    LOGGER.propagate = False
    sys.path.append("elsewhere")
    gc.disable()
    return ""


@pytest.fixture(scope="module")
def around_a_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """The states before and after a run that sets and disturbs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("around"))
        random.seed(11), numpy.random.seed(12), torch.manual_seed(13)
        before = {name: read() for name, read in STATES.items()}
        dltrain.train([*QUICK, "device.threads=3", "seed=5"], watch=disturb)
        return before, {name: read() for name, read in STATES.items()}


@pytest.mark.parametrize("name", STATES)
def test_a_run_from_python_leaves_the_state_of_the_process_as_it_was(
    around_a_run: tuple[dict[str, Any], dict[str, Any]], name: str
) -> None:
    before, after = around_a_run
    assert after[name] == before[name]


def test_a_run_from_python_restores_determinism(monkeypatch: pytest.MonkeyPatch) -> None:
    modes = [0]
    monkeypatch.setattr(torch, "get_deterministic_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch, "set_deterministic_debug_mode", modes.append)

    def watch(record: Any) -> str:
        modes.append(2)
        return ""

    dltrain.train(QUICK, watch=watch)
    assert modes[-1] == 0


def test_a_run_that_fails_leaves_the_process_as_it_was() -> None:
    before, state = torch.get_num_threads(), torch.get_rng_state()
    with pytest.raises(ConfigError, match=r"model=nope: no such option"):
        dltrain.train(["model=nope"])
    with pytest.raises(ConfigError, match=r"optim\.lr=-1"):
        dltrain.train([*QUICK, "optim.lr=-1"])
    assert torch.get_num_threads() == before
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_own_code_that_exits_is_an_error_and_does_not_end_the_program(tmp_path: Path) -> None:
    (tmp_path / "leaving.py").write_text("import sys\n\ndef rate(step, total_steps):\n    sys.exit(0)\n")
    with pytest.raises(UserError, match="SystemExit: 0") as caught:
        dltrain.train([*QUICK, "schedule=custom", "schedule.name=leaving:rate"])
    assert "leaving.py:4: sys.exit(0)" in user_line(caught.value.__cause__)


def test_a_run_gives_the_same_bits_before_and_after_one_with_other_threads() -> None:
    words = ["epochs=1", "limit_steps=2", "report=false", "logger=none"]
    torch.set_num_threads(2)  # the next test starts with one again
    losses = [dltrain.train([*words, *more])["test"]["loss"] for more in ([], ["device.threads=1"], [])]
    assert losses[0] == losses[2]


def plain_loss() -> float:
    return float(dltrain.train(QUICK)["test"]["loss"])


@pytest.fixture
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


AROUND: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "another default device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("name", mostly_slow(AROUND, fast=["inference_mode"]))
def test_a_run_within_another_mode_of_torch_gives_the_same_bits(name: str) -> None:
    expected = plain_loss()
    with AROUND[name]():
        assert plain_loss() == expected


@pytest.mark.usefixtures("default_dtype")
def test_a_run_and_a_prediction_with_another_default_dtype_work(image: Path) -> None:
    assert dltrain.train(QUICK)["status"] == "done"
    assert torch.get_default_dtype() == torch.float64
    assert dltrain.load("last").predict(image)["label"] in "0123456789"


def test_a_second_run_in_another_thread_is_refused_with_a_sentence() -> None:
    refused: list[str] = []

    def second() -> None:
        try:
            dltrain.train(QUICK)
        except UserError as error:
            refused.append(str(error))

    def watch(record: Any) -> str:
        other = threading.Thread(target=second)
        other.start()
        other.join()
        return ""

    assert dltrain.train(QUICK, watch=watch)["steps"] == 1
    assert refused and all("another thread of this process is training" in text for text in refused)
    dltrain.train(QUICK)


def test_a_run_works_in_a_thread_that_is_not_the_main_one() -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(dltrain.train, QUICK).result()["steps"] == 1


def test_numbers_of_numpy_paths_and_nodes_of_omegaconf_are_plain_data_of_a_config(tmp_path: Path) -> None:
    config = dltrain.compose("train", QUICK) | {"epochs": numpy.int64(2), "seed": numpy.array(3)}
    config["optim"] |= {"lr": numpy.float32(0.5)}
    assert dltrain.train(config)["steps"] == 1
    app = OmegaConf.create({"rate": 0.25, "run": dltrain.compose("train", QUICK)})
    app.run.optim.lr = "${rate}"
    stored = Path(dltrain.train(app.run)["folder"], ".hydra", "config.yaml").read_text()
    assert "lr: 0.25" in stored


@pytest.mark.slow
def test_a_run_is_resumed_by_overrides_from_python() -> None:
    folder = dltrain.train(QUICK)["folder"]
    again = dltrain.train([f"resume={folder}", "limit_steps=null", "epochs=2"])
    assert (again["folder"], again["status"]) == (folder, "done")


def test_a_flag_that_only_prints_is_refused_from_python(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="only prints"):
        dltrain.train(["--cfg", "job"])


class Tee:
    """What a program may put in the place of stdout: it has `write` alone."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def write(self, text: str) -> None:
        self.texts.append(text)

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("kind", mostly_slow(["none", "closed", "tee"], fast=["none", "tee"]))
def test_a_run_works_whatever_standard_output_is(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    closed, tee = io.StringIO(), Tee()
    closed.close()
    stream: Any = {"none": None, "closed": closed, "tee": tee}[kind]
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    assert dltrain.train(QUICK)["steps"] == 1
    assert sys.stdout is stream
    if kind == "tee":
        assert "folder  outputs/" in "".join(tee.texts)


def test_the_log_of_a_program_that_has_one_gets_the_lines(caplog: pytest.LogCaptureFixture) -> None:
    dltrain.train(QUICK)
    assert any(record.message.startswith("folder  outputs/") for record in caplog.records)


def test_a_config_is_composed_inside_another_hydra_app_which_goes_on(tmp_path: Path) -> None:
    (tmp_path / "app.yaml").write_text("answer: 42\n")
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.3"):
        outer = GlobalHydra.instance().hydra
        assert dltrain.compose("train", ["model=mlp"])["model"]["name"] == "mlp"
        assert GlobalHydra.instance().hydra is outer
        assert hydra.compose("app")["answer"] == 42
    assert not GlobalHydra.instance().is_initialized()


def test_configs_are_composed_in_threads() -> None:
    names = ["mlp", "lenet", "linear"]
    with ThreadPoolExecutor(3) as pool:
        configs = list(pool.map(lambda name: dltrain.compose("train", [f"model={name}"]), names))
    assert [config["model"]["name"] for config in configs] == names
    assert not GlobalHydra.instance().is_initialized()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    pixels = numpy.random.default_rng(0).integers(0, 256, (40, 30), numpy.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return tmp_path / "image.png"


@pytest.fixture
def network(trained: Trained) -> TrainedNetwork:
    return dltrain.load(trained("model=linear", "epochs=1", "data.limit=50"))


def test_predictions_from_python_are_those_of_the_command(
    dltrain: Command, network: TrainedNetwork, image: Path
) -> None:
    result = dltrain("predict", f"ckpt={network.path}", f"input={image}", "top_k=1", "--json")
    (row,) = json.loads(result.out)
    found = network.predict(image)
    assert (found["label"], found["probability"]) == (row["class_1"], pytest.approx(row["probability_1"], abs=1e-5))
    assert sum(found["probabilities"].values()) == pytest.approx(1)
    assert list(found["probabilities"]) == network.classes


def test_a_path_an_image_an_array_and_a_tensor_are_predicted_alike(network: TrainedNetwork, image: Path) -> None:
    opened = Image.open(image)
    pixels = numpy.asarray(opened)
    forms = [str(image), image, opened, pixels, torch.from_numpy(pixels.copy()), numpy.stack([pixels] * 3, axis=-1)]
    expected = network.predict(image)["probability"]
    assert [found["probability"] for found in network.predict(forms)] == pytest.approx([expected] * 6, abs=1e-6)


def test_numbers_in_the_shape_of_the_training_are_not_resized(network: TrainedNetwork) -> None:
    numbers = torch.randint(0, 256, (3, *network.shape), dtype=torch.uint8)
    alike = [network.predict(form) for form in (numbers, numbers.float() / 255, list(numbers.numpy()))]
    for others in alike[1:]:
        assert [it["probability"] for it in others] == pytest.approx([it["probability"] for it in alike[0]], abs=1e-6)
    assert network.predict(numbers[0, 0])["label"] == alike[0][0]["label"]
    assert torch.allclose(
        network.model(network.transform(numbers[0])[None]).softmax(1).max(), torch.tensor(alike[0][0]["probability"])
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("nowhere.png", "nowhere.png: .*No such file"),
        (numpy.zeros((5, 5)), r"float64 \(5, 5\); give \(1, 28, 28\), or uint8"),
        (torch.full((1, 28, 28), 200.0), "give bytes as uint8, or divide by 255"),
        (None, "give"),
    ],
)
def test_what_is_no_image_is_refused_with_what_to_give(network: TrainedNetwork, wrong: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        network.predict(wrong)


def test_a_regression_predicts_values(trained: Trained) -> None:
    network = dltrain.load(trained("experiment=textbook/linear_regression", "epochs=1"))
    (found,) = network.predict([torch.zeros(network.shape)])
    assert list(found) == ["values"]
    assert len(found["values"]) == 1


def test_threads_predict_at_the_same_time(network: TrainedNetwork, image: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(network.predict, [image] * 8))
    assert all(each == found[0] for each in found)


def test_loading_changes_neither_generators_nor_threads(trained: Trained) -> None:
    folder = trained("model=linear", "epochs=1", "data.limit=50")
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    network = dltrain.load(folder)
    assert torch.equal(before, torch.get_rng_state()) and torch.get_num_threads() == threads
    assert not network.model.training


def test_last_is_the_newest_run(trained: Trained) -> None:
    with pytest.raises(InputError, match=r"last: outputs/ contains no run"):
        dltrain.load("last")
    folder = trained("model=linear", "epochs=1", "data.limit=50")
    assert dltrain.load("last").path == folder / "checkpoints" / "best.pt"
    assert dltrain.evaluate("last")["checkpoint"] == str(folder / "checkpoints" / "best.pt")


def test_evaluate_returns_the_document_of_the_command(trained: Trained) -> None:
    folder = trained("model=linear", "epochs=1", "data.limit=50")
    one = dltrain.evaluate(folder, ["split=val"])
    assert one["split"] == "val" and 0 <= one["accuracy"] <= 1
    assert [each["accuracy"] for each in dltrain.evaluate([folder, folder], ["split=val"])] == [one["accuracy"]] * 2


def test_a_result_is_plain_data_that_a_notebook_shows_as_the_page_of_the_run() -> None:
    result = dltrain.train([*QUICK, "report=true"])
    assert json.loads(json.dumps(result)) == result
    shown = result._repr_html_()
    assert shown is not None and shown.startswith("<iframe srcdoc=") and "linear on digits" in shown
    assert dltrain.train(QUICK)._repr_html_() is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the libraries around the kernel
def test_a_notebook_shows_the_progress_of_a_run_and_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(Path(dltrain.__file__).parents[1]))
    words = [*QUICK[:3], "report=true", "logger=none"]
    cell = nbformat.v4.new_code_cell(f"import dltrain\ndltrain.train({words!r})")
    notebook = nbformat.v4.new_notebook(cells=[cell])
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(output["text"] for output in cell.outputs if output["output_type"] == "stream")
    assert "epoch 1/1" in printed and "│ test │" in printed
    (shown,) = [output["data"] for output in cell.outputs if output["output_type"] == "execute_result"]
    assert shown["text/html"].startswith("<iframe srcdoc=")


@pytest.mark.slow
def test_a_sweep_from_python_returns_its_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    found = dltrain.sweep(["optim.lr=0.1,0.2", *QUICK])
    assert [job["status"] for job in found["jobs"]] == ["done"] * 2
    assert all(Path(job["folder"], "summary.json").is_file() for job in found["jobs"])
    assert json.loads(json.dumps(found)) == found
    assert "sweep" in str(found._repr_html_()).lower()
    assert "2 jobs, 0 failed" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"^optim\.lrr: no such key"):
        dltrain.sweep(["optim.lrr=1,2"])
    assert dltrain.sweep(["optim.lr=1,2", "sweep.dry=true"])["jobs"] == []


@pytest.mark.parametrize("kind", [UserError, ConfigError, InputError, DeviceError, OutputError])
def test_a_sweep_that_ends_early_raises_the_error_of_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[UserError]
) -> None:
    (tmp_path / "python").write_text(f"#!/bin/sh\necho error: it is so\nexit {kind.exit_code}\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(UserError, match=r"^it is so$") as raised:
        dltrain.sweep(["optim.lr=1,2"])
    assert raised.type is kind
