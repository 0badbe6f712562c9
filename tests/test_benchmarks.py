"""The benchmark against peers says what it measured: the same networks, right rates, right medians and ratios."""

import importlib.util
import json
import os
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

from dltrain.config import registry
from support.command import Command

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PEERS = sorted(path for path in (BENCHMARKS / "peers").glob("*.py") if path.stem not in ("networks", "workload"))
MODELS = ("mlp", "lenet", "cnn", "lstm", "attention")


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(BENCHMARKS / "peers"))


@pytest.fixture
def training() -> ModuleType:
    return importlib.import_module("training")


@pytest.fixture
def results() -> ModuleType:
    return importlib.import_module("training_results")


def a_run(peer: str, rates: list[float], seconds: float, **more: Any) -> dict[str, Any]:
    work = {"part": "commands", "data": "mnist", "model": "mlp", "batch": 64, "epochs": 2, "examples": 100, "rounds": 1}
    return {
        **work,
        "peer": peer,
        "images_per_second": rates,
        "seconds": seconds,
        "peak_mib": 10.0,
        "accuracy": 0.9,
    } | more


@pytest.mark.parametrize("data", ["mnist", "cifar10"])
@pytest.mark.parametrize("model", MODELS)
def test_peers_begin_with_the_same_network_to_the_bit(model: str, data: str) -> None:
    networks = importlib.import_module("networks")
    node = yaml.safe_load((BENCHMARKS.parent / "configs" / "model" / f"{model}.yaml").read_text())
    shape = networks.SHAPES[data]
    torch.manual_seed(3)
    own = registry.partial_call("model", node)(input_shape=shape, num_classes=10)
    torch.manual_seed(3)
    theirs = networks.network(model, data)
    images = torch.rand(4, *shape)
    assert sum(each.numel() for each in own.parameters()) == sum(each.numel() for each in theirs.parameters())
    torch.testing.assert_close(theirs(images), own(images))


@pytest.mark.parametrize("path", PEERS, ids=lambda path: path.stem)
def test_a_peer_accepts_the_arguments_it_is_called_with(
    path: Path, training: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if path.stem.startswith("with_"):
        package = path.stem.removeprefix("with_")
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install -e '.[peers]'")
    work = training.Work("grid", path.stem.removeprefix("with_"), "mlp", "mnist", 64, 1, 100, 1)
    _, script, *words = training.command(work, seed=0, workers=0)
    assert Path(script) == path
    monkeypatch.setattr(sys, "argv", [script, *words, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(script)
    assert ended.value.code == 0
    assert "--epochs" in capsys.readouterr().out


@pytest.mark.parametrize("script", ["loop", "loader"])
def test_a_loop_answers_with_a_rate_for_each_epoch_and_its_accuracy(
    script: str, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DLTRAIN_DATA", str(data_root))
    words = ["--model", "mlp", "--data", "mnist", "--epochs", "2", "--examples", "100"]
    monkeypatch.setattr(sys, "argv", [script, *words])
    runpy.run_path(str(BENCHMARKS / "peers" / f"{script}.py"))
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(answer["images_per_second"]) == 2
    assert 0 <= answer["accuracy"] <= 1


def test_dltrain_accepts_the_overrides_and_its_records_give_the_same_rates(
    dltrain: Command, training: ModuleType, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLTRAIN_DATA", str(data_root))
    work = training.Work("grid", "dltrain", "mlp", "mnist", 64, 2, 150, 1)
    words = training.command(work, seed=1, workers=0)
    result = dltrain(*words[words.index("train") :], "log_every=2")
    assert result.code == 0, result.err
    found = training.result_of(work, tmp_path)
    summary = json.loads((result.folder / "summary.json").read_text())
    assert len(found["images_per_second"]) == 2
    # By the clock, to a millisecond, with what dltrain's own figure leaves out.
    assert 0 < max(found["images_per_second"]) < 1.2 * summary["examples_per_second"]
    assert found["accuracy"] == summary["test"]["accuracy"]


def test_an_epoch_lasts_from_one_end_of_an_epoch_to_the_next(training: ModuleType) -> None:
    log = [
        "2026-11-22 23:59:57,000 INFO device  cpu, 2 threads, fp32",
        "2026-11-22 23:59:58,000 INFO folder  outputs/2026-11-22/23-59-57",
        "2026-11-22 23:59:59,000 INFO epoch 0.53/10 step 21: train loss 2.2593 49,886/s",
        "2026-11-23 00:00:00,500 INFO epoch  1/10 step 40: train loss 1.6593 49,886/s",
        "2026-11-23 00:00:00,750 INFO epoch 10/10 step 400: train loss 0.6593 49,886/s",
        "2026-11-23 00:00:02,000 INFO summary     outputs/2026-11-22/23-59-57/summary.json",
    ]
    assert training.epoch_rates(log, 100) == [40.0, 400.0]


@pytest.mark.parametrize("words", [["--peers", "dltrain,lightnig"], ["--batch", "65"]])
def test_a_misspelt_choice_is_reported_instead_of_ignored(words: list[str], training: ModuleType) -> None:
    with pytest.raises(SystemExit, match=f"{words[0]}: unknown (lightnig|65); choose from"):
        training.chosen(training.parser().parse_args(words))


def test_runs_that_are_there_are_not_written_over(
    training: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "some.jsonl"
    runs.write_text("measured\n")
    monkeypatch.setattr(sys, "argv", ["training.py", "commands", "--peers", "loop", "--to", str(tmp_path / "some")])
    with pytest.raises(SystemExit, match="already holds runs"):
        training.main()
    assert runs.read_text() == "measured\n"


def test_the_grid_has_every_peer_with_every_network_data_set_and_batch_size(training: ModuleType) -> None:
    found = {(work.peer, work.model, work.data, work.batch) for work in training.plan("grid")}
    assert len(found) == len(training.PEERS) * len(MODELS) * 2 * 2
    scripts = {f"with_{peer}" for peer in training.PEERS} | set(training.PEERS)
    assert {path.stem for path in PEERS} <= scripts


def test_work_is_selected_by_arguments_and_equal_work_is_done_once(training: ModuleType) -> None:
    words = ["growth", "--peers", "loop,loader", "--examples", "2000", "--rounds", "1"]
    works = training.chosen(training.parser().parse_args(words))
    assert {work.peer for work in works} == {"loop", "loader"}
    assert [(it.epochs, it.examples) for it in works if it.peer == "loop"] == [
        (1, 1000), (1, 2000), (2, 2000), (4, 2000), (8, 2000),
    ]  # fmt: skip


def test_ratios_compare_medians_and_ranges_are_shown(results: ModuleType) -> None:
    runs = [
        *(a_run("dltrain", [rate, rate / 2], seconds) for rate, seconds in ((300, 2.0), (100, 1.0), (200, 9.0))),
        *(a_run("loop", [10, rate], 4.0, accuracy=share) for rate, share in ((100, 0.8), (100, 0.9))),
        a_run("keras", [], 0.0, error="exit 1: no such thing"),
    ]
    first, second, failed = list(results.table(runs, "commands"))[2:]
    assert "| dltrain | 3 | 200 (100–300) | 1.00 | 2.0 (1.0–9.0) | 1.00 | 10 (10–10) | 90.00 ± 0.00 |" in first
    assert "| loop | 2 | 100 (100–100) | 2.00 | 4.0 (4.0–4.0) | 2.00 | 10 (10–10) | 85.00 ± 7.07 |" in second
    assert "| keras | 0 | failed |" in failed


def test_without_the_first_variant_there_is_no_ratio_and_missing_rounds_are_shown(results: ModuleType) -> None:
    runs = [a_run("dltrain", [], 0.0, error="exit 1: no such thing"), a_run("loop", [10], 4.0, rounds=3)]
    assert (
        "| loop | 1 of 3 | 10 (10–10) |  | 4.0 (4.0–4.0) |  | 10 (10–10) | 90.00 |"
        in list(results.table(runs, "commands"))[3]
    )


def test_growth_is_reported_as_a_linear_fit_of_the_medians(results: ModuleType) -> None:
    runs = [
        a_run("dltrain", [50.0], 3 + 0.5 * epochs, part="growth", epochs=epochs, peak_mib=100.0 + epochs)
        for epochs in (1, 2, 4, 8)
    ]
    (line,) = results.growth(runs)
    assert "3.00 s, and 0.500 s for each epoch" in line
    assert "101 (101–101) MiB at 1, 108 (108–108) at 8" in line


def test_a_page_and_its_chart_are_made_from_the_file_of_runs_alone(results: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("vl_convert", reason="vl-convert-python is not installed: pip install -e '.[dev]'")
    runs_module = importlib.import_module("training_runs")
    path = tmp_path / "some.jsonl"
    runs = [a_run("loop", [5.0], 2.0), *(a_run("loop", [5.0], 2.0, part="growth", epochs=it) for it in (1, 2))]
    path.write_text("\n".join(json.dumps(it) for it in [runs_module.header(["commands"]), *runs]))
    results.write(path)
    page = (tmp_path / "some.md").read_text()
    assert "python benchmarks/training.py commands" in page
    assert "(some.svg)" in page
    assert "mlp, mnist, batch 64" in (tmp_path / "some.svg").read_text()


def test_the_gain_of_prediction_is_compared_with_that_of_plain_pillow(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "cpu_count", os.cpu_count)  # the script replaces it
    monkeypatch.setattr(sys, "argv", ["prediction.py", "--count", "2", "--rounds", "1"])
    runpy.run_path(str(BENCHMARKS / "prediction.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 photographs, n=1, medians"
    gains = [float(line.rpartition(" ")[2]) for line in lines[1:3]]
    assert float(lines[3].split()[4].rstrip(";")) == pytest.approx(gains[0] / gains[1], abs=0.05 + gains[0] / 50)


def test_uneven_classes_are_cut_the_same_way_each_time_and_the_test_set_is_whole() -> None:
    uneven = importlib.import_module("imbalance").uneven
    first, again = (uneven("train", source="digits", common=100, rare=5) for _ in range(2))
    assert first.targets.bincount().tolist() == [100, 5] * 5
    assert torch.equal(first.images, again.images)
    assert len(uneven("test", source="digits").targets) == 359
    assert uneven("val", source="digits") is None


def test_recalls_of_paired_runs_become_a_table_with_differences() -> None:
    imbalance = importlib.import_module("imbalance")
    plain = {seed: torch.tensor([90.0, 10.0 + seed]).numpy() for seed in range(3)}
    better = {seed: torch.tensor([80.0, 40.0 + 2 * seed]).numpy() for seed in range(2)}
    lines = imbalance.table({"plain": plain, "weights": better, "balance": {}}).splitlines()
    assert lines[2] == "| plain | 3 | 50.50 ± 0.50 | 90.00 ± 0.00 | 11.00 ± 1.00 |"
    assert lines[3] == "| weights | 2 | 60.50 ± 0.71 | 80.00 ± 0.00 | 41.00 ± 1.41 |"
    assert lines[-1] == "| weights − plain | 2 | 10.25 ± 0.35 | 2 of 2 | 0.016 |"


@pytest.mark.slow
def test_the_benchmark_of_uneven_classes_measures_each_setting_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))  # the script sets it
    monkeypatch.setenv("DLTRAIN_DATA", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["imbalance.py", str(tmp_path), "--quick"])
    main = importlib.import_module("imbalance").main
    main()
    rows = [line.split(" | ")[:2] for line in capfd.readouterr().out.splitlines() if line.startswith("| ")]
    assert rows[1:4] == [["| plain", "2"], ["| weights", "2"], ["| balance", "2"]]
    last = next(tmp_path.glob("outputs/sweeps/*/*/5_*/summary.json"))
    before = last.stat().st_mtime_ns
    main()
    assert last.stat().st_mtime_ns == before


def test_an_ablation_compares_each_variant_with_the_recipe_by_seed() -> None:
    ablation = importlib.import_module("ablation")
    recipe, other = {"seed=0": 80.0, "seed=1": 82.0, "seed=2": 81.0}, {"seed=1": 81.0, "seed=0": 78.5}
    lines = ablation.table({"baseline": recipe, "no shifts": other, "no warm-up": {}}).splitlines()
    assert lines[2] == "| baseline | 3 | 81.00 ± 1.00 |  |  |"
    assert lines[3] == "| no shifts | 2 | 79.75 ± 1.77 | -1.25 ± 0.35 | 0.13 |"
    assert lines[4] == "| no warm-up | 0 |  |  |  |"


@pytest.mark.slow
def test_the_ablation_measures_each_variant_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ablation = importlib.import_module("ablation")
    variants = {name: ablation.VARIANTS[name] for name in ("baseline", "AdamW, rate 0.001, in place of Muon")}
    monkeypatch.setattr(ablation, "VARIANTS", variants)
    monkeypatch.setenv("DLTRAIN_DATA", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["ablation.py", str(tmp_path), "--quick"])
    ablation.main()
    rows = [line.split(" | ") for line in capfd.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[1:]] == [f"| {name}" for name in variants]
    assert rows[1][2] != rows[2][2]
    last = next(tmp_path.glob("AdamW*/outputs/sweeps/*/*/1_*/summary.json"))
    before = last.stat().st_mtime_ns
    ablation.main()
    assert last.stat().st_mtime_ns == before


@pytest.mark.parametrize(("ours", "verdict"), [([1.0, 300.0, 310.0], "yes"), ([400.0, 99.0, 100.0], "no")])
def test_a_claim_holds_if_the_median_ratio_without_the_first_epoch_reaches_its_floor(
    training: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ours: list[float],
    verdict: str,
) -> None:
    def run(work: Any, seed: int, workers: int) -> dict[str, Any]:
        return a_run(work.peer, ours if work.peer == "dltrain" else [1.0, 100.0, 100.0], 1.0)

    for name in ("DLTRAIN_DATA", "PATH", "PYTHONPATH"):  # the script sets them
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setattr(training, "run", run)
    monkeypatch.setattr(sys, "argv", ["all.py", "--parts", "loop", "--models", "mlp", "--rounds", "3"])
    runpy.run_path(str(BENCHMARKS / "all.py"), run_name="__main__")
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| loop")]
    assert row.startswith("| loop | mlp | at least 1.1 | ")
    assert row.endswith(f"| 3 | {verdict} |")


def test_every_part_of_all_claims_has_floors_and_a_quick_choice() -> None:
    claims = runpy.run_path(str(BENCHMARKS / "all.py"))
    assert set(claims["PARTS"]) == set(claims["FLOORS"]) == set(claims["QUICK"])
    for part, networks in claims["QUICK"].items():
        assert set(networks) <= set(claims["FLOORS"][part])
        assert set(networks) <= set(claims["EXAMPLES"])


@pytest.mark.parametrize("part", ["threads", pytest.param("compile", marks=pytest.mark.slow)])
def test_steps_are_timed_in_turn(
    part: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["steps.py", part, "linear", "8", "--windows", "2"])
    threads = torch.get_num_threads()
    try:
        runpy.run_path(str(BENCHMARKS / "steps.py"), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == {"threads": 1, "compile": 2}[part]
    assert all("ratio" in line and "n=2" in line for line in lines)
