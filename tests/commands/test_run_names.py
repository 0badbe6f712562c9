"""Runs are named in the same way everywhere: `last`, a folder, a file, or a unique part of a name."""

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml
from PIL import Image

from dltrain.commands.run_names import best_job, expand
from dltrain.runtime.errors import InputError, UserError
from dltrain.runtime.folders import find_run
from support.command import Command

RUNS = ("2026-01-02/10-00-00", "2026-01-02/10-32-00-small", "2026-01-10/09-00-00")
NEWEST = "outputs/2026-01-10/09-00-00"
SWEEP = "outputs/sweeps/2026-01-05/12-00-00"
TRAIN = ("train", "data=digits", "model=linear", "epochs=1", "device.threads=1", "report=false", "logger=none")


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three runs, and a sweep of twelve jobs of which the third is the best."""
    monkeypatch.chdir(tmp_path)
    for run in RUNS:
        Path("outputs", run, "checkpoints").mkdir(parents=True)
        Path("outputs", run, "checkpoints", "last.pt").touch()
    Path("outputs/2026-11-30/08-00-00/checkpoints").mkdir(parents=True)  # of a run that has just begun
    for number in range(12):
        Path(SWEEP, f"{number}_seed={number}", "checkpoints").mkdir(parents=True)
    Path(SWEEP, "sweep.json").write_text('{"command": "train", "overrides": ["seed=range(12)"]}')
    lines = [f"{number},{0.9 if number == 2 else 0.5},{number}_seed={number}" for number in range(12)]
    Path(SWEEP, "results.csv").write_text("\n".join(["job,val_accuracy,folder", *lines]))
    Path("one.pt").touch()
    Path("a=b").touch()
    Path("photos").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("line", "expanded"),
    {
        "eval last": f"eval ckpt={NEWEST}",
        "eval 10-32": "eval ckpt=outputs/2026-01-02/10-32-00-small",
        "eval small split=val": "eval split=val ckpt=outputs/2026-01-02/10-32-00-small",
        "eval 2026-01-10": f"eval ckpt={NEWEST}",
        "eval last one.pt --json": f"eval --json ckpt=[{NEWEST},one.pt]",
        "eval ckpt=last": f"eval ckpt={NEWEST}",
        "eval ckpt=[last,small]": f"eval ckpt=[{NEWEST},outputs/2026-01-02/10-32-00-small]",
        "eval 12-00-00": f"eval ckpt={SWEEP}/2_seed=2",
        "eval 12-00-00/1": f"eval ckpt={SWEEP}/1_seed=1",
        f"eval {SWEEP}/2_seed=2": f"eval ckpt={SWEEP}/2_seed=2",
        "eval --explain ckpt": "eval --explain ckpt",
        "predict last photos": f"predict ckpt={NEWEST} input=photos",
        "predict last": f"predict ckpt={NEWEST}",
        "resume last last": f"train last resume={NEWEST}",
        f"train data.mean=[{'0.123456,' * 600}0]": f"train data.mean=[{'0.123456,' * 600}0]",
        f"eval ckpt=[{'a/b.pt,' * 900}c.pt]": f"eval ckpt=[{'a/b.pt,' * 900}c.pt]",
        f"eval last tags=[{'a' * 5000}]": f"eval tags=[{'a' * 5000}] ckpt={NEWEST}",
        "predict last a.png b.png": f"predict ckpt={NEWEST} input=[a.png,b.png]",
        "predict ckpt=last photos": f"predict ckpt={NEWEST} input=photos",
        "predict last input=a.png": f"predict input=a.png ckpt={NEWEST}",
        "export last format=onnx": f"export format=onnx ckpt={NEWEST}",
        "inspect last": f"inspect {NEWEST}",
        "inspect 12-00": f"inspect {SWEEP}/2_seed=2",
        "report last 12-00 -o last": f"report {NEWEST} {SWEEP} -o last",
        "resume": f"train resume={NEWEST}",
        "resume epochs=30": f"train epochs=30 resume={NEWEST}",
        "resume small": "train resume=outputs/2026-01-02/10-32-00-small",
        "resume 12-00-00": f"train sweep.resume={SWEEP}",
        "train resume=last": f"train resume={NEWEST}",
        "train init=last resume=null": f"train init={NEWEST} resume=null",
        "train -m sweep.resume=last": "train -m sweep.resume=last",
        "train resume=nothing": "train resume=nothing",
        "train model = mlp": "train model = mlp",
        "resume 12-00-00 sweep.workers=1": f"train sweep.workers=1 sweep.resume={SWEEP}",
        "eval a=b": "eval ckpt=a=b",
    }.items(),
)
@pytest.mark.usefixtures("outputs")
def test_names_become_paths(line: str, expanded: str) -> None:
    command, arguments = expand(*_split(line))
    assert " ".join([command, *arguments]).replace("'", "") == expanded


def _split(line: str) -> tuple[str, list[str]]:
    command, *arguments = line.split()
    return command, arguments


@pytest.mark.usefixtures("outputs")
def test_what_a_name_means_is_shown_and_a_path_needs_no_words(capsys: pytest.CaptureFixture[str]) -> None:
    expand("eval", ["last"])
    expand("eval", [NEWEST])
    assert capsys.readouterr().err == f"last: {NEWEST}\n"


@pytest.mark.usefixtures("outputs")
def test_a_part_of_several_names_is_refused_with_some_of_them() -> None:
    with pytest.raises(
        InputError, match=r"2026-01-02: matches 2 runs \(.*10-32-00-small, .*10-00-00\); be more specific"
    ):
        find_run("2026-01-02")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("eval mnist", "mnist: no such file, and no run in outputs/ has this in its name"),
        ("eval last nosuch", "nosuch: no such file"),
        ("predict photos", "photos: is not a run. The run comes first: dltrain predict RUN IMAGE …"),
        ("export photos", "is not a run"),
        ("eval last ckpt=last", "last: ckpt= set already"),
        ("resume nothing", "nothing: no such file"),
        ("resume small -m", "-m: resume continues one run or one sweep"),
        ("resume 12-00-00 epochs=3", "epochs=3: outputs/sweeps/.* is a sweep, whose jobs keep their config"),
    ],
)
@pytest.mark.usefixtures("outputs")
def test_what_names_no_run_is_refused(line: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        expand(*_split(line))


@pytest.mark.parametrize("name", ["weird, [name] {x}", "it's", "a=b", "Ünï 日本"])
@pytest.mark.usefixtures("outputs")
def test_a_bare_path_is_read_by_hydra_as_it_stands(dltrain: Command, name: str) -> None:
    folder = Path("outputs/2026-02-01", f"08-00-00-{name}")
    (folder / "checkpoints").mkdir(parents=True)
    for argument in (str(folder), f"ckpt={folder}"):
        result = dltrain("eval", argument, "--cfg", "job")
        assert (result.code, yaml.safe_load(result.out)["ckpt"]) == (0, str(folder))


@pytest.mark.parametrize(
    ("overrides", "column", "best"),
    [
        (["metric=f1_macro"], "val_f1_macro", 2),
        (["sweep.metric=val_loss"], "val_loss", 0),
        (["sweep.metric=val_f1_macro", "sweep.direction=minimize"], "val_f1_macro", 0),
    ],
)
def test_the_best_job_is_that_by_the_metric_of_the_sweep(
    tmp_path: Path, overrides: Sequence[str], column: str, best: int
) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps({"overrides": overrides}))
    (tmp_path / "results.csv").write_text(f"job,{column},val_accuracy,folder\n0,0.1,0.9,a\n1,,,b\n2,0.3,0.1,c\n")
    assert best_job(tmp_path).name == "abc"[best]


@pytest.mark.parametrize("content", [None, "", "job,folder\n0,a\n", "job,val_loss,folder\n0,x,a\n", "val_loss\n1\n"])
def test_a_sweep_without_a_result_is_named(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "sweep.json").write_text("[]")
    if content is not None:
        (tmp_path / "results.csv").write_text(content)
    with pytest.raises(InputError, match="Give the folder of a job"):
        best_job(tmp_path)


def test_a_folder_outside_outputs_is_never_left(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("{}")
    (tmp_path / "results.csv").write_text("val_loss,folder\n1,../../elsewhere\n")
    assert best_job(tmp_path) == tmp_path / "elsewhere"


def test_a_run_is_evaluated_predicted_and_resumed_by_name(dltrain: Command) -> None:
    assert dltrain(*TRAIN, "name=tiny").code == 0
    (folder,) = Path("outputs").glob("*/*")
    Image.new("L", (8, 8)).save("a.png")
    evaluated = dltrain("eval", "last", "--json")
    assert json.loads(evaluated.out)["checkpoint"] == f"{folder}/checkpoints/best.pt"
    assert f"last: {folder}\n" in evaluated.err
    assert len(json.loads(dltrain("predict", "tiny", "a.png", "a.png", "--json").out)) == 2
    resumed = dltrain("resume", "epochs=2")
    assert (resumed.code, resumed.folder) == (0, folder)
    assert json.loads((folder / "summary.json").read_text())["best"]["epoch"] <= 2
    unknown = dltrain("resume", "nothing")
    assert (unknown.code, unknown.err) == (
        66,
        "error: nothing: no such file, and no run in outputs/ has this in its name\n",
    )


def test_resume_continues_the_newest_sweep(dltrain: Command) -> None:
    assert dltrain(*TRAIN, "-m", "seed=0,1").code == 0
    result = dltrain("resume")
    assert (result.code, "0 of 2 jobs left to run" in result.out) == (0, True)
    (sweep,) = Path("outputs/sweeps").glob("*/*")
    assert f"ckpt={sweep}" not in dltrain("eval", "last").err


def test_a_stopped_run_prints_the_command_that_continues_it_and_no_error(
    dltrain: Command, stopping: Callable[[], None]
) -> None:
    stopping()
    result = dltrain(*TRAIN, "epochs=3")
    (folder,) = Path("outputs").glob("*/*")
    assert (result.code, result.err) == (
        130,
        f"stopped by SIGINT after saving. Continue with dltrain resume {folder}\n",
    )
    command = result.err.partition("Continue with dltrain ")[2]
    assert dltrain(*shlex.split(command)).code == 0
    assert json.loads((folder / "summary.json").read_text())["status"] == "done"


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function after which the next run receives SIGINT at its first record."""
    import signal

    from dltrain.training.run_dir import RunDir

    write = RunDir.write

    def stop_once(self: RunDir, record: object) -> None:
        write(self, record)  # type: ignore[arg-type]
        monkeypatch.setattr(RunDir, "write", write)
        signal.raise_signal(signal.SIGINT)

    return lambda: monkeypatch.setattr(RunDir, "write", stop_once)
