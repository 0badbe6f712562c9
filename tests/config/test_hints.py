"""Type hints are rules: which plain values obey each form, how a rule is told, and which values can be counted."""

import math
from typing import Annotated, Any, Literal, Optional, Union

import pytest
from annotated_types import Interval, Len

from dltrain.config.hints import Matches, choices, conforms, describe

Positive = Annotated[int, Interval(ge=1)]
Rate = Annotated[float, Interval(gt=0)]
Share = Annotated[float, Interval(ge=0, lt=1)]
Duration = Annotated[str, Matches(r"\d+(\.\d+)?[smh]", "a time such as 30s")]
Widths = Annotated[list[Positive], Len(1)]
Size = Annotated[list[Positive], Len(2, 2)]

# hint: values that obey it, values that do not
RULES: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "int": (int, [0, -3, 2**70], [1.0, True, False, "1", None, [1]]),
    "float": (float, [0.5, 3, -1e300], [True, math.nan, math.inf, -math.inf, "0.5", None]),
    "bool": (bool, [True, False], [0, 1, "true", None]),
    "str": (str, ["", "a"], [1, None, ["a"], True]),
    "list": (list, [[], [1, "a"]], [(1, 2), "ab", None]),
    "dict": (dict, [{}, {"a": 1}], [[], None]),
    "None": (None, [None], [0, "", False]),
    "NoneType": (type(None), [None], [0, "", False]),
    "literal texts": (Literal["a", "b"], ["a", "b"], ["c", "", None, 1]),
    "literal ints": (Literal[1, 3], [1, 3], [2, True, 1.0, "1", None]),
    "literal bool": (Literal[True], [True], [1, False, "true"]),
    "above": (Rate, [1e-9, 1, 1e9], [0, 0.0, -1, math.nan, math.inf, True]),
    "share": (Share, [0, 0.0, 0.999], [1, 1.0, -1e-9, None]),
    "at least": (Positive, [1, 10**30], [0, -1, 1.5, True, None]),
    "at most": (Annotated[float, Interval(ge=0, le=1)], [0, 1, 0.5], [1.0001, -0.1]),
    "list of ints": (list[int], [[], [1, 2]], [[1, 2.5], [True], 3, None]),
    "list of lists": (list[list[float]], [[[1, 2.5], []]], [[1], [[None]], [["a"]]]),
    "widths": (Widths, [[1], [5, 6]], [[], [0], [1, -1], 5, [True], None]),
    "size": (Size, [[28, 28]], [[28], [1, 2, 3], [0, 5]]),
    "bounded list": (Annotated[list[int], Len(1, 2)], [[1], [1, 2]], [[], [1, 2, 3]]),
    "optional": (int | None, [None, 5], [1.5, "null", False]),
    "typing.Optional": (Optional[Rate], [None, 0.1], [0, "x"]),  # noqa: UP045  (the older spelling must work as well)
    "typing.Union": (Union[int, str], [5, "a"], [None, 1.5]),  # noqa: UP007  (the older spelling must work as well)
    "optional list": (list[float] | None, [None, [0.5], []], [0.5, [None]]),
    "steps or time": (Positive | Duration, [1, "30s", "1.5h"], [0, "soon", "30", None]),
    "matches": (Duration, ["5s", "0.5m", "12h"], ["5", "s", "5s ", "x5s", "5s\n", 5]),
    "list of literals": (list[Literal["a", "b"]], [["a", "b", "a"], []], [["c"], "a"]),
    "any": (Any, [None, 1, "x", object()], []),
    "unknown": (tuple[int, ...], [None, 1, "x"], []),
}
OBEYING = [pytest.param(hint, it, id=f"{name}: {it!r:.20}") for name, (hint, good, _) in RULES.items() for it in good]
BREAKING = [pytest.param(hint, it, id=f"{name}: {it!r:.20}") for name, (hint, _, bad) in RULES.items() for it in bad]


@pytest.mark.parametrize(("hint", "value"), OBEYING)
def test_a_value_within_the_rule_obeys(hint: Any, value: Any) -> None:
    assert conforms(value, hint)


@pytest.mark.parametrize(("hint", "value"), BREAKING)
def test_a_value_outside_the_rule_is_refused(hint: Any, value: Any) -> None:
    assert not conforms(value, hint)


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "a whole number"),
        (float, "a number"),
        (bool, "true or false"),
        (str, "text"),
        (list, "a list"),
        (None, "null"),
        (type(None), "null"),
        (Any, "any value"),
        (tuple[int, ...], "any value"),
        (Rate, "a number > 0"),
        (Share, "a number >= 0, < 1"),
        (Positive, "a whole number >= 1"),
        (Annotated[float, Interval(gt=0, le=1)], "a number > 0, <= 1"),
        (Literal["relu", "gelu"], "one of relu, gelu"),
        (Literal[1, 3], "one of 1, 3"),
        (Literal["only"], "only"),
        (list[float], "a list, each a number"),
        (Widths, "a list, each a whole number >= 1 (at least 1)"),
        (Size, "a list, each a whole number >= 1 (2 items)"),
        (int | None, "a whole number or null"),
        (Duration, "a time such as 30s"),
        (Positive | Duration, "a whole number >= 1 or a time such as 30s"),
        (list[str] | str, "a list, each text or text"),
        (Annotated[int, "a remark"], "a whole number"),
    ],
    ids=str,
)
def test_a_rule_is_described_in_words(hint: Any, words: str) -> None:
    assert describe(hint) == words


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (bool, ["true", "false"]),
        (Literal["lstm", "gru"], ["lstm", "gru"]),
        (Literal[1, 3], ["1", "3"]),
        (Literal["a"] | None, ["a", "null"]),
        (bool | Literal["auto"], ["true", "false", "auto"]),
        (None, ["null"]),
        (int, []),
        (Rate, []),
        (list[int], []),
        (Any, []),
    ],
    ids=str,
)
def test_values_that_can_be_counted_are_offered(hint: Any, words: list[str]) -> None:
    assert choices(hint) == words


def test_a_remark_that_is_no_rule_allows_every_value_of_the_type() -> None:
    assert conforms(5, Annotated[int, "a remark"])
    assert not conforms("5", Annotated[int, "a remark"])
