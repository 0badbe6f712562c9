"""Planning the jobs of a sweep: composed as by Hydra, checked before the first runs, without duplicates."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dltrain.config import composition
from dltrain.sweeps import plan, sweep_file
from support.command import Command
from support.sweeping import QUICK
from support.tiers import mostly_slow

LINES = [
    ["model=mlp,lenet", "optim.lr=0.1,0.2", "seed=range(3)"],
    ["model=mlp", "model.hidden=[1],[2,3],[]", "++data.val=0,0.1,20", "optim=sgd,adam"],
    ["experiment=textbook/mlp_mnist,textbook/lenet_mnist", "optim.lr=0.1,1e-3,1", "name=a,'b c',null,\"x=y\",1e3x"],
    ["optim=adam,adamw", "optim.beta1=0.9,0.8", "~schedule.warmup", "schedule=onecycle"],
    ["model=mlp", "name='${oc.env:HOME}',b", "seed=choice(1,2)", "epochs=3,5"],
    ["optim.lr=0.5,0.6", "optim={lr:0.1,momentum:0.5}", "seed=1,2"],  # the order of overrides counts
    ["sweep.options={a:1}", "trust=[a],[b]", "+trust=[c]"],
    ["schedule=glob(c*)", "data.limit=100,0.5,null", "seed=shuffle(range(3))"],
    ["model=mlp", "model.hidden.0=64,32", "seed=1,2"],
    ["model=custom", "model.name=a:B,c:D", "+model.width=1,2", "+model.deep.er=true,false"],
]


def planned(line: list[str], use: Callable[[plan.Composer], Any]) -> Any:
    with composition.sweeping("train", ["-m", *line]) as sweeping:
        return use(plan.Composer(sweeping))


@pytest.mark.parametrize("line", mostly_slow(LINES, fast=LINES[5:7]), ids=" ".join)
def test_each_job_is_composed_as_by_hydra(line: list[str]) -> None:
    def compare(composer: plan.Composer) -> int:
        jobs = [(overrides, composer.compose(overrides)) for overrides in plan.grid(composer)]
        assert len(jobs) > 1
        for overrides, composed in jobs:
            expected = composer._by_hydra(overrides)
            assert composed.config == expected.config
            assert (composed.overrides, composed.typed) == (expected.overrides, expected.typed)
            assert composed.origin("seed") == expected.origin("seed")
        return 0

    assert planned(line, compare) == 0


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("le*_mnist", {"textbook/lenet_mnist"}),
        ("[l*,mnist_mlp],exclude=le*", {"textbook/linear_regression", "textbook/lstm_mnist", "mnist_mlp"}),
    ],
)
def test_a_pattern_of_an_old_sweep_matches_experiments_that_moved(
    tmp_path: Path, pattern: str, names: set[str]
) -> None:
    content = {"command": "train", "overrides": [f"experiment=glob({pattern})"]}
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    (override,) = sweep_file._read(tmp_path / "sweep.json", "train", None)
    found = planned([override], lambda composer: [job.text for (job,) in plan.grid(composer)])
    assert {text.partition("=")[2] for text in found} == names


def test_a_pattern_of_experiments_matches_those_in_folders_too() -> None:
    assert planned(["experiment=glob(*)"], lambda composer: len(list(plan.grid(composer)))) == 24


def test_hydra_composes_once_for_each_combination_of_options(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = plan.Composer._by_hydra
    monkeypatch.setattr(plan.Composer, "_by_hydra", lambda self, job: calls.append(job) or real(self, job))

    def compose_all(composer: plan.Composer) -> int:
        return len([composer.compose(overrides) for overrides in plan.grid(composer)])

    assert planned(["model=mlp,lenet", "optim=sgd,adam", "optim.lr=0.1,0.2", "seed=range(50)"], compose_all) == 400
    assert len(calls) == 4


@pytest.mark.torture
def test_a_job_costs_at_most_ten_milliseconds_to_compose_and_check() -> None:
    def compose_all(composer: plan.Composer) -> int:
        began = time.process_time()
        found, _ = plan.checked(map(composer.compose, plan.grid(composer)), "train")
        assert len(found) == 1000
        print(f"{time.process_time() - began:.2f} s", file=sys.stderr)
        return int((time.process_time() - began) * 1000)

    assert planned(["model=mlp,lenet", "optim.lr=0.1,0.2", "seed=range(250)"], compose_all) < 10_000


def test_all_problems_of_all_jobs_are_reported_together_and_nothing_runs(dltrain: Command) -> None:
    result = dltrain("train", "-m", *QUICK, "optim.lr=-1,0.1,0", "seed=-3,1", "batch_size=0")
    assert result.code == 2
    assert result.err.splitlines() == [
        "error: seed=-3: must be a whole number >= 0, < 18446744073709551616 (from the command line) (3 of 6 jobs)",
        "batch_size=0: must be a whole number >= 1 (from the command line)",
        "optim.lr=-1: must be a number > 0 (from the command line) (2 of 6 jobs)",
        "optim.lr=0: must be a number > 0 (from the command line) (2 of 6 jobs)",
    ]
    assert not Path("outputs").exists()


def test_equal_jobs_are_run_once(dltrain: Command) -> None:
    result = dltrain("train", "-m", *QUICK, "optim.lr=0.1,0.10,1e-1", "sweep.dry=true")
    assert result.code == 0
    assert "1 job; left out 2 duplicates" in result.out


def test_a_dry_sweep_prints_its_jobs_and_leaves_nothing(dltrain: Command) -> None:
    result = dltrain("train", "-m", *QUICK, "seed=3,4", "sweep.dry=true")
    assert result.code == 0
    assert [line.split()[-1] for line in result.out.splitlines() if line.startswith("job ")] == ["seed=3", "seed=4"]
    assert not Path("outputs").exists()


def test_what_is_trusted_for_one_start_is_no_override_of_a_job(dltrain: Command) -> None:
    result = dltrain("train", "-m", *QUICK, "seed=3,4", "trust=[my_nets]", "sweep.dry=true")
    assert [line.split()[-1] for line in result.out.splitlines() if line.startswith("job ")] == ["seed=3", "seed=4"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr=interval(0,1)", "an interval needs sweep.search=random or tpe"),
        ("sweep.workers=1,2", "must have a single value in a sweep"),
        ("sweep.workers=0", "sweep.workers=0: must be a whole number >= 1"),
        ("sweep.metric=accuracy", "must be a metric of val or test"),
        ("sweep.pruner=median", "needs sweep.search=random or tpe"),
        ("sweep.search=grids", "sweep.search=grids: must be one of grid, random, tpe"),
        ("sweep.worker=2", "did you mean sweep.workers?"),
        ("sweep.job_timeout=soon", "a time such as 30s, 5m or 1h"),
        ("seed=range(100001)", "gives 100,001 jobs; at most 100,000 are allowed"),
    ],
)
def test_an_impossible_sweep_is_refused_before_it_begins(dltrain: Command, override: str, message: str) -> None:
    result = dltrain("train", "-m", *QUICK, override)
    assert (result.code, message in result.err) == (2, True), result.err
    assert not Path("outputs").exists()


def test_no_torch_is_imported_for_a_dry_sweep(tmp_path: Path) -> None:
    code = (
        "import sys; from dltrain import cli; code = cli.main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules and code == 0"
    )
    arguments = ["train", "-m", "seed=1,2", "sweep.dry=true"]
    assert subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, check=False).returncode == 0


def test_an_unknown_key_of_an_option_is_reported_with_the_nearest_name(dltrain: Command) -> None:
    result = dltrain("train", "-m", "model=mlp,lenet", "model.hiden=[1],[2]")
    assert (result.code, "did you mean model.hidden?" in result.err) == (2, True)
