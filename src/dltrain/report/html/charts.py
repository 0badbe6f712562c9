"""Figures of a page as Vega-Lite 6 specifications: data in, plain dicts out. Colours and fonts are the page's."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Spec = dict[str, Any]
Record = Mapping[str, Any]

MOST_POINTS = 400  # of a curve; a screen shows no more
MOST_POINTS_OF_ALL = 5_000  # of the curves of many runs: 500 runs stay below two seconds to open
MOST_LABELS = 20  # classes up to which a confusion matrix has its counts written into it


def thinned(points: Sequence[Any], most: int = MOST_POINTS) -> list[Any]:
    """At most so many of the points, evenly spread, the last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(index * (len(points) - 1) / (most - 1))] for index in range(most)]


def finite(value: Any) -> bool:
    """Whether it can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def curve(records: Iterable[Record], key: str, title: str) -> Spec | None:
    """A figure of the records over epochs, a line for each split; None where no record has it."""
    found = [it for it in records if finite(it.get(key)) and finite(it.get("epoch"))]
    values = []
    for split in ("train", "val"):
        own = [{"x": it["epoch"], "y": it[key], "s": split} for it in found if it.get("split") == split]
        values += thinned(own)
    if not values:
        return None
    few = len(values) <= 60
    return {
        **_frame(f"{title} over epochs", values),
        "encoding": {
            "x": _quantity("x", "epoch"),
            "y": _quantity("y", title),
            "color": {"field": "s", "type": "nominal", "title": None, "sort": ["train", "val"]},
            "tooltip": [_tip("s", "split"), _tip("x", "epoch"), _tip("y", title)],
        },
        "layer": [
            {"mark": {"type": "line"}},
            {"mark": {"type": "point", "filled": True, "size": 30, "opacity": 1 if few else 0}},
        ],
    }


def curves_of_runs(curves: Mapping[str, Sequence[tuple[float, float]]], title: str) -> Spec | None:
    """A figure of several runs over epochs, thin lines coloured by where they end; None where there is none."""
    most = max(5, min(100, MOST_POINTS_OF_ALL // max(len(curves), 1)))
    values = []
    for label, points in curves.items():
        drawn = [(x, y) for x, y in points if finite(x) and finite(y)]
        values += [
            {"x": _short(x), "y": _short(y), "s": label, "c": _short(drawn[-1][1])} for x, y in thinned(drawn, most)
        ]
    if not values:
        return None
    single = all(len(points) < 2 for points in curves.values())
    return {
        **_frame(f"{title} over epochs, a line for each run", values),
        "height": 320,
        "mark": {"type": "point" if single else "line", "strokeWidth": 1.2, "opacity": 0.8},
        "encoding": {
            "x": _quantity("x", "epoch"),
            "y": _quantity("y", title),
            "detail": {"field": "s", "type": "nominal"},
            "color": {
                "field": "c",
                "type": "quantitative",
                "title": "at its end",
                "scale": {"zero": False, "reverse": title.endswith(("loss", "mae"))},  # one colour for what is good
            },
            "tooltip": [_tip("s", "run"), _tip("x", "epoch"), _tip("y", title)],
        },
    }


def confusion(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> Spec:
    """Counts (K, K) of true classes (rows) by predicted ones (columns), coloured by their share of the row."""
    values = []
    for true, row in zip(classes, counts, strict=True):
        total = max(sum(row), 1)
        values += [
            {"t": true, "p": claimed, "n": count, "r": count / total}
            for claimed, count in zip(classes, row, strict=True)
        ]
    axis = {"labelOverlap": True}
    across = {**axis, "labelAngle": 0 if all(len(name) <= 4 for name in classes) else -45}
    cells: Spec = {
        "mark": {"type": "rect"},
        "encoding": {
            # By the square root: a class that is taken for another once in a hundred times is still seen.
            "color": {"field": "r", "type": "quantitative", "title": "of the row", "scale": {"type": "sqrt"}},
        },
    }
    numbers: Spec = {
        "transform": [{"filter": "datum.n > 0"}],
        "mark": {"type": "text", "fontSize": 11},
        "encoding": {
            "text": {"field": "n", "format": ",d"},
            "color": {"condition": {"test": "datum.r > 0.35", "value": "white"}},
        },
    }
    return {
        **_frame("Confusion matrix: true classes by predicted ones", values),
        "height": 340,
        "encoding": {
            "x": {"field": "p", "type": "nominal", "title": "predicted", "sort": None, "axis": across},
            "y": {"field": "t", "type": "nominal", "title": "true", "sort": None, "axis": axis},
            "tooltip": [_tip("t", "true"), _tip("p", "predicted"), _tip("n", "examples"), _tip("r", "of the row")],
        },
        "layer": [cells, numbers] if len(classes) <= MOST_LABELS else [cells],
    }


def reliability(bins: Iterable[Mapping[str, Any]]) -> Spec:
    """Accuracy by how sure the network was; on the diagonal it is as often right as it says."""
    drawn = [it for it in bins if it["count"]]
    values = [
        {"a": it["from"], "b": it["to"], "y": it["accuracy"], "m": it["confidence"], "n": it["count"]} for it in drawn
    ]
    share = {"type": "quantitative", "scale": {"domain": [0, 1]}}
    bars: Spec = {
        "mark": {"type": "bar", "opacity": 0.75},
        "encoding": {
            "x": {"field": "a", **share, "title": "confidence", "bin": {"binned": True}},
            "x2": {"field": "b"},
            "y": {"field": "y", **share, "title": "accuracy"},
            "tooltip": [_tip("m", "mean confidence"), _tip("y", "accuracy"), _tip("n", "examples")],
        },
    }
    diagonal: Spec = {
        "data": {"values": [{"a": 0, "y": 0}, {"a": 1, "y": 1}]},
        "mark": {"type": "line", "strokeDash": [4, 4], "strokeWidth": 1, "tooltip": None},
        "encoding": {"x": {"field": "a", **share}, "y": {"field": "y", **share}},
    }
    return {**_frame("Reliability: accuracy by confidence", values), "height": 300, "layer": [bars, diagonal]}


def points(pairs: Iterable[Sequence[float]]) -> Spec:
    """Predicted numbers by true ones."""
    values = [{"x": true, "y": predicted} for true, predicted in pairs if finite(true) and finite(predicted)]
    return {
        **_frame("Predicted by true numbers", values),
        "height": 300,
        "mark": {"type": "point", "filled": True, "size": 24},
        "encoding": {
            "x": _quantity("x", "true"),
            "y": _quantity("y", "predicted"),
            "tooltip": [_tip("x", "true"), _tip("y", "predicted")],
        },
    }


def against(values: Sequence[Mapping[str, Any]], key: str, title: str, coloured: str = "") -> Spec:
    """A figure against a key of the config.

    Args:
        values: for each group of runs `x` (the key's value), `y` (the mean), `lo` and `hi` (its interval; absent for a
            single run), `n` (runs), `label`, and `g`, the value of another key by which they are coloured, or no value
        key: the key's name
        title: the figure's name
        coloured: the name of that other key; empty for one colour
    """
    numbers = [it["x"] for it in values]
    x: Spec = {"field": "x", "title": key}
    if all(map(finite, numbers)):
        wide = min(numbers) > 0 and max(numbers) / min(numbers) >= 8
        x |= {"type": "quantitative", "scale": {"type": "log"} if wide else {"zero": False, "padding": 10}}
    else:
        x |= {"type": "nominal", "sort": None, "axis": {"labelAngle": 0, "labelOverlap": True}}
        values = [{**it, "x": str(it["x"])} for it in values]
    tips = [_tip("label", "runs"), _tip("x", key), _tip("y", title), _tip("n", "n")]
    y = {"type": "quantitative", "scale": {"domain": _domain([it["y"] for it in values]), "nice": True}}
    point: Spec = {
        "mark": {"type": "point", "filled": True, "size": 45, "opacity": 0.8},
        "encoding": {"y": {"field": "y", **y, "title": title}, "tooltip": tips},
    }
    interval: Spec = {
        "transform": [{"filter": "isValid(datum.lo)"}],
        "mark": {"type": "rule", "opacity": 0.6, "clip": True},
        "encoding": {"y": {"field": "lo", **y, "title": title}, "y2": {"field": "hi"}},
    }
    color = {"color": {"field": "g", "type": "nominal", "title": coloured, "sort": None}} if coloured else {}
    layers = [interval, point] if any("lo" in it for it in values) else [point]
    return {**_frame(f"{title} against {key}", values), "encoding": {"x": x, **color}, "layer": layers}


def _domain(means: Sequence[float]) -> list[float]:
    """An axis for means: the interval of two seeds can be a hundred times as wide as all that is to be seen."""
    low, high = min(means), max(means)
    margin = (high - low) / 2 or abs(high) / 10 or 1.0
    return [low - margin, high + margin]


def _short(value: float) -> float:
    """Five digits: no screen shows more, and a page of many runs is half as large."""
    return float(f"{value:.5g}")


def _frame(description: str, values: Sequence[Any]) -> Spec:
    return {"description": description, "data": {"values": list(values)}, "width": "container", "height": 220}


def _quantity(field: str, title: str) -> Spec:
    return {"field": field, "type": "quantitative", "title": title, "scale": {"zero": False}}


def _tip(field: str, title: str) -> Spec:
    return {"field": field, "title": title}
