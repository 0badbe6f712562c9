"""A config without references is copied, which gives what OmegaConf gives; any other goes through OmegaConf."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from dltrain.config import composition, resolution
from dltrain.runtime.errors import ConfigError

FOLDER = Path(__file__).parents[2] / "configs" / "experiment"
EXPERIMENTS = sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_copy_is_what_omegaconf_gives(name: str) -> None:
    config = composition.preview("train", [f"+experiment={name}"]).config
    resolved = resolution.resolve(config)
    assert repr(resolved) == repr(OmegaConf.to_container(OmegaConf.create(config), resolve=True))
    resolved["model"]["name"] = "other"
    assert config["model"]["name"] != "other"


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        1,
        1.0,
        -0.0,
        1e300,
        float("inf"),
        2**70,
        "",
        "1",
        "true",
        "???",
        "日\n\x00",
        [1, [2.0, {}]],
        {"a": []},
    ],
)
def test_plain_values_stay_what_they_are(value: Any) -> None:
    config = {"a": {"b": value}, "c": [value]}
    assert repr(resolution.resolve(config)) == repr(OmegaConf.to_container(OmegaConf.create(config)))


@pytest.mark.parametrize("value", [(1, 2), {1: "a", 2.5: "b", False: "c"}, float("nan"), b"bytes"])
def test_values_that_json_would_change_are_those_of_omegaconf(value: Any) -> None:
    config = {"a": value}
    assert repr(resolution.resolve(config)) == repr(OmegaConf.to_container(OmegaConf.create(config)))


@pytest.mark.parametrize("value", [object(), {(1, 2): 3}, {4}, [print]])
def test_a_value_that_no_config_can_hold_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError):
        resolution.resolve({"a": value})


def test_references_are_filled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "here")
    config = {"a": "${oc.env:PLACE}", "b": ["${a}", "\\${a}"]}
    assert resolution.resolve(config) == {"a": "here", "b": ["here", "${a}"]}
