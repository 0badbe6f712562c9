"""The wheel holds all that an installed dltrain needs, the configs too."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import dltrain
from dltrain.config import registry

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_every_module_and_config_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    modules = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.py")}
    configs = {f"dltrain/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert modules | configs | {"dltrain/py.typed", "dltrain/data/datasets/digits.npz"} <= names


def test_an_unpacked_wheel_finds_its_configs_and_composes(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "installed")
    script = "import sys; from dltrain.cli import main; sys.exit(main(['train', '--cfg', 'job', 'model=mlp']))"
    # -S and no user site: the editable install of this checkout must not be what is found.
    paths = [str(tmp_path / "installed"), *(path for path in sys.path if path.endswith("site-packages"))]
    done = subprocess.run(
        [sys.executable, "-S", "-c", script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "name: mlp" in done.stdout


def test_an_installed_package_uses_its_configs_and_not_those_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (tmp_path, tmp_path / "lib" / "dltrain"):
        (folder / "configs").mkdir(parents=True)
        (folder / "configs" / "train.yaml").touch()
    monkeypatch.setattr(registry, "__file__", str(tmp_path / "lib" / "dltrain" / "config" / "registry.py"))
    assert registry.config_folder() == (tmp_path / "lib" / "dltrain" / "configs").resolve()


def test_the_version_is_the_same_in_the_package_and_in_its_metadata() -> None:
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert metadata["project"]["version"] == dltrain.__version__


def test_the_names_for_python_users_are_there_and_importing_dltrain_loads_neither_torch_nor_hydra() -> None:
    code = "import sys, dltrain; print(sorted({'torch', 'hydra'} & set(sys.modules)), dltrain.train, dltrain.compose)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[] <function train")
    with pytest.raises(AttributeError, match="no attribute 'training_'"):
        dltrain.training_  # noqa: B018
