"""The fast reading of a run's config gives what the careful one gives, or refuses what that refuses."""

from pathlib import Path

import pytest
import yaml

from dltrain.config import safe_yaml
from dltrain.config.composition import compose
from dltrain.config.safe_yaml import UnsafeConfig, read_to_show, read_yaml

READ = {
    "aliases": "a: &x [1, 2]\nb: *x\nc: {<<: {d: 1}}\n",
    "types": "a: 1e-3\nb: 1.5\nc: null\nd: yes\ne: 2026-11-29\nf: 'é'\ng: [1, [2, {h: ''}]]\n",
    "empty": "",
    "long": "a: [" + "1, " * 5000 + "]",
}
REFUSED = {
    "deep": "[" * 60 + "]" * 60,
    "very deep": "[" * 100_000,
    "bomb": "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    + "".join(f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdef", "bcdefg", strict=True)),
    "itself": "&a [*a]",
    "code": "!!python/object/apply:os.system ['touch caught']",
    "two": "a: 1\n---\nb: 2\n",
    "syntax": "a: [1",
    "many": "[" + "1, " * 20_000 + "]",
}


@pytest.mark.parametrize("name", READ)
def test_fast_and_careful_reading_give_the_same(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.yaml").write_text(READ[name])
    assert read_to_show(tmp_path / "config.yaml") == read_yaml(tmp_path / "config.yaml")


def test_the_config_of_a_run_is_read_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose("train", ["model=cnn", "data=cifar10", "optim=adamw"])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    monkeypatch.delattr(safe_yaml, "read_yaml")  # it is short and has no aliases: the fast way
    assert read_to_show(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("name", REFUSED)
def test_fast_reading_refuses_what_careful_reading_refuses(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.yaml").write_text(REFUSED[name])
    for read in (read_yaml, read_to_show):
        with pytest.raises(UnsafeConfig, match=r"config\.yaml"):
            read(tmp_path / "config.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.yaml"):
        with pytest.raises(UnsafeConfig, match="no file"):
            read_to_show(path)
