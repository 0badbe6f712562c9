"""What a run shows: on terminals, wide and narrow, on those that take no control codes, and when they go away."""

import os
import pty
import re
import termios
from pathlib import Path

import pytest

from dltrain.report.console import BLOCKS
from dltrain.runtime.terminal import fit_parts, is_closed, is_interactive
from support.command import Command
from support.terminals import lines, terminal

RUN = (
    *("train", "model=linear", "data.limit=400", "device.threads=1", "log_every=2"),
    *("schedule=constant", "optim.lr=0.01"),
)
LONG = (*RUN, "epochs=100000")


def log_of(folder: Path) -> str:
    (path,) = folder.glob("outputs/*/*/train.log")
    return path.read_text(encoding="utf-8")


def is_clean(log: str) -> bool:
    """Whether each line begins with its time, and nothing in it steers a terminal."""
    line = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ [\x20-\x7e]*"
    return bool(log) and all(re.fullmatch(line, each) for each in log.split("\n")[:-1])


def test_a_pipe_gets_plain_lines_with_the_best_so_far(dltrain: Command, tmp_path: Path) -> None:
    result = dltrain(*RUN, "epochs=30")
    assert (result.code, result.err) == (0, "")
    assert not set("\x1b\r") & set(result.out)
    epochs = [line for line in result.out.splitlines() if line.startswith("epoch")]
    assert len(epochs) == 30
    best = 0.0
    for number, line in enumerate(epochs, 1):
        assert line.startswith(f"epoch {number:>2}/30 step ")
        (value,) = re.findall(r", val loss \S+ accuracy (\S+),", line)
        best = max(best, float(value))
        (told,) = re.findall(r"best val accuracy (\S+) in epoch \d+$", line)
        assert float(told) == best
    assert is_clean(log_of(tmp_path))


@pytest.mark.slow
def test_a_terminal_with_no_color_gets_no_control_codes(tmp_path: Path) -> None:
    with terminal(tmp_path, *RUN, "epochs=30", columns=60, NO_COLOR="1") as opened:
        shown = opened.read()
        assert opened.process.wait() == 0
    assert "\x1b" not in shown
    assert "\r" not in shown.replace("\r\n", "")
    assert "epoch 30/30 step " in shown
    assert not set(BLOCKS) & set(shown)
    table = [line for line in lines(shown) if set("│┃") & set(line)]
    assert len(table) >= 3
    assert max(map(len, table)) <= 60


@pytest.mark.parametrize(
    ("environment", "lively"),
    [({}, True), ({"NO_COLOR": ""}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
    ids=str,
)
def test_a_terminal_is_interactive_unless_dumb_or_no_color(
    environment: dict[str, str], lively: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    ends = pty.openpty()
    with open(ends[1], "w", encoding="utf-8") as stream:  # noqa: PTH123  (a descriptor has no path)
        assert is_interactive(stream) == lively
    os.close(ends[0])


def test_a_pipe_is_not_interactive(tmp_path: Path) -> None:
    with (tmp_path / "a.txt").open("w") as stream:
        assert not is_interactive(stream)


@pytest.mark.slow
def test_no_line_is_wider_than_the_terminal_and_the_sparkline_is_shown(tmp_path: Path) -> None:
    with terminal(tmp_path, *RUN, "epochs=300", columns=60) as opened:
        shown = opened.read()
        assert opened.process.wait() == 0
    seen = lines(shown)
    assert max(map(len, seen)) <= 60
    live = [line for line in seen if set(BLOCKS) & set(line)]
    assert len(live) >= 3
    assert all("epoch " in line and " loss " in line and " best 0." in line for line in live[1:])
    assert all(len(line) < 60 for line in live), "the last column stays free"
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor must be seen again"
    assert is_clean(log_of(tmp_path))


@pytest.mark.slow
def test_a_terminal_narrowed_during_a_run_gets_narrow_lines_and_is_restored_after_ctrl_c(tmp_path: Path) -> None:
    with terminal(tmp_path, *LONG, columns=110) as opened:
        before = opened.read(until=" best 0.")
        opened.resize(40)
        opened.read(seconds=0.5)  # what was under way
        after = opened.read(seconds=2)
        opened.type("\x03")
        end = opened.read()
        assert opened.process.wait() == 130
        assert termios.tcgetattr(opened.end) == opened.settings
    assert max(map(len, lines(before))) > 60
    assert any("epoch " in line and " loss " in line for line in lines(after)[1:])
    assert max(map(len, lines(after)[1:])) <= 40
    assert "stopped by SIGINT after saving" in " ".join(lines(end))
    assert opened.shown.rindex("\x1b[?25h") > opened.shown.rindex("\x1b[?25l")
    assert is_clean(log_of(tmp_path))


def test_a_run_whose_terminal_is_closed_saves_and_can_be_resumed(tmp_path: Path, dltrain: Command) -> None:
    with terminal(tmp_path, *LONG) as opened:
        opened.read(until=" best 0.")
        opened.close()
        assert opened.process.wait(60) == 129
    assert is_clean(log_of(tmp_path))
    (folder,) = tmp_path.glob("outputs/*/*")
    assert '"status": "interrupted"' in (folder / "summary.json").read_text()
    assert dltrain("train", f"resume={folder}", "max_seconds=0.1").code == 0


@pytest.mark.slow
def test_a_run_under_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    with terminal(tmp_path, *RUN, "epochs=100", nohup=True) as opened:
        opened.read(until=" best 0.")
        opened.close()
        assert opened.process.wait(120) == 0
    log = log_of(tmp_path)
    assert is_clean(log)
    assert "epoch 100/100" in log


def test_a_terminal_that_was_closed_is_known() -> None:
    ends = pty.openpty()
    assert not is_closed(ends[1])
    os.close(ends[0])
    assert is_closed(ends[1])
    os.close(ends[1])


def test_a_file_is_no_terminal_that_was_closed(tmp_path: Path) -> None:
    with (tmp_path / "a.txt").open("w") as stream, Path("/dev/null").open("w") as null:
        assert not is_closed(stream.fileno())
        assert not is_closed(null.fileno())


def test_parts_of_a_line_are_left_out_by_rank_and_stay_in_order() -> None:
    parts = [(3, "time"), (0, "epoch"), (1, "loss"), (9, ""), (2, "best")]
    assert fit_parts(parts, 80) == "time  epoch  loss  best"
    assert fit_parts(parts, 22) == "epoch  loss  best"
    assert fit_parts(parts, 12) == "epoch  loss"
    assert fit_parts(parts, 4) == "loss"  # what has room is better than nothing
    assert fit_parts(parts, 3) == ""


def test_without_validation_there_is_no_best(dltrain: Command) -> None:
    result = dltrain(*RUN, "epochs=2", "data.val=0")
    assert result.code == 0
    assert "epoch 2/2" in result.out
    assert "best val" not in result.out


def test_the_best_of_a_regression_is_its_smallest_loss(dltrain: Command) -> None:
    result = dltrain("train", "data=line", "data.val=0.2", "model=linear", "task=regression", "epochs=3")
    assert result.code == 0
    losses = re.findall(r"val loss (\S+) mae", result.out)
    assert len(losses) == 3
    (told,) = re.findall(r"epoch 3/3 .*best val loss (\S+) in epoch \d$", result.out, re.MULTILINE)
    assert float(told) == min(map(float, losses))
