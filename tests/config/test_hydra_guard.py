"""Hydra only composes: what its node, its search path or a stranger's YAML ask of it is refused before it acts."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml

from dltrain.config import composition, hydra_guard, resolution
from dltrain.runtime.errors import ConfigError
from support.command import Command
from support.tiers import mostly_slow

MARKER = """
from pathlib import Path
FOLDER = Path(__file__).parent
(FOLDER / "IMPORTED").touch()
def call(*arguments, **named):
    (FOLDER / "CALLED").touch()
"""
QUICK = ("model=linear", "epochs=1", "limit_steps=1", "data.limit=64", "device.threads=1")
# Each would run or import something, or write somewhere, if Hydra had its way.
HOSTILE = {
    "callback": {"callbacks": {"x": {"_target_": "marker.call"}}},
    "nested callback": {"callbacks": {"x": {"y": {"_target_": "marker.call"}}}},
    "launcher": {"launcher": {"_target_": "marker.call"}},
    "launcher's argument": {"launcher": {"x": {"_target_": "marker.call"}}},
    "sweeper": {"sweeper": {"_target_": "marker.call"}},
    "sweeper's words": {"sweeper": {"params": {"_target_": "marker.call"}}},
    "node in a sweeper's words": {"sweeper": {"params": {"x": {"_target_": "marker.call"}}}},
    "list in a sweeper's words": {"sweeper": {"params": {"x": [{"_target_": "marker.call"}]}}},
    "sweeper's words of no kind": {"sweeper": {"params": "marker.call"}},
    "trust in a sweeper's words": {"sweeper": {"params": {"trust": "marker"}}},
    "sweep's key in a sweeper's words": {"sweeper": {"params": {"++sweep.executor": "slurm"}}},
    "words that nobody typed": {"overrides": {"hydra": ["hydra/launcher=basic"]}},
    "task's words that nobody typed": {"overrides": {"task": ["logger=mlflow"]}},
    "sweeper that is made of nodes": {"sweeper": {"_recursive_": True}},
    "sweeper's batch": {"sweeper": {"max_batch_size": 0}},
    "log factory": {"job_logging": {"root": {"handlers": ["x"]}, "handlers": {"x": {"()": "marker.call"}}}},
    "log class": {"job_logging": {"root": {"handlers": ["x"]}, "handlers": {"x": {"class": "marker.call"}}}},
    "log file": {
        "hydra_logging": {
            "root": {"handlers": ["x"]},
            "handlers": {"x": {"class": "logging.FileHandler", "filename": "elsewhere.log"}},
        }
    },
    "environment": {"job": {"env_set": {"LD_PRELOAD": "evil.so"}}},
    "environment copied": {"job": {"env_copy": ["HOME"]}},
    "environment copied that is not there": {"job": {"env_copy": ["NOT_THERE"]}},
    "folder of a job": {"run": {"dir": "elsewhere"}},
    "folder of a sweep's job": {"sweep": {"subdir": "../../elsewhere"}},
    "folder of a sweep": {"sweep": {"dir": "elsewhere"}},
    "folder for configs": {"output_subdir": "elsewhere"},
    "working folder": {"job": {"chdir": True}},
    "a sweep without -m": {"mode": "MULTIRUN"},
    "no mode at all": {"mode": "ELSEWHERE"},
    "no such key": {"elsewhere": 1},
    "not a node": "elsewhere",
    "callbacks of no kind": {"callbacks": ["marker.call"]},
    "no launcher": {"launcher": None},
}
FREE = ["hydra.verbose=true", "hydra.job.name=mine", "hydra.mode=RUN"]


@pytest.fixture(autouse=True)
def _marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module `marker` in the current folder that leaves a file when it is imported, another when it is called."""
    (tmp_path / "marker.py").write_text(MARKER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield
    sys.modules.pop("marker", None)


def as_overrides(node: object) -> list[str]:
    """A hydra node as a person would type it: with ++, as most of its keys are not there."""
    if not isinstance(node, dict):
        return [f"hydra={node}"]
    return [f"++hydra.{key}={_typed(value)}" for key, value in node.items()]


def _typed(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_typed(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_typed, value)) + "]"
    return "null" if value is None else f"'{value}'" if isinstance(value, str) else str(value).lower()


def write_experiment(folder: Path, content: str) -> None:
    (folder / "mine" / "experiment").mkdir(parents=True, exist_ok=True)
    (folder / "mine" / "experiment" / "gift.yaml").write_text(content)


def assert_refused(dltrain: Command, folder: Path, *arguments: str) -> str:
    """Exit code 2 in a few lines; nothing is imported, called or written. Returns what was told."""
    before = sorted(folder.rglob("*"))
    result = dltrain("train", *arguments)
    assert (result.code, "Traceback" in result.err) == (2, False), result.err
    assert result.err.startswith("error: ")
    assert len(result.err.splitlines()) <= 3, result.err
    new = [path for path in sorted(folder.rglob("*")) if path not in before and path.name != "__pycache__"]
    sweeps = folder / "outputs" / "sweeps"  # made before Hydra reads, removed when it is empty; not its parents
    assert not [path for path in new if path not in (sweeps.parent, sweeps) and path.parent != sweeps]
    return result.err


def test_a_folder_for_a_sweep_is_refused_with_where_it_writes(dltrain: Command, tmp_path: Path) -> None:
    told = assert_refused(dltrain, tmp_path, "-m", *QUICK, "hydra.sweep.dir=elsewhere", "seed=1,2")
    assert "hydra.sweep.dir: cannot be set" in told
    assert "it writes to outputs/ in the folder that you start it in" in told


@pytest.mark.parametrize("sweep", mostly_slow([False, True], fast=[False]), ids=["run", "sweep"])
@pytest.mark.parametrize("case", mostly_slow(HOSTILE, fast=list(HOSTILE)[::2]))
def test_a_hostile_hydra_node_on_the_command_line_is_refused(
    dltrain: Command, tmp_path: Path, case: str, sweep: bool
) -> None:
    if case == "a sweep without -m" and sweep:
        return
    told = assert_refused(dltrain, tmp_path, *["-m"] * sweep, *QUICK, *as_overrides(HOSTILE[case]))
    assert "hydra" in told.lower()


@pytest.mark.parametrize("sweep", mostly_slow([False, True], fast=[False]), ids=["run", "sweep"])
@pytest.mark.parametrize("case", mostly_slow(HOSTILE, fast=list(HOSTILE)[1::4]))
def test_a_hostile_hydra_node_in_an_untrusted_experiment_is_refused(
    dltrain: Command, tmp_path: Path, case: str, sweep: bool
) -> None:
    if case == "a sweep without -m" and sweep:
        return
    write_experiment(tmp_path, "# @package _global_\n" + yaml.safe_dump({"hydra": HOSTILE[case]}))
    assert_refused(dltrain, tmp_path, *["-m"] * sweep, "--config-dir", "mine", "experiment=gift", *QUICK)


@pytest.mark.parametrize("flags", [["--cfg", "job"], ["--cfg", "hydra"], ["--help"], ["--info", "all"]], ids=" ".join)
def test_a_hostile_hydra_node_is_refused_when_a_config_is_only_shown(
    dltrain: Command, tmp_path: Path, flags: list[str]
) -> None:
    hostile = as_overrides(HOSTILE["callback"])
    assert_refused(dltrain, tmp_path, *flags, *hostile)


def test_an_untrusted_option_of_a_hydra_group_is_refused(dltrain: Command, tmp_path: Path) -> None:
    (tmp_path / "mine" / "hydra" / "callbacks").mkdir(parents=True)
    (tmp_path / "mine" / "hydra" / "callbacks" / "evil.yaml").write_text("x:\n  _target_: marker.call\n")
    assert_refused(dltrain, tmp_path, "--config-dir", "mine", "hydra/callbacks=evil")
    write_experiment(tmp_path, "# @package _global_\ndefaults:\n  - override /hydra/callbacks: evil\n")
    assert_refused(dltrain, tmp_path, "--config-dir", "mine", "experiment=gift")


def test_a_package_header_that_points_into_hydra_is_refused(dltrain: Command, tmp_path: Path) -> None:
    write_experiment(tmp_path, "# @package hydra.callbacks\nx:\n  _target_: marker.call\n")
    assert_refused(dltrain, tmp_path, "--config-dir", "mine", "experiment=gift")


@pytest.mark.parametrize(
    "arguments",
    [
        ["hydra.searchpath=[pkg://marker]"],
        ["hydra.searchpath=[structured://marker]"],
        ["hydra.searchpath=[http://localhost/configs]"],
        ["hydra.searchpath=[file:///nowhere,pkg://marker]"],
        ["-cp", "pkg://marker"],
        ["--config-path=pkg://marker"],
        ["--config-dir", "mine", "-cn", "primary"],
    ],
    ids=" ".join,
)
def test_a_search_path_that_would_be_imported_is_refused(
    dltrain: Command, tmp_path: Path, arguments: list[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "primary.yaml").write_text("hydra:\n  searchpath: [pkg://marker]\n")
    told = assert_refused(dltrain, tmp_path, *arguments)
    assert "://" in told


@pytest.mark.parametrize("flag", ["--experimental-rerun", "--experimental-rerun=x.pickle", "--exp=x.pickle"])
def test_the_rerun_of_a_pickle_is_refused(dltrain: Command, tmp_path: Path, flag: str) -> None:
    told = assert_refused(dltrain, tmp_path, flag, "x.pickle")
    assert "resume=" in told


def test_a_sweep_by_a_flag_that_is_cut_short_is_refused(dltrain: Command, tmp_path: Path) -> None:
    """It would be no sweep to the command line, but one to Hydra, and leave its multirun.yaml here."""
    assert_refused(dltrain, tmp_path, "--multi", *QUICK, "seed=1,2")


@pytest.mark.parametrize("override", FREE)
def test_harmless_settings_of_hydra_are_allowed(dltrain: Command, override: str) -> None:
    assert dltrain("train", *QUICK, override).code == 0
    assert not Path("elsewhere").exists()


def test_the_parameters_of_a_sweep_may_stand_in_an_experiment(dltrain: Command, tmp_path: Path) -> None:
    node = {"hydra": {"sweeper": {"params": {"optim.lr": "0.1,0.2"}}}}
    write_experiment(tmp_path, "# @package _global_\n" + yaml.safe_dump(node))
    result = dltrain("train", "-m", "--config-dir", "mine", "experiment=gift", *QUICK)
    assert (result.code, "2 jobs, 0 failed" in result.out) == (0, True)


def test_a_parameter_that_refers_to_a_node_makes_nothing(dltrain: Command, tmp_path: Path) -> None:
    node = {"gift": {"_target_": "marker.call"}, "hydra": {"sweeper": {"params": {"optim.lr": "${gift}"}}}}
    write_experiment(tmp_path, "# @package _global_\n" + yaml.safe_dump(node))
    assert dltrain("train", "-m", "--config-dir", "mine", "experiment=gift", *QUICK).code == 2
    assert not (tmp_path / "IMPORTED").exists()


def test_a_launcher_that_a_file_says_was_typed_is_refused(dltrain: Command, tmp_path: Path) -> None:
    called = {"_target_": "marker.call"}
    words = ["+hydra/launcher@hydra.runtime.choices.x=basic", "++hydra.launcher.x={_target_: marker.call}"]
    launcher = {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher", "x": called}
    node = {"hydra": {"overrides": {"hydra": words}, "launcher": launcher}}
    write_experiment(tmp_path, "# @package _global_\n" + yaml.safe_dump(node))
    assert_refused(dltrain, tmp_path, "-m", "--config-dir", "mine", "experiment=gift", *QUICK, "seed=1,2")


def test_hostile_parameters_of_a_sweep_are_refused(dltrain: Command, tmp_path: Path) -> None:
    params = {"+hydra.callbacks.x._target_": "marker.call"}
    node = {"hydra": {"sweeper": {"params": params}}}
    write_experiment(tmp_path, "# @package _global_\n" + yaml.safe_dump(node))
    assert dltrain("train", "-m", "--config-dir", "mine", "experiment=gift", *QUICK).code == 2
    assert not (tmp_path / "IMPORTED").exists()


def bomb(levels: int, each: int) -> str:
    lines = [f"x0: &x0 [{', '.join('a' * each)}]"]
    lines += [f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * each)}]" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


def merges(levels: int, each: int) -> str:
    lines = ["x0: &x0 {a: 1, b: 2, c: 3}"]
    lines += [f"x{i}: &x{i}\n  <<: [{', '.join([f'*x{i - 1}'] * each)}]" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


BOMBS = {
    "seven levels of ten aliases": bomb(7, 10),
    "thirty levels of ten aliases": bomb(30, 10),
    "seven levels of merges": merges(7, 10),
    "a list in itself": "x: &x [*x]\n",
    "a node in itself": "x: &x\n  y: *x\n",
    "deep lists": "x: " + "[" * 5000 + "]" * 5000 + "\n",
    "deep nodes": "x: " + "{a: " * 5000 + "1" + "}" * 5000 + "\n",
}
DAMAGED = {
    "a python object": b"x: !!python/object/apply:marker.call []\n",
    "a half list": b"x: [1\n",
    "not UTF-8": b"x: \xff\xfe\n",
    "zeros": b"\0" * 100,
    "two documents": b"x: 1\n---\ny: 2\n",
    "a list": b"- 1\n",
    "a tab": b"x:\n\ty: 1\n",
    "a key twice": b"seed: 1\nseed: 2\n",
    "a list as key": b"? [1, 2]\n: 3\n",
    "an alias to nothing": b"x: *nowhere\n",
    "a header of no kind": b"# @package\nx: 1\n",
}


@pytest.mark.parametrize("place", ["experiment", "model"])
@pytest.mark.parametrize("case", BOMBS)
def test_a_yaml_bomb_is_refused_within_a_second(dltrain: Command, tmp_path: Path, case: str, place: str) -> None:
    (tmp_path / "mine" / place).mkdir(parents=True)
    (tmp_path / "mine" / place / "gift.yaml").write_text(BOMBS[case])
    dltrain("train", "--cfg", "job")  # Hydra itself is imported
    began = time.process_time()
    told = assert_refused(dltrain, tmp_path, "--config-dir", "mine", f"{place}=gift")
    assert time.process_time() - began < 1
    assert "gift" in told


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_untrusted_yaml_file_is_refused(dltrain: Command, tmp_path: Path, case: str) -> None:
    write_experiment(tmp_path, "")
    (tmp_path / "mine" / "experiment" / "gift.yaml").write_bytes(DAMAGED[case])
    assert_refused(dltrain, tmp_path, "--config-dir", "mine", "experiment=gift")


def test_a_checkpoint_config_that_expands_without_end_is_refused() -> None:
    value: object = "a"
    for _ in range(20):
        value = [value] * 10
    began = time.process_time()
    with pytest.raises(ConfigError, match="aliases"):
        resolution.resolve({"x": value})
    assert time.process_time() - began < 1


def test_defaults_lists_that_include_each_other_endlessly_are_refused(dltrain: Command, tmp_path: Path) -> None:
    for index in range(16):
        (tmp_path / "mine" / f"e{index}").mkdir(parents=True)
        (tmp_path / "mine" / f"e{index}" / "x.yaml").write_text(
            f"defaults:\n  - /e{index + 1}@a: x\n  - /e{index + 1}@b: x\n" if index < 15 else "y: 1\n"
        )
    write_experiment(tmp_path, "# @package _global_\ndefaults:\n  - /e0@a: x\n")
    assert "more than 500 files" in assert_refused(dltrain, tmp_path, "--config-dir", "mine", "experiment=gift")


DAMAGED_CONFIGS = [merges(7, 10), "x: " + "[" * 5000, "a: 2001-99-99", "- 1", "x" * (2 << 20)]


@pytest.mark.parametrize("text", mostly_slow(DAMAGED_CONFIGS, fast=DAMAGED_CONFIGS[:1]))
def test_the_config_file_of_a_run_that_is_resumed_cannot_stop_it(dltrain: Command, text: str) -> None:
    """The config that counts is the one in the checkpoint."""
    folder = dltrain("train", *QUICK).folder
    (folder / ".hydra" / "config.yaml").write_text(text)
    assert dltrain("train", f"resume={folder}", "limit_steps=2").code == 0


def test_aliases_in_moderation_are_fine(dltrain: Command, tmp_path: Path) -> None:
    write_experiment(tmp_path, "# @package _global_\nepochs: &n 2\nbatch_size: *n\n")
    result = dltrain("train", "--config-dir", "mine", "experiment=gift", "--cfg", "job")
    assert (result.code, "batch_size: 2\n" in result.out) == (0, True)


def test_plain_hydra_would_import_what_is_refused_here(
    dltrain: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the tests above could not fail."""
    monkeypatch.setattr(composition, "hydra_sandbox", nullcontext)
    with pytest.warns(UserWarning, match="marker"):
        dltrain("train", *QUICK, "hydra.searchpath=[pkg://marker]")
    assert (tmp_path / "IMPORTED").exists()


@pytest.mark.parametrize("case", ["callback", "folder of a job", "folder for configs", "log file", "environment"])
def test_hydra_runs_no_job_even_if_its_node_could_ask_for_more(
    dltrain: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr(composition, "hydra_sandbox", nullcontext)
    assert dltrain("train", *QUICK, *as_overrides(HOSTILE[case])).code == 0
    assert not [name for name in ("IMPORTED", "CALLED", "elsewhere", "elsewhere.log") if (tmp_path / name).exists()]
    assert "LD_PRELOAD" not in os.environ


def test_hydra_is_unpatched_afterwards() -> None:
    before = [
        dict(vars(owner))
        for owner in (hydra_guard.ConfigLoaderImpl, hydra_guard.file_source(), hydra_guard.ConfigRepository)
    ]
    with pytest.raises(ZeroDivisionError), hydra_guard.hydra_sandbox():
        raise ZeroDivisionError
    after = [
        dict(vars(owner))
        for owner in (hydra_guard.ConfigLoaderImpl, hydra_guard.file_source(), hydra_guard.ConfigRepository)
    ]
    assert before == after
