"""Runs of benchmarks/training.py as a table and a plot: medians, ranges, ratios.

    python benchmarks/training_results.py STEM.jsonl        # writes STEM.md and STEM.svg anew

Knows the file of runs alone: a header in its first line, then a run in each.
"""

import argparse
import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from training_plot import plot
from training_runs import Run, Spec, Spread, by_work, figures, line, series

ABOUT = {
    "commands": "Whole commands, cold",
    "networks": "The larger networks, on part of the data",
    "large": "Batch 512, dltrain with device.precision=auto against fp32",
    "growth": "How cost grows",
    "grid": "Everything once, on a small part of the data",
}
EARLIER = "without start-up, test and saving"  # what was timed by dltrain itself


def cell(found: Spread, digits: int = 0) -> str:
    """Median and range."""
    return f"{found.median:,.{digits}f} ({found.least:,.{digits}f}–{found.most:,.{digits}f})"


def share(runs: Sequence[Run]) -> str:
    """Mean accuracy and standard deviation over seeds, in percent."""
    values = [100 * run["accuracy"] for run in runs]
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{deviation}"


def table(runs: Iterable[Run], part: str) -> Iterator[str]:
    """Lines of a part's table; ratios say how much better the first variant of a work is."""
    yield "| epochs x images | variant | n | images/s | 1st ÷ it | command, s | it ÷ 1st | peak MiB | right, % |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for (_, data, model, batch, epochs, examples), variants in by_work(runs, part).items():
        first = _ended(next(iter(variants.values())))
        for peer, all_runs in variants.items():
            work = f"{model}, {data}, batch {batch}, {epochs} x {examples:,}"
            ended = _ended(all_runs)
            if not ended:
                yield f"| {work} | {peer} | 0 | failed | | | | | |"
                continue
            own = figures(ended)
            faster = shorter = ""
            if first:
                faster = f"{figures(first)['rate'].median / own['rate'].median:.2f}"
                shorter = f"{own['seconds'].median / figures(first)['seconds'].median:.2f}"
            # Of how many, where it was stopped before its end.
            n = f"{len(all_runs)} of {all_runs[0]['rounds']}" if len(all_runs) < all_runs[0]["rounds"] else len(ended)
            yield (
                f"| {work} | {peer} | {n} | {cell(own['rate'])} | {faster} | {cell(own['seconds'], 1)} | "
                f"{shorter} | {cell(own['memory'])} | {share(ended)} |"
            )


def _ended(runs: Iterable[Run]) -> list[Run]:
    return [run for run in runs if "error" not in run]


def growth(runs: Sequence[Run]) -> Iterator[str]:
    """A line for each variant and what grows: the straight line through its seconds, its peak memory at both ends."""
    for peer, grows, points in series(runs):
        unit, each = (1000, "1,000 examples") if grows == "examples" else (1, "epoch")
        xs, ys = [at / unit for at, _ in points], [own["seconds"].median for _, own in points]
        slope, begin = statistics.linear_regression(xs, ys)
        off = max(abs(y - begin - slope * x) / y for x, y in zip(xs, ys, strict=True))
        (low, first), (high, last) = points[0], points[-1]
        yield (
            f"* {peer}, {grows}: {begin:.2f} s, and {slope:.3f} s for each {each} (no point is further than {off:.0%} "
            f"from this line); peak memory {cell(first['memory'])} MiB at {low:,}, {cell(last['memory'])} at {high:,}"
        )


def page(name: str, head: Spec, runs: Sequence[Run]) -> str:
    """The page, as Markdown; its figure is name.svg beside it."""
    versions = ", ".join(f"{key} {value}" for key, value in head["versions"].items())
    lines = [
        f"# Training small networks, against peers ({head['date']})",
        "",
        f"{head['cores']} cores of {head['processor']}, on the CPU alone; Python {head['python']}; {versions}; commit "
        f"{head['commit']}. Each figure is the median of n runs, with the least and the most in brackets; accuracy is "
        "the mean over n seeds, ± one standard deviation.",
        "",
        "    DLTRAIN_DATA=… " + head["command"],
        "",
        f"Images/s are those of a run's fastest training epoch, {head.get('window', EARLIER)}. The seconds of a "
        "command go from start to exit of its process: imports, reading of the data, training, records, checkpoints, "
        "test. Ratios compare medians: the first variant's images/s over the variant's, the variant's seconds over the "
        "first one's.",
        "",
        f"![Images per second, and how cost grows]({name}.svg)",
    ]
    for part, about in ABOUT.items():
        if by_work(runs, part):
            lines += ["", f"## {about}", "", *table(runs, part)]
        if part == "growth" and (told := list(growth(runs))):
            lines += ["", *told]
    failed = sorted({f"* {line(run)}" for run in runs if "error" in run})
    return "\n".join(lines + (["", "## Failed", "", *failed] if failed else [])) + "\n"


def write(path: Path) -> None:
    """STEM.md and STEM.svg from STEM.jsonl."""
    import vl_convert  # here: large, and the memory of a parent counts as its children's

    head, *runs = (json.loads(text) for text in path.read_text().splitlines())
    path.with_suffix(".md").write_text(page(path.stem, head, runs))
    path.with_suffix(".svg").write_text(vl_convert.vegalite_to_svg(plot(runs, ABOUT)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, metavar="STEM.jsonl")
    write(parser.parse_args().path)
