"""The table of recipes says what their runs say: mean, deviation, n, and the times of the command that was timed."""

import importlib
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("recipes")


def a_run(seed: int, accuracy: float, **more: Any) -> dict[str, Any]:
    return {
        "command": "dltrain train experiment=mnist_mlp",
        "overrides": ["experiment=mnist_mlp"],
        "seed": seed,
        "accuracy": accuracy,
        "loop_seconds": 12.34,
        "command_seconds": 150.0 if seed == 0 else None,
        "device": "cpu, 2 threads, bf16 (auto: faster)",
        "hardware": {"cpu": "Some CPU", "cores": 2, "gpu": None},
        "versions": {"torch": "2.15.0"},
        "date": "2026-11-22",
    } | more


def test_a_row_has_mean_deviation_and_the_times_of_seed_0(recipes: ModuleType) -> None:
    runs = [a_run(1, 0.98), a_run(0, 0.97), a_run(2, 0.99)]
    *_, row = recipes.table(recipes.by_command(runs))
    assert row == "| `experiment=mnist_mlp` | 98.00 ± 1.00 % | 3 | 12.3 s | 2 min | bf16 | 2026-11-22 |"


def test_a_run_on_a_gpu_has_its_precision_too(recipes: ModuleType) -> None:
    *_, row = recipes.table({"dltrain train experiment=mnist_mlp": [a_run(0, 0.97, device="H200 (cuda), bf16 (auto)")]})
    assert row.endswith("| bf16 | 2026-11-22 |")


def test_no_result_is_of_a_network_that_has_since_changed(recipes: ModuleType) -> None:
    found = recipes.by_command(map(json.loads, recipes.RUNS.read_text().splitlines()))
    assert not {command for command, runs in found.items() for each in runs if "note" in each}


def test_without_runs_nothing_is_written(recipes: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(recipes, "RESULTS", tmp_path / "results.md")
    monkeypatch.setattr(recipes, "RUNS", tmp_path / "runs.jsonl")
    recipes.write_tables([])
    assert list(tmp_path.iterdir()) == []


def test_one_seed_has_no_deviation(recipes: ModuleType) -> None:
    assert recipes.accuracy([a_run(0, 0.97)]) == "97.00 %"


def test_a_recipe_runs_seed_0_alone_and_the_other_seeds_in_one_command(
    recipes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []

    def run(command: str, folder: str) -> tuple[list[str], float]:
        commands.append(command)
        return (["1", "2"], 7.0) if "seed=" in command else (["0"], 1.23)

    monkeypatch.setattr(recipes, "run", run)
    monkeypatch.setattr(recipes, "row", lambda command, path, seconds: {"seed": path, "seconds": seconds})
    found = list(recipes.measured("dltrain train epochs=1", 3))
    assert commands == ["dltrain train epochs=1", "dltrain train -m epochs=1 seed=1,2"]
    assert found == [{"seed": "0", "seconds": 1.2}, *({"seed": seed, "seconds": None} for seed in ("1", "2"))]


@pytest.mark.slow
def test_a_recipe_runs_seed_0_alone_and_the_other_seeds_as_a_sweep(recipes: ModuleType) -> None:
    command = "dltrain train experiment=mnist_mlp data=digits limit_steps=2 device.threads=1 report=false logger=none"
    found = list(recipes.measured(command, 3))
    assert [recipes.outdated(each) for each in found] == [""] * 3
    assert [each["seed"] for each in found] == [0, 1, 2]
    assert found[0]["command_seconds"] > 0
    assert [each["command_seconds"] for each in found[1:]] == [None, None]
    assert all(0 <= each["accuracy"] <= 1 and each["command"] == command for each in found)


def test_tables_and_headers_are_written_from_the_runs(
    recipes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ROOT / "configs" / "experiment", tmp_path / "experiment")
    (tmp_path / "results.md").write_text(f"before\n{recipes.BEGIN}old\n{recipes.END}after\n")
    monkeypatch.setattr(recipes, "RESULTS", tmp_path / "results.md")
    monkeypatch.setattr(recipes, "EXPERIMENTS", tmp_path / "experiment")
    monkeypatch.setattr(recipes, "RUNS", tmp_path / "runs.jsonl")
    shorter = a_run(0, 0.5, command="dltrain train experiment=mnist_mlp epochs=1")
    recipes.write_tables([a_run(0, 0.97), shorter, a_run(1, 0.98)])
    results = (tmp_path / "results.md").read_text()
    assert results.startswith("before\n") and results.endswith("after\n") and "old" not in results
    assert "| `experiment=mnist_mlp` | 97.50 ± 0.71 % | 2 |" in results
    assert "97.00, 98.00" in (tmp_path / "runs.md").read_text()
    header = (tmp_path / "experiment" / "mnist_mlp.yaml").read_text()
    line = "# Expected: 97.50 ± 0.71 % test accuracy over 2 seeds, 2 min on 2 cores of an Some CPU\n"
    assert line in header


def test_published_recipe_results_equal_the_measured_runs(recipes: ModuleType) -> None:
    found = recipes.by_command(map(json.loads, recipes.RUNS.read_text().splitlines()))
    assert "\n".join(recipes.table(found)) in recipes.RESULTS.read_text()
    assert recipes.RUNS.with_suffix(".md").read_text() == "\n".join(recipes.page(found)) + "\n"
    for command, runs in found.items():
        name = command.split()[2].removeprefix("experiment=")
        if command == f"dltrain train experiment={name}" or f"dltrain train experiment={name}" not in found:
            header = (ROOT / "configs" / "experiment" / f"{name}.yaml").read_text()
            over = f"over {len(runs)} seed{'s' * (len(runs) > 1)}, "
            assert f"# Expected: {recipes.accuracy(runs)} test accuracy {over}" in header
    assert {command.split()[2].removeprefix("experiment=") for command in found} == set(recipes.names())


def test_every_recorded_run_is_of_the_recipe_and_the_overrides_of_today(recipes: ModuleType) -> None:
    for line in recipes.RUNS.read_text().splitlines():
        assert recipes.outdated(json.loads(line)) == ""


def test_a_run_of_another_recipe_or_with_other_overrides_is_refused(
    recipes: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "configs" / "experiment", tmp_path / "experiment")
    monkeypatch.setattr(recipes, "EXPERIMENTS", tmp_path / "experiment")
    run = a_run(0, 0.97, recipe=recipes.digest("mnist_mlp"))
    assert recipes.outdated(run) == ""
    assert recipes.outdated(run | {"versions": {"torch": "3.0"}}) == ""
    assert recipes.outdated(run | {"command": f"{run['command']} epochs=1"}).endswith("epochs=1")
    assert "the run had" in recipes.outdated(run | {"overrides": ["experiment=mnist_mlp", "optim.lr=0.2"]})
    assert recipes.outdated(run | {"command": "dltrain train experiment=mnist_gone"}) == "there is no recipe mnist_gone"
    path = tmp_path / "experiment" / "mnist_mlp.yaml"
    path.write_text(path.read_text().replace("# Expected", "# As expected"))
    assert recipes.outdated(run) == ""
    path.write_text(path.read_text().replace("epochs: 20", "epochs: 21"))
    assert recipes.outdated(run) == "mnist_mlp.yaml has changed"


@pytest.mark.parametrize(("accuracy", "is_in"), [(0.9812, True), (0.9890, False), (0.9700, False)])
def test_a_check_runs_a_new_seed_and_says_whether_it_is_in_the_spread(
    recipes: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    accuracy: float,
    is_in: bool,
) -> None:
    commands = []

    def run(command: str, folder: str) -> tuple[list[str], float]:
        commands.append(command)
        return ["run"], 65.0

    monkeypatch.setattr(recipes, "run", run)
    monkeypatch.setattr(recipes, "row", lambda command, path, seconds: {"accuracy": accuracy})
    runs = [a_run(seed, value) for seed, value in enumerate((0.980, 0.981, 0.982))]
    assert recipes.check("dltrain train experiment=mnist_mlp", runs) is is_in
    assert commands == ["dltrain train experiment=mnist_mlp seed=3"]
    assert "97.60 to 98.60 %" in capsys.readouterr().out  # 98.1 ± 4.303 (Student's t, 2 degrees) * 0.1 * sqrt(4 / 3)


def test_one_recorded_seed_cannot_be_checked(recipes: ModuleType) -> None:
    with pytest.raises(SystemExit, match="one recorded seed has no spread"):
        recipes.spread([a_run(0, 0.97)])
