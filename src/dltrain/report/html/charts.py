"""Charts as Vega-Lite 6 specifications: data in, plain dicts out. page.js sets colours and fonts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dltrain.report.run_reader import is_finite

Spec = dict[str, Any]
Record = Mapping[str, Any]

MOST_POINTS = 400  # of a curve; a screen shows no more
FEW = 10  # points of a curve that are drawn as such
IS_DARK = "luminance(scale('color', datum.r)) < 0.18"  # of a cell: white text on it has the higher contrast
MOST_LABELS = 20  # classes up to which a confusion matrix has its counts written into it


def thinned(points: Sequence[Any], most: int = MOST_POINTS) -> list[Any]:
    """Return at most `most` of the points, evenly spread, including the last one."""
    if len(points) <= most:
        return list(points)
    return [points[round(index * (len(points) - 1) / (most - 1))] for index in range(most)]


def curve(records: Iterable[Record], key: str, title: str) -> Spec | None:
    """Return a chart of a metric over epochs, a line for each split; None if no record has it."""
    plotted = [record for record in records if is_finite(record.get(key)) and is_finite(record.get("epoch"))]
    values = []
    for split in ("train", "val"):
        chosen = [record for record in plotted if record.get("split") == split]
        values += [{"x": record["epoch"], "y": record[key], "s": split} for record in thinned(chosen)]
    if not values:
        return None
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
            {"mark": {"type": "point", "filled": True, "size": 30, "opacity": 1 if len(values) <= 6 * FEW else 0}},
        ],
    }


def curves_of_runs(curves: Mapping[str, Sequence[tuple[float, float]]], title: str, most: int) -> Spec | None:
    """Chart a metric of several runs over epochs, in about `most` points, coloured by the last value; None if empty."""
    most = max(5, min(100, most // max(len(curves), 1)))
    values = []
    for label, points in curves.items():
        plotted = [(x, y) for x, y in points if is_finite(x) and is_finite(y)]
        values += [
            {"x": _short(x), "y": _short(y), "s": label, "c": _short(plotted[-1][1])} for x, y in thinned(plotted, most)
        ]
    if not values:
        return None
    point = {"filled": False, "size": 12} if len(values) <= FEW * len(curves) else False  # with a gradient as legend
    scale = {"zero": False, "reverse": title.endswith(("loss", "mae"))}  # good values share a colour
    return {
        **_frame(f"{title} over epochs, a line for each run", values, 320),
        "mark": {"type": "line", "strokeWidth": 1.2, "opacity": 0.8, "point": point},
        "encoding": {
            "x": _quantity("x", "epoch"),
            "y": _quantity("y", title),
            "detail": {"field": "s", "type": "nominal"},
            "color": _quantity("c", "last value") | {"scale": scale},
            "tooltip": [_tip("s", "run"), _tip("x", "epoch"), _tip("y", title)],
        },
    }


def confusion(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> Spec:
    """Return a confusion matrix from counts (K, K), rows true, columns predicted, coloured by fraction of the row."""
    values = [
        {"t": true, "p": predicted, "n": count, "r": count / max(sum(row), 1)}
        for true, row in zip(classes, counts, strict=True)
        for predicted, count in zip(classes, row, strict=True)
    ]
    count, few = len(classes), len(classes) <= MOST_LABELS
    step = {"step": 13 if not few else 29 if count > FEW else 300 // max(count, 6)}  # room for counts, or for names
    size: Spec = {"width": step, "height": step} if count > 5 else {}
    axis = {"labelOverlap": False, "labelFontSize": 10}
    across = {**axis, "labelAngle": 0 if few and all(len(name) <= 2 for name in classes) else -90}
    # On a square root scale one confusion in a hundred is still visible.
    fill = {"field": "r", "type": "quantitative", "title": "of the row", "scale": {"type": "sqrt"}}
    cells: Spec = {"mark": {"type": "rect"}, "encoding": {"color": fill}}
    ink = {"condition": {"test": IS_DARK, "value": "white"}, "value": "black"}
    numbers: Spec = {
        "transform": [{"filter": "datum.n > 0"}],
        "mark": {"type": "text", "fontSize": 10},
        "encoding": {"text": {"field": "n", "format": ",d"}, "color": ink},
    }
    return {
        **_frame("Confusion matrix: true classes by predicted ones", values, 300),
        **size,
        "encoding": {
            "x": {"field": "p", "type": "nominal", "title": "predicted", "sort": None, "axis": across},
            "y": {"field": "t", "type": "nominal", "title": "true", "sort": None, "axis": axis},
            "tooltip": [_tip("t", "true"), _tip("p", "predicted"), _tip("n", "examples"), _tip("r", "of the row")],
        },
        "layer": [cells, numbers] if few else [cells],
    }


def reliability(bins: Iterable[Mapping[str, Any]]) -> Spec:
    """Return a reliability diagram: accuracy by confidence, equal on the diagonal."""
    values = [
        {"a": row["from"], "b": row["to"], "y": row["accuracy"], "m": row["confidence"], "n": row["count"]}
        | {"c": (row["from"] + row["to"]) / 2}
        for row in bins
        if row["count"]
    ]
    fraction = {"type": "quantitative", "scale": {"domain": [0, 1]}}
    bars: Spec = {
        "mark": {"type": "bar", "opacity": 0.75},
        "encoding": {
            "x": {"field": "a", **fraction, "title": "confidence", "bin": {"binned": True}},
            "x2": {"field": "b"},
            "y": {"field": "y", **fraction, "title": "accuracy"},
            "tooltip": [_tip("m", "mean confidence"), _tip("y", "accuracy"), _tip("n", "examples")],
        },
    }
    diagonal: Spec = {
        "data": {"values": [{"a": 0, "y": 0}, {"a": 1, "y": 1}]},
        "mark": {"type": "line", "strokeDash": [4, 4], "strokeWidth": 1, "tooltip": None},
        "encoding": {"x": {"field": "a", **fraction}, "y": {"field": "y", **fraction}},
    }
    number = {"type": "text", "angle": 270, "align": "left", "dx": 3, "fontSize": 9, "tooltip": None}
    place = {"x": {"field": "c", **fraction}, "y": {"value": 0}}  # in a row above the bars
    counts: Spec = {"mark": number, "encoding": {**place, "text": {"field": "n", "format": ".2~s"}}}
    title = "Reliability: accuracy by confidence, with the number of examples"
    return {**_frame(title, values, 300), "layer": [bars, diagonal, counts]}


def points(pairs: Iterable[Sequence[float]]) -> Spec:
    """Return a chart of predicted numbers over true ones."""
    values = [{"x": true, "y": predicted} for true, predicted in pairs if is_finite(true) and is_finite(predicted)]
    return {
        **_frame("Predicted over true values", values, 300),
        "mark": {"type": "point", "filled": True, "size": 24},
        "encoding": {
            "x": _quantity("x", "true"),
            "y": _quantity("y", "predicted"),
            "tooltip": [_tip("x", "true"), _tip("y", "predicted")],
        },
    }


def against(values: Sequence[Mapping[str, Any]], key: str, title: str, coloured: str = "") -> Spec:
    """Return a chart of a metric against a key of the config.

    Args:
        values: for each group of runs `x` (value of the key), `y` (mean), `n` (runs), `label`; optionally `lo` and `hi`
            (interval of the mean, for more than one run) and `g` (value of another key, shown as colour)
        key: name of the key
        title: name of the metric
        coloured: name of the other key; empty for one colour
    """
    numbers = [value["x"] for value in values]
    x: Spec = {"field": "x", "title": key}
    names = set(map(str, numbers))
    few = len(names) <= FEW
    if all(map(is_finite, numbers)) and not few:
        wide = min(numbers) > 0 and max(numbers) / min(numbers) >= 8
        x |= {"type": "quantitative", "scale": {"type": "log"} if wide else {"zero": False, "padding": 10}}
    else:
        axis = {"labelAngle": 0 if len("  ".join(names)) <= 40 else -90, "labelOverlap": len(names) > MOST_LABELS}
        x |= {"type": "ordinal", "sort": "ascending", "axis": axis}
    tips = [_tip("label", "runs"), _tip("x", key), _tip("y", title), _tip("n", "n")]
    y = {"type": "quantitative", "scale": {"domain": _domain([value["y"] for value in values]), "nice": True}}
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
    color |= {"xOffset": {"field": "g"}} if coloured and few else {}  # side by side
    layers = [interval, point] if any("lo" in value for value in values) else [point]
    return {**_frame(f"{title} against {key}", values, 320), "encoding": {"x": x, **color}, "layer": layers}


def _domain(means: Sequence[float]) -> list[float]:
    """Return the range of an axis for means only: the interval of two seeds can be a hundred times as wide."""
    low, high = min(means), max(means)
    margin = (high - low) / 2 or abs(high) / 10 or 1.0
    return [low - margin, high + margin]


def _short(value: float) -> float:
    """Round to five digits: a screen shows no more, and a page of many runs is half as large."""
    return float(f"{value:.5g}")


def _frame(description: str, values: Sequence[Any], height: int = 220) -> Spec:
    return {"description": description, "data": {"values": list(values)}, "width": "container", "height": height}


def _quantity(field: str, title: str) -> Spec:
    return {"field": field, "type": "quantitative", "title": title, "scale": {"zero": False}}


def _tip(field: str, title: str) -> Spec:
    return {"field": field, "title": title}
