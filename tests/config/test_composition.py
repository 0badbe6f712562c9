"""Any composition is valid or a named error, and a config that was composed and read back composes to itself.

Hypothesis draws command lines: options and keys that are there and that are not, values of every kind, sweeps that
nobody asked for. What is no config ends with code 2 and lines each of which names something that was typed.
"""

import contextlib
import functools
import io
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from dltrain import cli
from dltrain.commands import jobs
from dltrain.config import composition, diagnostics, dotted, registry, resolution, validation
from dltrain.report import run_files
from dltrain.runtime import errors
from support.contents import equal
from support.tiers import counts

CONFIGS = Path(__file__).parents[2] / "configs"
GROUPS = (*registry.GROUPS, "device", "experiment")
INPUTS = {"train": [], "eval": ["ckpt=run"], "predict": ["ckpt=run", "input=a.png"], "export": ["ckpt=run"]}
# Values that fit some key: by chance that one.
FITTING = r"""
    1 3 0.5 1e-3 20s true false null [1] [0.5] [8,4] relu skip cpu '1e3' '1_000' '12:30' 'null' '0o7' '' 'a=b,c' '#'
    'a\'b"c' ${seed} ${oc.env:HOME} ${oc.env:NOWHERE,3} \${seed} 1_000 '{a}'
""".split()  # noqa: SIM905  (to be read as they are typed)
FITTING += ["' a '", "a b", "ünï 💥", "'- a: b'", "'a\nb'"]
ODD = r"""
    -1 -0.0 nan -inf 1e999 TRUE ~ ??? '???' 2001-01-01 0x1F a=b , 1,2 a, [ ] [1,,2] { {} {a:1} (1) \ a\ 'a " a:b # %
    *x << ${ ${} ${nowhere} ${oc.env:NOWHERE} ${optim.lr} ${optim} ${${seed}} ${hydra:job.name} ${oc.decode:'1'}
    ${oc.create:{a:1}} ${foo:1} ${.x} range(3) choice(1,2) interval(0,1) sort(3,1) shuffle(1,2) glob(*) int(x)
    float(1) foo(1) json_str([1]) tag(a,1) extend_list(1) ${epochs}${seed} [${seed}]
""".split()  # noqa: SIM905  (to be read as they are typed)
ODD += ["", "9" * 30, "9" * 5000, "{name: adam}", "{1: 2}", "[[1],{a: [2]}]", "&x 1", "!!int 1", "\t"]
ODD += ["a\nb", "\x00", "\x1b[31m", "\u2028", "$" * 40, "${seed}" * 20, "[" * 300, "\ud800"]
ODD += ["{lr: ${seed}}"]
WRONG_KEYS = r"""
    epoch optim.lrr model.hidden.0 optim.lr.x a.b.c a/b model@x model@model 0 é optim[lr] [seed] seed. .seed optim..lr
    hydra hydra.x data/mnist $ common
""".split()  # noqa: SIM905  (to be read as they are typed)
WRONG_KEYS += ["", "a b"]
WORDS = r"""
    mlp = == ~ + ++ ~seed ~optim ~optim.lr ~optim=sgd ~optim=adam ~nowhere ~model.name ~data +=1 '' " seed é=1 ~~seed
    +~seed ~experiment 'a=1
""".split()  # noqa: SIM905  (to be read as they are typed)
WORDS += ["\x00", "a\nb", "  "]


@functools.cache
def options(group: str) -> list[str]:
    return list(registry.options(group, [CONFIGS]))


@functools.cache
def keys(command: str, chosen: tuple[str, ...]) -> list[str]:
    found = diagnostics.known_keys(composition.compose(command, [*INPUTS[command], *chosen]), command)
    return [key for key in found if key != "sweep.resume"]  # it is looked for before anything is composed


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    """A command line: mostly options that there are and keys that they have."""

    def one_in(number: int) -> bool:
        return draw(st.integers(1, number)) == number

    command = draw(st.sampled_from(["train"] * 6 + ["eval", "predict", "export"]))
    groups = draw(st.lists(st.sampled_from(GROUPS if command == "train" else ["device"]), unique=True, max_size=3))
    chosen = tuple(f"{group}={draw(st.sampled_from(options(group)))}" for group in groups)
    known = keys(command, tuple(word for word in chosen if not word.startswith("experiment")))
    words = list(chosen)
    for _ in range(draw(st.integers(0, 3))):
        key = draw(st.sampled_from(WRONG_KEYS if one_in(8) else known))
        value = draw(st.text(max_size=8) if one_in(10) else st.sampled_from(ODD if one_in(3) else FITTING))
        words.append(draw(st.sampled_from(["", "", "", "", "+", "++", "~"])) + f"{key}={value}")
    if one_in(8):
        words.append(draw(st.sampled_from(WORDS)))
    if one_in(12):
        words.append(f"{draw(st.sampled_from(GROUPS))}={draw(st.sampled_from(ODD + FITTING))}")
    return [command, *INPUTS[command], *draw(st.permutations(words))]


def main(line: list[str]) -> tuple[int, str, str, list[dict[str, Any]]]:
    """Exit code, output, errors and configs of a command line whose job ends when its config is checked."""
    found = []

    def execute(
        command: str, config: dict[str, Any], *, typed: list[str], origin: registry.Origin
    ) -> tuple[None, dict[str, Any]]:
        validation.validate(resolution.resolve(config), command, origin)
        found.append(config)
        return None, {}

    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(jobs, "dispatch", execute)
        code = cli.main(line)
    return code, out.getvalue(), err.getvalue(), found


def parts(line: list[str]) -> set[str]:
    """What of a command line an error may name: keys, their groups, whole words."""
    words = [word.lstrip("+~") for word in line[1:]]
    typed = {word.partition("=")[0] for word in words} | {word.partition("=")[2] for word in words} | set(words)
    groups = {part.partition(end)[0] for part in typed for end in ".@"}  # model@package chooses a model
    return {part for part in typed | set(line[1:]) | groups if part}


def is_config_or_named_error(line: list[str]) -> dict[str, Any] | None:
    """The config of a line, or None where it was refused as promised."""
    code, _, err, found = main(line)
    assert "Traceback" not in err
    if found:
        assert (code, len(found), err) == (0, 1, "")
        return found[0]
    assert code == 2, err
    assert err.startswith("error: ")
    assert "\x1b" not in err
    told = err.removesuffix("\n").split("\n")
    shown = parts(line) | {errors.printable(part.expandtabs()) for part in parts(line)}
    shown |= {" ".join(part.split()) for part in parts(line)} - {""}  # a fault is told in one line
    assert all(any(part in text for part in shown) for text in told), err
    assert len(told) <= 3 or len(set(told)) == len(told), err  # a line for a fault
    return None


def reads_back(line: list[str], config: dict[str, Any]) -> None:
    """The file in a run's folder holds the config, composes to it, and `--cfg job` shows it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "experiment" / "again.yaml"
        run_files.write_config(path, config)
        assert equal(yaml.safe_load(path.read_text(encoding="utf-8")), config)
        if line[0] == "train":
            chosen = [f"{group}={config[group]['name']}" for group in (*registry.GROUPS, "device") if group != "logger"]
            chosen.append(f"logger=[{','.join(config['logger'])}]" if config.get("logger") else "logger=none")
            chosen[-1:] = chosen[-1:] if "logger" in config else ["~logger"]
            path.write_text("# @package _global_\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
            code, _, err, found = main(["train", "--config-dir", folder, "experiment=again", *chosen])
            assert (code, err) == (0, "")
            assert all(equal(found[0][key], config[key]) for key in config if not isinstance(config[key], dict))
            # A key that was deleted comes back from the YAML of its option.
            assert found[0] == config or any(word.startswith("~") for word in line)
            again = dotted.leaves(found[0])
            assert all(equal(again[key], value) for key, value in dotted.leaves(config).items() if value != {})
    code, out, err, _ = main([*line, "--cfg", "job"])
    assert (code, err) == (0, "")
    assert yaml.safe_load(out) == config


def check(line: list[str], share: list[int]) -> None:
    config = is_config_or_named_error(line)
    event("a config" if config else "an error")
    share[0] += 1
    if config is not None:
        share[1] += 1
        reads_back(line, config)


@counts(4, 60, 2000)
def test_a_composition_is_a_config_that_reads_back_or_a_named_error(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DLTRAIN_TRACEBACK", raising=False)
    share = [0, 0]
    whole = settings(
        max_examples=count, derandomize=True, deadline=None, database=None, phases=[Phase.generate, Phase.shrink]
    )
    whole = settings(whole, suppress_health_check=list(HealthCheck))
    whole(given(lines())(lambda line: check(line, share)))()
    print(f"{share[1]} configs of {share[0]} command lines")
    assert 1 <= share[1] < share[0]
    assert count < 60 or share[0] // 5 <= share[1] <= 4 * share[0] // 5


@pytest.mark.parametrize("broken", ["_key_faults", "explain"])
def test_the_property_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """An error that names nothing, or a fault of ours while one is looked for, is seen."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(diagnostics, broken, lambda *_: [][0] if broken == "_key_faults" else errors.ConfigError("no"))
    with pytest.raises((AssertionError, IndexError)):
        is_config_or_named_error(["train", "optim.lrr=1"])


def test_a_file_that_holds_another_config_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = is_config_or_named_error(["train", "epochs=3"])
    assert config is not None
    with pytest.raises(AssertionError):
        reads_back(["train"], config)
