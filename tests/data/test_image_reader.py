"""Files are read in threads: results in order, few of them waiting, progress shown, errors handed on."""

import threading

import pytest

from dltrain.data import image_reader


def test_results_come_in_the_order_of_the_files_though_later_ones_are_ready_earlier(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    later = threading.Event()

    def read(number: int) -> int:
        assert number or later.wait(60)  # the first file waits for the last one
        if number == 9:
            later.set()
        return number * number

    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert list(image_reader.in_threads(read, range(10), "reading")) == [number**2 for number in range(10)]


def test_few_results_wait_however_many_files_there_are() -> None:
    begun: list[int] = []
    results = image_reader.in_threads(begun.append, range(1000), "reading")
    for taken, _ in enumerate(results):
        assert len(begun) <= taken + 1 + image_reader.READ_AHEAD
    assert sorted(begun) == list(range(1000))


def test_value_errors_are_results_and_other_errors_are_raised() -> None:
    first, second, third = image_reader.in_threads(int, ["1", "x", "3"], "reading")
    assert (first, third) == (1, 3)
    assert isinstance(second, ValueError)
    with pytest.raises(ZeroDivisionError):
        list(image_reader.in_threads(lambda number: 1 // number, [1, 0], "reading"))


def test_no_files_give_no_results() -> None:
    assert list(image_reader.in_threads(str, [], "reading")) == []


def test_without_a_terminal_lines_show_the_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(image_reader, "LINE_SECONDS", -1.0)
    monkeypatch.setattr(image_reader.log, "info", lambda text, *values: lines.append(text % values))
    list(image_reader.in_threads(str, range(3), "reading train"))
    assert lines == [f"reading train: {count} of 3" for count in (1, 2, 3)]
