"""`dltrain inspect`: what is inside a checkpoint, told without torch and without running any of it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dltrain.checkpoints import checkpoint
from support.command import Command
from support.contents import content

FORMAT_2 = Path(__file__).parents[1] / "fixtures" / "format-2"


def test_inspect_shows_digest_metrics_config_and_weights_of_a_checkpoint(dltrain: Command) -> None:
    result = dltrain("inspect", FORMAT_2)
    assert result.code == 0
    told = dict(line.split(maxsplit=1) for line in result.out.splitlines()[1:7])
    assert "verified" in told["digest"]
    assert told["kind"] == "checkpoint of format 2: best.pt, for eval, predict and export"
    assert "torch 2." in told["environment"]
    assert "input_shape [1, 28, 28]" in told["data"]
    assert "split val, step 3" in told["best"]
    assert "\n  model:\n    name: mlp\n" in result.out
    assert "weights      4 tensors, 1,600 numbers\n  layers.1.weight  float 2x784\n" in result.out


def test_inspect_of_last_pt_shows_the_step_to_resume_from(dltrain: Command) -> None:
    out = dltrain("inspect", f"ckpt={FORMAT_2 / 'checkpoints' / 'last.pt'}").out
    assert "last.pt, to resume from step 5" in out


def test_inspect_says_that_a_checkpoint_has_no_digest(dltrain: Command) -> None:
    torch.save({"format": 1, "config": {}}, "old.pt")
    out = dltrain("inspect", "old.pt").out
    assert "digest       none: damage would not be noticed" in out
    assert "kind         checkpoint of format 1" in out


def test_inspect_identifies_bare_weights(dltrain: Command) -> None:
    torch.save({"layer.weight": torch.zeros(2, 3), "scale": torch.tensor(1.0), "epoch": 3}, "model.pth")
    out = dltrain("inspect", "model.pth").out
    assert "kind         weights, not a checkpoint of dltrain" in out
    assert "weights      2 tensors, 7 numbers\n  layer.weight  float 2x3\n  scale  float one number\n" in out


@pytest.mark.parametrize("name", ["os:system", "${name}"])
def test_code_that_a_checkpoint_would_run_is_named(dltrain: Command, name: str) -> None:
    checkpoint.save(Path("odd.pt"), content() | {"config": {"model": {"name": name}, "name": "os:system"}})
    assert f"custom code  {name}: runs only with trust=" in dltrain("inspect", "odd.pt").out


def test_untrusted_text_cannot_control_the_terminal(dltrain: Command) -> None:
    checkpoint.save(Path("odd.pt"), content() | {"config": {"name": "a\x1b[2J\x07b"}, "environment": {"\x1b]0;": "\r"}})
    out = dltrain("inspect", "odd.pt").out
    assert all(letter.isprintable() or letter == "\n" for letter in out)


def test_a_config_too_large_to_read_is_not_shown(dltrain: Command) -> None:
    checkpoint.save(Path("odd.pt"), content() | {"config": {"a": list(range(20_000))}})
    assert "config       more than 10,000 values, not shown" in dltrain("inspect", "odd.pt").out


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "an empty file"),
        (b"text " * 100, "a text, not weights"),
        (b"\xff" * 9, "not an archive"),
        (None, "no such checkpoint"),
    ],
    ids=["empty", "text", "bytes", "missing"],
)
def test_inspect_of_another_file_is_code_66_in_one_line(dltrain: Command, data: bytes | None, message: str) -> None:
    if data is not None:
        Path("odd.pt").write_bytes(data)
    result = dltrain("inspect", "odd.pt")
    assert (result.code, result.out, len(result.err.splitlines())) == (66, "", 1)
    assert message in result.err


def test_a_damaged_checkpoint_is_detected_by_its_digest(dltrain: Command) -> None:
    data = bytearray((FORMAT_2 / "checkpoints" / "last.pt").read_bytes())
    data[5000] ^= 1
    Path("odd.pt").write_bytes(data)
    result = dltrain("inspect", "odd.pt")
    assert (result.code, "its SHA-256 is" in result.err) == (66, True)


def test_inspect_needs_one_file(dltrain: Command) -> None:
    assert dltrain("inspect").code == 2
    assert dltrain("inspect", "a", "b").code == 2


def test_inspect_imports_no_torch() -> None:
    code = "import sys; from dltrain.cli import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, "inspect", str(FORMAT_2)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"
