"""Reasons to stop, the time to save, and signals that are noted instead of killing."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dltrain import cli
from dltrain.commands import jobs
from dltrain.config.composition import compose
from dltrain.runtime.errors import ConfigError
from dltrain.runtime.signals import SIGNALS, SignalInterrupt, exit_code, recorded_signals, signals_as_exceptions
from dltrain.training.stopping import every, reason_to_stop

NOTHING: dict[str, Any] = {
    "signals": [],
    "step": 10,
    "limit_steps": None,
    "seconds": 5.0,
    "max_seconds": None,
    "stale_epochs": 2,
    "patience": None,
}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"signals": [15]}, "interrupted"),
        ({"limit_steps": 11}, ""),
        ({"limit_steps": 10}, "limit_steps"),
        ({"limit_steps": 9}, "limit_steps"),
        ({"max_seconds": 5.1}, ""),
        ({"max_seconds": 5.0}, "max_seconds"),
        ({"patience": 3}, ""),
        ({"patience": 2}, "patience"),
        ({"patience": 1}, "patience"),
        ({"signals": [2], "limit_steps": 1, "max_seconds": 1.0, "patience": 1}, "interrupted"),
        ({"limit_steps": 1, "max_seconds": 1.0, "patience": 1}, "limit_steps"),
        ({"max_seconds": 1.0, "patience": 1}, "max_seconds"),
    ],
    ids=str,
)
def test_the_first_limit_that_is_reached_is_named(changes: dict[str, Any], reason: str) -> None:
    now = NOTHING | changes
    limits: Any = SimpleNamespace(**{key: now.pop(key) for key in ("limit_steps", "max_seconds", "patience")})
    assert reason_to_stop(limits, **now) == reason


def test_an_interval_in_steps_is_due_at_its_multiples() -> None:
    is_due = every(3)
    assert [step for step in range(1, 10) if is_due(step)] == [3, 6, 9]


def due_at(interval: str, times: list[float], monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """At which of `times` (after 0) the interval is over."""
    clock = iter([0.0, *times])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    is_due = every(interval)
    return [now for now in times if is_due(1)]


def test_an_interval_in_seconds_counts_from_the_last_time(monkeypatch: pytest.MonkeyPatch) -> None:
    times = [0.4, 0.5, 1.4, 1.5, 3.5, 7.5, 15.5, 31.4, 31.5, 61.4, 61.5, 91.4, 91.5, 200.0, 229.0]
    assert due_at("30s", times, monkeypatch) == [0.5, 1.5, 3.5, 7.5, 15.5, 31.5, 61.5, 91.5, 200.0]


def test_by_default_a_run_saves_half_a_second_after_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """So one that is killed at twice its start-up time, again and again, makes progress. Then intervals double."""
    interval = compose("train", [])["checkpoint_every"]
    assert isinstance(interval, str)
    assert due_at(interval, [0.25 * quarter for quarter in range(1, 17)], monkeypatch) == [0.5, 1.5, 3.5]


@pytest.mark.parametrize(("interval", "seconds"), [("1.5s", 1.5), ("2m", 120.0), ("0.5h", 1800.0)])
def test_a_time_is_read_with_its_unit(interval: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    warm = [2.0**power for power in range(-1, 12) if 2.0**power < 2 * seconds]  # the doubling distances of the start
    times = [sum(warm[: count + 1]) for count in range(len(warm))]
    end = times[-1]
    found = due_at(interval, [*times, end + seconds - 0.01, end + seconds], monkeypatch)
    assert found[-1] == end + seconds
    assert end + seconds - 0.01 not in found


def test_an_interval_of_zero_seconds_is_due_at_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    assert due_at("0.0s", [0.0, 0.0, 1.0], monkeypatch) == [0.0, 0.0, 1.0]


BOTH = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture
def outer() -> Iterator[list[int]]:
    """Handlers that were there before, which write down what reaches them."""
    reached: list[int] = []
    before = {number: signal.signal(number, lambda number, _: reached.append(number)) for number in BOTH}
    yield reached
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_is_recorded_and_does_not_reach_the_earlier_handler(number: int, outer: list[int]) -> None:
    with recorded_signals() as noted:
        os.kill(os.getpid(), number)
        assert noted == [number]
    assert outer == []


@pytest.mark.parametrize("first", BOTH)
@pytest.mark.parametrize("second", BOTH)
def test_a_second_signal_acts_as_before(first: int, second: int, outer: list[int]) -> None:
    with recorded_signals() as noted:
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), second)
        assert (noted, outer) == ([first], [second])


def test_a_second_ctrl_c_is_a_keyboard_interrupt(outer: list[int]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with recorded_signals():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("signalled", [False, True])
def test_the_earlier_handlers_are_restored(signalled: bool, outer: list[int]) -> None:
    before = [signal.getsignal(number) for number in BOTH]
    with recorded_signals():
        assert [signal.getsignal(number) for number in BOTH] != before
        if signalled:
            os.kill(os.getpid(), signal.SIGTERM)
    assert [signal.getsignal(number) for number in BOTH] == before


def test_the_earlier_handlers_are_restored_after_an_error(outer: list[int]) -> None:
    before = [signal.getsignal(number) for number in BOTH]
    with pytest.raises(ZeroDivisionError), recorded_signals():
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in BOTH] == before


def test_no_signal_is_an_empty_list(outer: list[int]) -> None:
    with recorded_signals() as noted:
        pass
    assert noted == []


def test_another_thread_records_nothing_and_changes_no_handler(outer: list[int]) -> None:
    before = [signal.getsignal(number) for number in BOTH]
    found: list[Any] = []

    def work() -> None:
        with recorded_signals() as noted:
            found.extend([noted, [signal.getsignal(number) for number in BOTH]])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [[], before]


@pytest.fixture
def hang_up() -> Iterator[None]:
    """What a terminal that is closed does is not done to the tests."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hang_up")
def test_a_second_hangup_is_ignored_and_ctrl_c_still_works(outer: list[int]) -> None:
    with recorded_signals() as noted:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGINT)
        assert (noted, outer) == ([signal.SIGHUP], [signal.SIGINT])
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


@pytest.mark.usefixtures("hang_up")
def test_a_hangup_before_there_is_anything_to_save_stops_once() -> None:
    with signals_as_exceptions():
        with pytest.raises(SignalInterrupt) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
    assert (str(stop.value), stop.value.exit_code) == ("stopped by SIGHUP", 129)


@pytest.mark.usefixtures("hang_up")
def test_an_ignored_hangup_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with signals_as_exceptions(), recorded_signals() as noted:
        os.kill(os.getpid(), signal.SIGHUP)
    assert noted == []
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.usefixtures("hang_up")
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("place", ["_run", "dispatch"])
def test_a_signal_that_breaks_the_cleanup_of_a_library_is_reported_as_a_signal(
    number: int, place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(*_: object, **__: object) -> int:
        try:
            signal.raise_signal(number)
        finally:
            raise AttributeError("no such attribute of None")

    def refused(*_: object) -> int:
        try:
            return work()
        except AttributeError as error:
            raise ConfigError("cannot be composed") from error

    monkeypatch.setattr(*(jobs, place, work) if place == "dispatch" else (cli, place, refused))
    assert cli.main(["train"]) == SIGNALS[signal.Signals(number)]
    assert capsys.readouterr().err == f"stopped by {signal.Signals(number).name}\n"


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_an_import_turned_into_another_error_is_reported_as_a_signal(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def importing(argv: list[str]) -> int:
        try:
            raise SignalInterrupt(number)
        except SignalInterrupt as stop:
            raise ImportError("half of a library") from stop

    monkeypatch.setattr(cli, "_dispatch", importing)
    assert cli.main(["list"]) == SIGNALS[number]
    assert "half of a library" not in capsys.readouterr().err


def test_a_signal_raised_again_by_user_code_keeps_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def reading(argv: list[str]) -> int:
        try:
            raise SignalInterrupt(signal.SIGTERM)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("gave up loading") from None

    monkeypatch.setattr(cli, "_dispatch", reading)
    assert cli.main(["list"]) == 143


def test_a_job_that_failed_because_of_a_signal_was_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    def execute(command: str, config: dict[str, Any]) -> dict[str, Any]:
        try:
            raise SignalInterrupt(signal.SIGTERM)
        except SignalInterrupt as stop:
            raise ConfigError("model.name: cannot import half of a library") from stop

    monkeypatch.setattr(jobs, "dispatch", execute)
    outcome, _ = jobs.run_job("train", {}, exit_code)
    assert (outcome.code, outcome.status, outcome.interrupted) == (143, "interrupted", True)


@pytest.mark.parametrize("is_noted", [False, True])  # by a sweep
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_import_of_torch_is_delayed_and_not_lost(
    tmp_path: Path, number: signal.Signals, is_noted: bool
) -> None:
    """Some import within torch's own catches all there is; here one does so for sure."""
    (tmp_path / "torch.py").write_text(
        "import os, signal\n"
        f"try:\n    os.kill(os.getpid(), {int(number)})\n    whole = True\nexcept BaseException:\n    whole = False\n"
    )
    code = (
        "import sys\nsys.path.insert(0, sys.argv[1])\nfrom dltrain.runtime import signals, startup\n"
        "with signals.signals_as_exceptions():\n    try:\n"
        f"        {'with signals.recorded_signals() as noted: ' if is_noted else ''}startup.import_torch()\n"
        f"        print(sys.modules['torch'].whole, 'noted', *noted)\n"
        "    except signals.SignalInterrupt as stop:\n        print(sys.modules['torch'].whole, stop)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert found.stdout == (f"True noted {int(number)}\n" if is_noted else f"True stopped by {number.name}\n")
