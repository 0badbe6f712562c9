"""Write the runs of benchmarks/training.py as tables and a plot: medians, ranges, ratios.

    python benchmarks/training_results.py STEM.jsonl        # rewrites STEM.md and STEM.svg

Reads nothing but that file: a header in its first line, then one run per line.
"""

import argparse
import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from training_plot import plot
from training_runs import Run, Spec, Spread, by_work, line, series, spreads

ABOUT = {
    "commands": "Whole commands, cold",
    "networks": "The larger networks, on part of the data",
    "large": "Batch 512, dltrain with device.precision=auto against fp32",
    "growth": "How cost grows",
    "grid": "Everything once, on a small part of the data",
}
EARLIER = "without start-up, test and saving"  # as timed by dltrain itself


def cell(values: Spread, digits: int = 0) -> str:
    """Format median and range."""
    return f"{values.median:,.{digits}f} ({values.least:,.{digits}f}–{values.most:,.{digits}f})"


def accuracy(runs: Sequence[Run]) -> str:
    """Format mean and standard deviation of the accuracy over seeds, in percent."""
    values = [100 * run["accuracy"] for run in runs]
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{deviation}"


def table(runs: Iterable[Run], part: str) -> Iterator[str]:
    """Yield the lines of a part's table; ratios compare the first variant of a work with each other one."""
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
            values = spreads(ended)
            faster = shorter = ""
            if first:
                faster = f"{spreads(first)['rate'].median / values['rate'].median:.2f}"
                shorter = f"{values['seconds'].median / spreads(first)['seconds'].median:.2f}"
            # "n of all" if the benchmark was interrupted.
            n = f"{len(all_runs)} of {all_runs[0]['rounds']}" if len(all_runs) < all_runs[0]["rounds"] else len(ended)
            yield (
                f"| {work} | {peer} | {n} | {cell(values['rate'])} | {faster} | {cell(values['seconds'], 1)} | "
                f"{shorter} | {cell(values['memory'])} | {accuracy(ended)} |"
            )


def _ended(runs: Iterable[Run]) -> list[Run]:
    return [run for run in runs if "error" not in run]


def growth(runs: Sequence[Run]) -> Iterator[str]:
    """Yield a line for each variant: a linear fit of its seconds, and its peak memory at both ends."""
    for peer, grows, points in series(runs):
        unit, each = (1000, "1,000 examples") if grows == "examples" else (1, "epoch")
        xs, ys = [at / unit for at, _ in points], [values["seconds"].median for _, values in points]
        slope, begin = statistics.linear_regression(xs, ys)
        off = max(abs(y - begin - slope * x) / y for x, y in zip(xs, ys, strict=True))
        (low, first), (high, last) = points[0], points[-1]
        yield (
            f"* {peer}, {grows}: {begin:.2f} s, and {slope:.3f} s for each {each} (no point is further than {off:.0%} "
            f"from this line); peak memory {cell(first['memory'])} MiB at {low:,}, {cell(last['memory'])} at {high:,}"
        )


def page(name: str, head: Spec, runs: Sequence[Run]) -> str:
    """Return the page as Markdown; it shows name.svg from the same folder."""
    versions = ", ".join(f"{key} {value}" for key, value in head["versions"].items())
    lines = [
        f"# Training small networks, against peers ({head['date']})",
        "",
        f"{head['cores']} cores of {head['processor']}, on the CPU alone; Python {head['python']}; {versions}; commit "
        f"{head['commit']}. Each number is the median of n runs, with the least and the most in brackets; accuracy is "
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
        if part == "growth" and (fits := list(growth(runs))):
            lines += ["", *fits]
    failed = sorted({f"* {line(run)}" for run in runs if "error" in run})
    return "\n".join(lines + (["", "## Failed", "", *failed] if failed else [])) + "\n"


def write(path: Path) -> None:
    """Write STEM.md and STEM.svg from STEM.jsonl."""
    import vl_convert  # here: it is large, and a fork counts the memory of its parent

    head, *runs = (json.loads(text) for text in path.read_text().splitlines())
    path.with_suffix(".md").write_text(page(path.stem, head, runs))
    path.with_suffix(".svg").write_text(vl_convert.vegalite_to_svg(plot(runs, ABOUT)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, metavar="STEM.jsonl")
    write(parser.parse_args().path)
