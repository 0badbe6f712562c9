"""A curve in one line of text: it falls as the figures fall, and stays short however many there are."""

import math

import pytest

from dltrain.report.console import BLOCKS, FEWEST, Sparkline


def drawn(figures: list[float]) -> str:
    curve = Sparkline()
    for figure in figures:
        curve.add(figure)
    return str(curve)


def test_a_sparkline_falls_from_the_highest_block_to_the_lowest() -> None:
    assert drawn([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]) == BLOCKS[::-1]


def test_equal_values_are_a_flat_sparkline() -> None:
    assert drawn([2.0, 2.0, 2.0]) == BLOCKS[0] * 3


@pytest.mark.parametrize("figures", [[], [1.0], [1.0, math.nan, math.inf]], ids=str)
def test_fewer_than_two_values_have_no_sparkline(figures: list[float]) -> None:
    assert drawn(figures) == ""


@pytest.mark.parametrize("count", [FEWEST, 2 * FEWEST, 100, 5000])
def test_a_sparkline_stays_short_and_each_block_averages_equally_many_values(count: int) -> None:
    curve = Sparkline()
    for number in range(count):
        curve.add(float(number))
    assert FEWEST <= len(str(curve)) < 2 * FEWEST
    distances = {second - first for first, second in zip(curve.means, curve.means[1:], strict=False)}
    assert distances == {float(curve.each)}
