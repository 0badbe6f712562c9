"""Pages of runs and of sets: one file each, all that was recorded, nothing of a stranger's that could run."""

import base64
import hashlib
import json
import os
import re
from pathlib import Path

import pytest

from dltrain.report.html import charts, comparison_page, page, run_page
from dltrain.report.run_reader import leaves, read_records, read_run
from dltrain.report.run_rows import Metric, RunRow, group_by_data, group_by_seed
from dltrain.runtime.errors import InputError, OutputError
from support import pages as folders
from support.command import Command
from support.tiers import mostly_slow

RELIABILITY = "Reliability: accuracy by confidence, with the number of examples"
ACCURACY = Metric("val_accuracy", smaller_is_better=False)
CONFIG = {"model": {"name": "mlp", "width": 8}, "data": {"name": "digits"}, "seed": 3}
HOSTILE = "</script><img src=x onerror=alert(1)>'\"{{7*7}}"


def text_of(folder: Path, config: dict[str, object] = CONFIG) -> str:
    return run_page.text(read_run(folder), config)


def specs(text: str) -> list[charts.Spec]:
    """The figures of a page."""
    return [json.loads(it) for it in re.findall(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)]


def table_rows(text: str) -> list[list[str]]:
    """The cells of all rows of a page, without their markup."""
    rows = re.findall(r"<tr.*?</tr>", text, re.DOTALL)
    return [[re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<t[dh].*?</t[dh]>", row, re.DOTALL)] for row in rows]


# --- a run


def test_the_page_of_a_run_has_its_headline_curves_analysis_config_and_environment(tmp_path: Path) -> None:
    text = text_of(folders.write_run(tmp_path / "run", ["zero", "one"]))
    for shown in (
        "mlp on digits",
        "87.65 %",
        "1,234",
        "3.12 %",
        "<b>zero</b> taken for <b>one</b>",
        "a processor",
        "abc123",
    ):
        assert shown in text
    titles = [spec["description"] for spec in specs(text)]
    assert [title.split(" over")[0] for title in titles[:4]] == [
        "loss",
        "accuracy",
        "learning rate",
        "examples per second",
    ]
    assert titles[4:] == [
        "Confusion matrix: true classes by predicted ones",
        "Reliability: accuracy by confidence, with the number of examples",
    ]
    assert ["one", "0.9000", "0.8000", "0.8500", "10"] in table_rows(text)


def test_chosen_values_come_before_defaults_with_their_source(tmp_path: Path) -> None:
    rows = table_rows(text_of(folders.write_run(tmp_path / "run", ["a", "b"])))
    chosen, default = (
        rows.index(["model.width", "8", "the command line"]),
        rows.index(["seed", "3", "configs/train.yaml"]),
    )
    assert chosen < default


def test_attention_weights_are_shown_relative_to_the_largest(tmp_path: Path) -> None:
    text = text_of(folders.write_run(tmp_path / "run", ["a", "b"]))
    assert re.findall(r'<i style="opacity: ([\d.]+)', text) == [
        "0.16000000000000003",
        "0.6400000000000001",
        "0.8",
        "0.0",
    ]
    assert "repeat(2, 1fr)" in text


def test_a_run_without_an_analysis_says_why_and_shows_the_rest(tmp_path: Path) -> None:
    folder = folders.write_run(tmp_path / "run", ["a", "b"])
    (folder / "analysis.json").unlink()
    text = run_page.text(read_run(folder), CONFIG, "no test set")
    assert '<p class="note">no test set</p>' in text
    assert len(specs(text)) == 4


def test_an_empty_folder_has_a_page_as_well(tmp_path: Path) -> None:
    assert "not done" in run_page.text(read_run(tmp_path), {})


def test_nonfinite_metrics_are_omitted_from_curves() -> None:
    lines = [{"split": "train", "epoch": 1.0, "loss": None}, {"split": "train", "epoch": 2.0, "loss": 0.5}]
    spec = charts.curve(lines, "loss", "loss")
    assert spec is not None
    assert spec["data"]["values"] == [{"x": 2.0, "y": 0.5, "s": "train"}]
    assert charts.curve(lines, "accuracy", "accuracy") is None


def test_a_long_curve_keeps_its_first_and_last_point() -> None:
    assert charts.thinned(range(10_000), 400)[:2] == [0, 25]
    assert (len(charts.thinned(range(10_000), 400)), charts.thinned(range(10_000), 400)[-1]) == (400, 9999)


@pytest.mark.parametrize("name", ["summary.json", "analysis.json", ".hydra/origins.json"])
@pytest.mark.parametrize("content", ["{", "[]", "\xff", "[" * 100_000])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: str) -> None:
    folder = folders.write_run(tmp_path / "run", ["a", "b"])
    (folder / name).write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=Path(name).name):
        read_run(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"confusion": [[1]]},
        {"confusion": 5},
        {"per_class": {"a": {}}},
        {"calibration": {"error": "x", "bins": []}},
        {"mistakes": [1]},
        {"attention": [{"image": "data:image/png;base64,", "weights": []}]},
        {"split": None, "examples": "many"},
    ],
)
def test_an_analysis_that_no_run_writes_is_one_error(tmp_path: Path, change: dict[str, object]) -> None:
    folder = folders.write_run(tmp_path / "run", ["a", "b"])
    content = json.loads((folder / "analysis.json").read_text()) | change
    (folder / "analysis.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="content that no run writes"):
        text_of(folder)


def test_half_a_line_at_the_end_of_the_records_is_left_out_one_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_records(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1}\n{"st\n{"step": 2}\n')
    with pytest.raises(InputError, match="line 2"):
        read_records(path)


# --- strangers


def test_no_untrusted_text_becomes_markup_or_script(tmp_path: Path) -> None:
    folder = folders.write_run(tmp_path / "run", [HOSTILE, "b"])
    text = text_of(folder, {"model": {"name": HOSTILE, HOSTILE: HOSTILE}, "data": {"name": "digits"}})
    members = [
        RunRow(folder, HOSTILE, {"a": HOSTILE, HOSTILE: 1}, "failed", {HOSTILE: 0.5}, 1.0, HOSTILE),
        RunRow(folder, "b", {"a": 2}, "done", {"val_accuracy": 0.5}, 1.0),
    ]
    comparison_page.write(tmp_path / "set.html", HOSTILE, group_by_data(members))
    other = (tmp_path / "set.html").read_text()
    for written in (text, other):
        assert "<img src=x" not in written
        assert "&lt;img src=x onerror=alert(1)&gt;" in written
        assert "{{7*7}}" in written
        assert written.count("</script>") == written.count("<script")
        specs(written)


def test_an_image_that_is_not_embedded_is_omitted(tmp_path: Path) -> None:
    folder = folders.write_run(tmp_path / "run", ["a", "b"])
    content = json.loads((folder / "analysis.json").read_text())
    content["mistakes"][0]["image"] = "file:///etc/passwd"
    (folder / "analysis.json").write_text(json.dumps(content))
    assert text_of(folder).count("taken for <b>") == 2


def test_the_content_policy_of_a_page_allows_only_its_scripts(tmp_path: Path) -> None:
    text = text_of(folders.write_run(tmp_path / "run", ["a", "b"]))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    scripts = re.findall(r'<script type="module">(.*?)</script>', text, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(it.encode()).digest()).decode() for it in scripts]
    allowed = " ".join(f"'sha256-{it}'" for it in hashes)
    own = policy[1].replace("&#39;", "'")
    assert own == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"
    assert len(scripts) >= 1
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL))


def test_another_s_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("<html>mine</html>")
    with pytest.raises(OutputError, match="not a page of dltrain"):
        page.write(path, "new")
    assert path.read_text() == "<html>mine</html>"


# --- several runs


def test_the_page_of_a_set_ranks_links_groups_and_tells_failures(tmp_path: Path) -> None:
    members = folders.write_set(tmp_path, 24)
    (members[5].folder / "report.html").touch()
    comparison_page.write(tmp_path / "report.html", "Twenty-four", group_by_data(members, ACCURACY))
    text = (tmp_path / "report.html").read_text()
    rows = [row for row in table_rows(text) if row and row[0].startswith("job ") and len(row) > 5]
    accuracies = [float(row[5]) for row in rows if row[5]]
    assert accuracies == sorted(accuracies, reverse=True)
    assert (len(rows), len(accuracies)) == (24, 21)
    assert ["job 3", "exit code 1: RuntimeError: &lt;b&gt;no&lt;/b&gt;"] in table_rows(text)
    assert '<a href="./5_job/report.html">' in text
    assert '<a href="./6_job" data-run>' in text
    drawn = {spec["description"]: spec for spec in specs(text)}
    assert {"val accuracy against model", "val accuracy against optim.lr"} <= set(drawn)
    points = drawn["val accuracy against optim.lr"]["data"]["values"]
    assert len(points) == 6
    assert all(it["lo"] < it["y"] < it["hi"] and it["n"] >= 3 for it in points)
    assert drawn["val accuracy against optim.lr"]["encoding"]["x"]["type"] == "ordinal"
    assert drawn["val accuracy against optim.lr"]["encoding"]["xOffset"] == {"field": "g"}  # intervals side by side


def test_the_page_of_a_sweep_is_named_by_its_models_and_data_set(tmp_path: Path) -> None:
    members = folders.write_set(tmp_path, 4)  # their configs are only overrides: the data set is not among them
    groups = group_by_data(members, ACCURACY)
    comparison_page.write(tmp_path / "report.html", "Sweep 1", groups)
    assert "<h1>Sweep 1</h1>" in (tmp_path / "report.html").read_text()
    (groups[0].runs[0].folder / ".hydra").mkdir()
    (groups[0].runs[0].folder / ".hydra" / "config.yaml").write_text("data: {name: folder, root: /data/photos}\n")
    comparison_page.write(tmp_path / "report.html", "Sweep 1", groups)
    text = (tmp_path / "report.html").read_text()
    assert re.search(r"<h1>(mlp, lenet|lenet, mlp) on photos</h1>", text)
    assert "Sweep 1 · 4 runs, 1 failed" in text


def test_the_page_of_500_runs_is_below_3_megabytes_and_of_a_run_below_2(tmp_path: Path) -> None:
    members = folders.write_set(tmp_path / "set", 500)
    comparison_page.write(tmp_path / "report.html", "Five hundred", group_by_data(members, ACCURACY))
    assert (tmp_path / "report.html").stat().st_size < 3e6
    run = folders.write_run(tmp_path / "run", [str(digit) for digit in range(10)])
    assert len(text_of(run).encode()) < 2e6


def test_a_key_that_only_one_option_has_is_no_difference_of_its_own() -> None:
    members = [
        RunRow(Path(), "a", {"model.name": "mlp", "model.width": 8, "optim.lr": 1}, "done", {}, 1.0),
        RunRow(Path(), "b", {"model.name": "lenet", "optim.lr": 2}, "done", {}, 1.0),
    ]
    (group,) = group_by_data(members)
    assert group.keys == ["model.name", "model.width", "optim.lr"]
    assert [key for key in group.keys if not group.is_implied(key)] == ["model.name", "optim.lr"]


def test_leaves_are_dotted_keys() -> None:
    assert leaves({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}


# --- the command


def test_report_writes_the_page_of_a_run_into_its_folder(dltrain: Command, tmp_path: Path) -> None:
    folder = folders.write_run(tmp_path / "run", ["a", "b"])
    result = dltrain("report", "run")
    assert result.code == 0
    assert "page:  run/report.html" in result.out
    assert "mlp on digits" in (folder / "report.html").read_text()


def test_report_writes_the_page_of_several_runs_into_the_current_folder_or_to_output(
    dltrain: Command, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        folders.write_run(tmp_path / name, ["a", "b"])
    assert "page:  report.html" in dltrain("report", "one", "two").out
    assert "page:  both.html" in dltrain("report", "one", "two", "-o", "both.html").out
    assert (tmp_path / "both.html").read_text() == (tmp_path / "report.html").read_text()


def test_report_as_json_writes_no_page(dltrain: Command, tmp_path: Path) -> None:
    folder = folders.write_run(tmp_path / "run", ["a", "b"])
    json.loads(dltrain("report", "run", "--json").out)
    assert not (folder / "report.html").exists()


def test_a_page_that_cannot_be_written_is_74_and_a_wrong_option_2(dltrain: Command, tmp_path: Path) -> None:
    folders.write_run(tmp_path / "run", ["a", "b"])
    assert dltrain("report", "run", "-o", "missing/report.html").code == 74
    assert dltrain("report", "run", "--html").code == 2
    assert dltrain("report", "run", "-o").code == 2


# --- a run and its page


def test_a_run_writes_its_page_its_analysis_and_the_source_of_each_value(dltrain: Command) -> None:
    result = dltrain("train", "model=mlp", "epochs=1", "optim.lr=0.05", "device.threads=1")
    assert "report.html" in result.out
    text = (result.folder / "report.html").read_text()
    assert "mlp on digits" in text
    rows = table_rows(text)
    assert ["optim.lr", "0.05", "the command line"] in rows
    assert ["model.name", "mlp", "the command line"] in rows
    assert ["batch_size", "64", "configs/train.yaml"] in rows
    found = json.loads((result.folder / "analysis.json").read_text())
    assert (found["split"], sum(map(sum, found["confusion"]))) == ("test", found["examples"])
    origins = read_run(result.folder).origins
    assert not any(Path(it).is_absolute() for it in origins.values())
    assert len(origins) > 30


@pytest.mark.parametrize("task", ["regression", "reconstruction"])
def test_other_tasks_have_pages_too(dltrain: Command, task: str) -> None:
    words = {
        "regression": ["model=linear", "data=line", "task=regression", "optim.lr=0.01"],
        "reconstruction": ["model=autoencoder", "task=reconstruction"],
    }[task]
    result = dltrain("train", *words, "epochs=1", "device.threads=1")
    assert result.code == 0, result.err
    text = (result.folder / "report.html").read_text()
    assert {"regression": "Predicted over true values", "reconstruction": "Images and their reconstructions"}[
        task
    ] in text
    metrics = {"regression": ["loss", "mae", "r2"], "reconstruction": ["loss"]}[task]
    assert ["split", "epoch", "step", *metrics] in table_rows(text)


def test_without_report_a_run_leaves_no_page_and_no_analysis_for_it(dltrain: Command) -> None:
    folder = dltrain("train", "model=mlp", "epochs=1", "report=false", "logger=none").folder
    assert not {"report.html", "analysis.json"} & {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("broken", ["text", "write"])
def test_a_page_that_fails_does_not_fail_the_run(
    dltrain: Command, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fail(*arguments: object, **named: object) -> str:
        raise RuntimeError("no ink")

    monkeypatch.setattr(run_page if broken == "text" else page, broken, fail)
    result = dltrain("train", "model=mlp", "epochs=1", "data.limit=50")
    assert result.code == 0
    assert "report.html was not written: RuntimeError: no ink" in result.out
    assert json.loads((result.folder / "summary.json").read_text())["status"] == "done"


@pytest.mark.parametrize("part", ["analyze", "mistaken_pictures"])
def test_an_analysis_that_fails_does_not_fail_the_run(
    dltrain: Command, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    from dltrain.report import analysis

    def fail(*arguments: object, **named: object) -> dict[str, object]:
        raise RuntimeError("out of ideas")

    monkeypatch.setattr(analysis, part, fail)
    result = dltrain("train", "model=mlp", "epochs=1", "data.limit=50")
    assert (result.code, "no analysis of the test set: RuntimeError: out of ideas" in result.out) == (0, True)
    assert "mlp on digits" in (result.folder / "report.html").read_text()


def test_a_resumed_run_keeps_the_sources_of_its_values_and_adds_its_overrides(dltrain: Command) -> None:
    folder = dltrain("train", "model=mlp", "epochs=1", "optim.lr=0.05").folder
    assert dltrain("train", f"resume={folder}", "epochs=2").code == 0
    origins = read_run(folder).origins
    assert origins["optim.lr"] == "the command line"
    assert origins["epochs"] == "the command line, on resume"
    assert ["epochs", "2", "the command line, on resume"] in table_rows((folder / "report.html").read_text())


@pytest.mark.slow
def test_a_sweep_leaves_its_page_and_its_jobs_none_until_they_are_asked_for(dltrain: Command, tmp_path: Path) -> None:
    words = ["model=mlp", "optim.lr=0.1,0.01", "seed=0,1", "epochs=1", "data.limit=50", "device.threads=1"]
    result = dltrain("train", "-m", *words, "sweep.workers=1")
    (sweep,) = tmp_path.glob("outputs/sweeps/*/*")
    assert "report.html" in result.out
    text = (sweep / "report.html").read_text()
    assert next(row[3:5] for row in table_rows(text) if row and row[0].startswith("job ")) in (
        ["0.1", "0"],
        ["0.1", "1"],
    )
    jobs = sorted(path for path in sweep.iterdir() if path.is_dir())
    assert len(jobs) == 4
    assert not any((job / name).exists() for job in jobs for name in ("report.html", "analysis.json", "tensorboard"))
    assert dltrain("report", jobs[0]).code == 0
    assert "Confusion matrix" in (jobs[0] / "report.html").read_text()
    assert dltrain("report", sweep).code == 0
    assert "/report.html" in (sweep / "report.html").read_text()


def test_a_page_of_a_run_whose_code_is_not_trusted_says_so_and_shows_the_rest(dltrain: Command, tmp_path: Path) -> None:
    (tmp_path / "my_net.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n"
        "    def __init__(self):\n        super().__init__(nn.Flatten(), nn.Linear(784, 10))\n"
    )
    words = ["model=custom", "model.name=my_net:Net", "epochs=1", "data.limit=50", "report=false", "logger=none"]
    folder = dltrain("train", *words).folder
    assert dltrain("report", folder).code == 0
    text = (folder / "report.html").read_text()
    assert "wants to run my_net" in text
    assert "loss over epochs" in text


# --- folders that no run has left


DEEP, LONG = "[" * 100_000, "9" * 400


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.jsonl", f'{{"split": "train", "epoch": 1.0, "loss": {LONG}}}\n'),
        ("metrics.jsonl", '{"split": "val", "epoch": 1.0, "loss": 0.5}\n{"split": "val"}\n'),
        ("summary.json", f'{{"status": "done", "train_seconds": {LONG}, "total_seconds": {LONG}}}'),
        ("summary.json", DEEP),
        ("analysis.json", '{"split": "test", "examples": 1, "mistakes": [{"image": "data:image/png;base64,"}]}'),
        ("analysis.json", DEEP),
    ],
)
def test_an_untrusted_folder_is_refused_in_one_error(dltrain: Command, tmp_path: Path, name: str, content: str) -> None:
    folder = folders.write_run(tmp_path / "run", ["a", "b"])
    (folder / name).write_text(content)
    result = dltrain("report", "run")
    assert result.code == 66
    assert result.err.startswith("error: ")
    assert len(result.err.splitlines()) <= 3
    folders.write_run(tmp_path / "other", ["a", "b"])
    assert dltrain("report", "run", "other").code in (0, 66)  # of several, what cannot be drawn may be left out


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", "analysis.json"])
def test_a_pipe_or_a_link_in_a_folder_is_not_read(dltrain: Command, tmp_path: Path, name: str) -> None:
    folder = folders.write_run(tmp_path / "run", ["a", "b"])
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert "is not a regular file" in dltrain("report", "run").err
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    assert "is not a regular file" in dltrain("report", "run").err


@pytest.mark.parametrize(
    "name", mostly_slow(["a,b", "7", "outputs-${oc.env:HOME}", "x=y"], fast=["outputs-${oc.env:HOME}"])
)
def test_a_folder_name_that_looks_like_an_override_is_analysed(dltrain: Command, tmp_path: Path, name: str) -> None:
    folder = dltrain("train", "model=mlp", "epochs=1", "data.limit=50", "report=false", "logger=none").folder
    folder.rename(tmp_path / name)
    assert dltrain("report", name).code == 0
    assert "Confusion matrix" in (tmp_path / name / "report.html").read_text()


# --- what a page must not say


def test_an_analysis_of_other_weights_is_not_shown(dltrain: Command) -> None:
    folder = dltrain("train", "model=mlp", "epochs=1", "data.limit=100").folder
    before = json.loads((folder / "analysis.json").read_text())
    assert dltrain("train", f"resume={folder}", "epochs=6", "report=false").code == 0
    assert dltrain("report", folder).code == 0
    assert json.loads((folder / "analysis.json").read_text())["confusion"] != before["confusion"]


def test_an_analysis_that_cannot_be_written_does_not_fail_the_run(
    dltrain: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise OutputError("analysis.json: could not be written (No space left on device)")

    monkeypatch.setattr(run_page, "write_analysis", fail)
    result = dltrain("train", "model=mlp", "epochs=1", "data.limit=50")
    assert (result.code, "No space left" in result.out, "page        " in result.out) == (0, True, False)


def test_damaged_origins_do_not_stop_a_resume(dltrain: Command) -> None:
    folder = dltrain("train", "model=mlp", "epochs=1", "data.limit=50").folder
    (folder / ".hydra" / "origins.json").write_text("{")
    assert dltrain("train", f"resume={folder}", "epochs=2").code == 0


def test_a_run_from_python_shows_no_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dltrain.config.composition import compose
    from dltrain.training.run import train

    monkeypatch.chdir(tmp_path)
    summary = train(compose("train", ["model=mlp", "epochs=1", "optim.lr=0.07", "data.limit=50"]))
    text = (tmp_path / summary["folder"] / "report.html").read_text()
    assert "was not recorded" in text
    assert "all values are defaults" not in text


def test_only_runs_that_are_done_and_of_other_seeds_are_averaged(tmp_path: Path) -> None:
    members = [
        RunRow(tmp_path / str(seed), str(seed), {"seed": seed}, status, {"val_accuracy": accuracy}, 1.0)
        for seed, status, accuracy in ((0, "done", 0.8), (1, "done", 0.9), (2, "interrupted", 0.1))
    ]
    (group,) = group_by_seed(members, ["seed"])
    assert (group.count, round(group.mean["val_accuracy"], 6)) == (2, 0.85)
    assert [group.count for group in group_by_seed(members, [])] == [1, 1]


def test_runs_of_one_name_have_a_curve_each(tmp_path: Path) -> None:
    members = folders.write_set(tmp_path, 3)
    same = [RunRow(it.folder, "one name", it.config, it.status, it.metrics, 1.0) for it in members]
    comparison_page.write(tmp_path / "report.html", "three", group_by_data(same, ACCURACY))
    (curves, _) = [
        spec for spec in specs((tmp_path / "report.html").read_text()) if "a line for each" in spec["description"]
    ]
    assert len({it["s"] for it in curves["data"]["values"]}) == 3


def test_the_page_of_a_run_is_made_anew_by_a_resume_and_kept_by_one_without_report(dltrain: Command) -> None:
    folder = dltrain("train", "model=mlp", "data.limit=100", "limit_steps=1").folder
    before = (folder / "report.html").read_text()
    result = dltrain("train", f"resume={folder}", "limit_steps=2", "report=false")
    assert result.code == 0
    after = (folder / "report.html").read_text()
    assert after != before
    assert "<dt>steps</dt><dd>2</dd>" in after
