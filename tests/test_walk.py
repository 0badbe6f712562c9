"""A newcomer's walk, by the installed command: from the first training to a prediction by another program."""

import json
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from PIL import Image, ImageDraw

import dltrain
from support.browser import chromium, not_drawn, opened
from support.mixed_runs import write_mixed

DLTRAIN = Path(sys.executable).parent / "dltrain"


def typed(folder: Path, *words: str) -> str:
    """What a command prints; fails with what it says where it goes wrong."""
    done = subprocess.run([DLTRAIN, *words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def only(folder: Path, pattern: str) -> Path:
    """The one path that matches."""
    (found,) = folder.glob(pattern)
    return found


def draw_a_one(path: Path) -> None:
    """A pen stroke, dark on light, as people draw."""
    picture = Image.new("L", (28, 28), 255)
    ImageDraw.Draw(picture).line([(14, 3), (14, 25)], fill=0, width=4)
    picture.save(path)


@pytest.mark.slow
@pytest.mark.skipif(not DLTRAIN.exists(), reason="needs dltrain to be installed")
def test_a_newcomer_trains_looks_sweeps_predicts_and_exports(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra export")

    typed(tmp_path, "train", "device.threads=1")
    run = only(tmp_path, "outputs/2*/*")
    accuracy = json.loads((run / "summary.json").read_text())["test"]["accuracy"]
    assert accuracy > 0.95

    rates, seeds = "optim.lr=0.3,0.1,0.03,0.01", "seed=0,1,2"
    table = typed(tmp_path, "train", "-m", "model=mlp", rates, seeds, "epochs=2", "data.limit=200")
    sweep = only(tmp_path, "outputs/sweeps/*/*")
    assert "12 jobs, 0 failed" in table

    with chromium() as browser:
        with opened(browser, run / "report.html") as page:
            assert f"{100 * accuracy:.2f} %" in page.inner_text("body")
            assert page.locator("figure.drawn").count() >= 6
            assert not_drawn(page) == []
        with opened(browser, sweep / "report.html") as page:
            assert page.locator("#runs tbody tr").count() == 12
            assert not_drawn(page) == []

    figures = json.loads(typed(tmp_path, "eval", f"ckpt={run}", "--json"))
    assert abs(figures["accuracy"] - accuracy) < 1e-9

    draw_a_one(tmp_path / "drawn.png")
    (row,) = json.loads(
        typed(tmp_path, "predict", f"ckpt={run}", "input=drawn.png", "invert=auto", "center=false", "--json")
    )
    assert row["class_1"] == "1"

    typed(tmp_path, "export", f"ckpt={run}", "format=onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    pixels = 255 - numpy.asarray(Image.open(tmp_path / "drawn.png"))  # light on dark, as the network knows digits
    (logits,) = session.run(["logits"], {session.get_inputs()[0].name: pixels[None, None]})
    shares = numpy.exp(logits[0] - logits[0].max())
    shares /= shares.sum()
    classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    assert classes[int(shares.argmax())] == "1"
    assert abs(float(shares.max()) - row["probability_1"]) < 1e-5


NOTEBOOK = """
import dltrain
network = dltrain.load("last", device="cpu")
print(network.classes, network.predict("drawn.png")["label"])
dltrain.train(["data=digits", "model=linear", "epochs=1", "device.threads=1"])
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the libraries around the kernel
@pytest.mark.skipif(not DLTRAIN.exists(), reason="needs dltrain to be installed")
def test_a_day_goes_from_a_stopped_run_to_a_comparison_a_job_s_page_and_a_notebook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    quick = ("data=digits", "data.limit=300", "device.threads=1", "logger=none")
    machine = json.loads(typed(tmp_path, "doctor", "--json"))
    assert machine["versions"]["torch"]

    typed(tmp_path, "train", *quick, "model=mlp", "limit_steps=3", "tags=[first]", "note=a try")
    run = only(tmp_path, "outputs/2*/*")
    assert f"{run.name} " in typed(tmp_path, "runs", "tags=first")
    typed(tmp_path, "resume", "limit_steps=null", "epochs=2")
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["best"]["epoch"] <= 2) == ("done", True)

    write_mixed(tmp_path / "month", 20)
    table = typed(tmp_path, "report", "month", "-o", "month.html")
    assert "20 runs" not in table and "best val_accuracy first" in table  # by data set
    assert len(json.loads(typed(tmp_path, "report", "month", "--json"))["runs"]) == 20

    typed(tmp_path, "train", "-m", *quick, "model=mlp,lenet", "optim.lr=0.1,0.01", "epochs=1")
    sweep = only(tmp_path, "outputs/sweeps/*/*")
    typed(tmp_path, "report", "last")
    typed(tmp_path, "report", f"{sweep.name}/3")
    job = only(sweep, "3_*")
    best = json.loads(typed(tmp_path, "eval", "last", "--json"))
    assert Path(best["checkpoint"]).parents[2].name == sweep.name
    with chromium() as browser:
        for path in (tmp_path / "month.html", sweep / "report.html", job / "report.html"):
            with opened(browser, path) as page:
                assert not_drawn(page) == []
                assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")

    draw_a_one(tmp_path / "drawn.png")
    monkeypatch.setenv("PYTHONPATH", str(Path(dltrain.__file__).parents[1]))
    cell = nbformat.v4.new_code_cell(NOTEBOOK)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(nbformat.v4.new_notebook(cells=[cell]), timeout=120, resources=resources).execute()
    printed = "".join(output["text"] for output in cell.outputs if output["output_type"] == "stream")
    assert "['0', '1', '2'" in printed and "epoch 1/1" in printed
    assert any("text/html" in output.get("data", {}) for output in cell.outputs)
