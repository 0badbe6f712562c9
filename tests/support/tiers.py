"""Tiers of tests: what runs by default, and what runs with `-m slow` or `-m torture`."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def mostly_slow(cases: Iterable[Any], *, fast: Collection[Any]) -> list[Any]:
    """Return the cases of a test as parameters; all but those in `fast` are slow."""
    return [case if case in fast else pytest.param(case, marks=pytest.mark.slow) for case in cases]


def counts(fast: int, slow: int, whole: int) -> Any:
    """Parametrize a test by `count`: few cases by default, more with `-m slow`, all with `-m torture`."""
    marked = [fast, pytest.param(slow, marks=pytest.mark.slow), pytest.param(whole, marks=pytest.mark.torture)]
    return pytest.mark.parametrize("count", marked)
