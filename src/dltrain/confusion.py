"""Which class is taken for which, as a table for a person."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from dltrain.errors import printable

MOST_COLUMNS = 20
MOST_ROWS = 20
SHORT = 4  # letters of a class that heads a column; longer ones are numbered


def table(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> Table:
    """A confusion matrix, rows the true classes and columns the predicted ones.

    Of more than 20 classes, or on a terminal that is too narrow for it, its worst cells.
    """
    if len(classes) > MOST_COLUMNS:
        return _worst(classes, counts)
    matrix, console = _matrix(classes, counts), Console()
    anywhere = console.options.update(max_width=10_000)  # else it is measured as it would be squeezed
    too_wide = console.is_terminal and console.measure(matrix, options=anywhere).maximum > console.width
    return _worst(classes, counts) if too_wide else matrix


def _matrix(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> Table:
    short = all(len(name) <= SHORT for name in classes)
    shown = Table(title="confusion (rows: true, columns: predicted)", title_justify="left", box=box.SIMPLE_HEAD)
    shown.padding, shown.pad_edge = (0, 1, 0, 0), False
    shown.add_column("")
    for number, name in enumerate(classes):
        shown.add_column(printable(name) if short else str(number), justify="right")
    for number, (name, row) in enumerate(zip(classes, counts, strict=True)):
        label = printable(name if short else f"{number} {name}")
        shown.add_row(label, *(str(count) if count else "·" for count in row))
    return shown


def _worst(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> Table:
    cells = [
        (count, true, predicted)
        for true, row in enumerate(counts)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    cells.sort(key=lambda cell: (-cell[0], cell[1:]))
    shown = Table("true", "predicted", title="most frequent confusions", title_justify="left")
    shown.add_column("examples", justify="right")
    shown.add_column("share of true", justify="right")
    for count, true, predicted in cells[:MOST_ROWS]:
        names = (printable(classes[true]), printable(classes[predicted]))
        shown.add_row(*names, str(count), f"{count / sum(counts[true]):.4f}")
    return shown
