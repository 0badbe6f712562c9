"""Plot the runs of benchmarks/training.py as one Vega-Lite specification."""

from collections.abc import Iterable, Iterator, Sequence

from training_runs import Run, Spec, by_work, series, spreads


def bars(runs: Sequence[Run], part: str) -> Iterator[Spec]:
    """Yield a chart of images per second by variant, median and range, for each work of a part."""
    for (_, data, model, batch, *_), variants in by_work(runs, part).items():
        values = []
        for peer, all_runs in variants.items():
            if ended := [run for run in all_runs if "error" not in run]:
                rate = spreads(ended)["rate"]
                values.append({"peer": peer, "y": rate.median, "a": rate.least, "b": rate.most})
        across = {"type": "quantitative", "title": "images/s"}
        down = {"field": "peer", "type": "nominal", "sort": "-x", "title": None}
        yield {
            "title": f"{model}, {data}, batch {batch}",
            "width": 220,
            "data": {"values": values},
            "layer": [
                {
                    "mark": "bar",
                    "encoding": {
                        "x": {"field": "y", **across},
                        "y": down,
                        "color": {
                            "condition": {"test": "indexof(datum.peer, 'dltrain') == 0", "value": "#d95f02"},
                            "value": "#8da0cb",
                        },
                    },
                },
                {"mark": "rule", "encoding": {"x": {"field": "a", **across}, "x2": {"field": "b"}, "y": down}},
            ],
        }


def curves(runs: Sequence[Run]) -> Iterator[Spec]:
    """Yield charts of seconds and peak memory against epochs and examples."""
    for key, title in (("seconds", "seconds of the command"), ("memory", "peak MiB")):
        for grows in ("epochs", "examples"):
            values = [
                {"peer": peer, "x": at, "y": values[key].median, "a": values[key].least, "b": values[key].most}
                for peer, what, points in series(runs)
                if what.startswith(grows)
                for at, values in points
            ]
            across = {"field": "x", "type": "quantitative", "title": grows}
            color = {"field": "peer", "type": "nominal", "title": None}
            if values:
                yield {
                    "title": f"{title} by {grows}",
                    "width": 220,
                    "height": 160,
                    "data": {"values": values},
                    "encoding": {"x": across, "color": color},
                    "layer": [
                        {
                            "mark": {"type": "line", "point": True},
                            "encoding": {"y": {"field": "y", "type": "quantitative", "title": title}},
                        },
                        {
                            "mark": "rule",
                            "encoding": {"y": {"field": "a", "type": "quantitative"}, "y2": {"field": "b"}},
                        },
                    ],
                }


def plot(runs: Sequence[Run], parts: Iterable[str]) -> Spec:
    """Return all charts, those of the parts first."""
    rows = [[spec for part in parts if part != "growth" for spec in bars(runs, part)], list(curves(runs))]
    charts = [{"concat": row, "columns": columns} for row, columns in zip(rows, (3, 2), strict=True) if row]
    return {"vconcat": charts, "background": "white"}
