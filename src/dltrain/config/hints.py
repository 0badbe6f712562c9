"""Type hints as rules for config values: check a value, describe a rule in words.

Knows int, float, bool, str, None, list, Literal, unions, and Annotated with Interval, Len and Matches. Any other hint
allows every value.
"""

import math
import operator
import re
import sys
import types
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Interval, Len

WIDEST = 1 << 1000  # larger integers fit into no float
LARGEST = sys.float_info.max  # neither infinite nor an integer of hundreds of digits


@dataclass(frozen=True)
class Matches:
    """The rule that a text must match a pattern; `description` is what the user reads."""

    pattern: str
    description: str


def conforms(value: Any, hint: Any) -> bool:
    """True if a config value conforms to a type hint. A whole number counts as a float, but true is not a number."""
    origin = get_origin(hint)
    if origin is Annotated:
        base, *rules = get_args(hint)
        return conforms(value, base) and all(_within(value, rule) for rule in rules)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(hint))
    if origin in (Union, types.UnionType):
        return any(conforms(value, choice) for choice in get_args(hint))
    if origin is list:
        return isinstance(value, list) and all(conforms(item, get_args(hint)[0]) for item in value)
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < WIDEST
    kind = origin or hint
    if isinstance(kind, type) and (kind in (bool, str, list, dict) or kind.__module__ == "torch"):
        return isinstance(value, kind)
    return True


def is_number(text: str) -> bool:
    """True if a text would be a number without its quotes."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _within(value: Any, rule: Any) -> bool:
    if isinstance(rule, Interval):
        bounds = {operator.gt: rule.gt, operator.ge: rule.ge, operator.lt: rule.lt, operator.le: rule.le}
        return value is None or all(bound is None or holds(value, bound) for holds, bound in bounds.items())
    if isinstance(rule, Len):
        return rule.min_length <= len(value) <= (math.inf if rule.max_length is None else rule.max_length)
    if isinstance(rule, Matches):
        return re.fullmatch(rule.pattern, value) is not None
    return True


def describe(hint: Any) -> str:
    """Describe a type hint: `a number > 0`, `one of relu, gelu`."""
    origin = get_origin(hint)
    if origin is Annotated:
        base, *rules = get_args(hint)
        if isinstance(rules[0], Matches):
            return rules[0].description
        return describe(base) + "".join(_describe_rule(rule) for rule in rules)
    if origin is Literal:
        choices = get_args(hint)
        return f"one of {', '.join(map(str, choices))}" if len(choices) > 1 else str(choices[0])
    if origin in (Union, types.UnionType):
        return " or ".join(describe(choice) for choice in get_args(hint))
    if origin is list:
        return f"a list, each {describe(get_args(hint)[0])}"
    names: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    names |= {list: "a list", dict: "values by name", None: "null", type(None): "null"}
    return names.get(origin or hint, "any value")


def _describe_rule(rule: Any) -> str:
    if isinstance(rule, Interval):
        bounds = {">": rule.gt, ">=": rule.ge, "<": rule.lt, "<=": rule.le}
        return "".join(f" {sign} {bound}" for sign, bound in bounds.items() if bound is not None).replace(" <", ", <")
    if isinstance(rule, Len):
        if rule.max_length is None:
            return f" (at least {rule.min_length})"
        fewest = "" if rule.max_length == rule.min_length else f"{rule.min_length} to "
        return f" ({fewest}{rule.max_length} items)"
    return ""


def choices(hint: Any) -> list[str]:
    """Return the values that a hint allows, as they are typed, if there are finitely many; for completion."""
    if get_origin(hint) is Literal:
        return [str(choice) for choice in get_args(hint)]
    if get_origin(hint) in (Union, types.UnionType):
        return [value for choice in get_args(hint) for value in choices(choice)]
    return {bool: ["true", "false"], type(None): ["null"], None: ["null"]}.get(hint, [])


def to_cli(value: Any) -> str:
    """Return a value as it is typed on the command line: null, true, [64, 32]."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {to_cli(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(to_cli, value)) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
