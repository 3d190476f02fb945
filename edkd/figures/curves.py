"""Accuracy, loss, learning rate or any other figure of an epoch, over the epochs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edkd.figures.drawing import WIDTHS, Drawing, Options
from edkd.results.figures import curves, curves_of
from edkd.results.runs import find_runs, read_run


def draw(paths: Sequence[Path], options: Options, say: Callable[[str], None]) -> Drawing:
    """Draw the metric `options.what`: the mean over the seeds, and a band for its deviation.

    Raises:
        UserError: there is no finished run, or a run has no such metric.
    """
    runs = [read_run(folder) for folder in find_runs(paths)]
    figure = curves(runs, options.what, WIDTHS[options.size], options.note)

    # The numbers.
    rows: list[list[Any]] = []
    for line in curves_of(runs, options.what):
        deviations = line.deviations or [""] * len(line.values)
        pairs = zip(line.values, deviations, strict=True)
        rows += [[line.name, epoch, *pair] for epoch, pair in enumerate(pairs, 1)]

    names = ", ".join(dict.fromkeys(row[0] for row in rows))
    note = f"{options.what} after each epoch, mean over seeds, of {len(runs)} runs: {names}"
    return Drawing(
        figure,
        note,
        ["run", "epoch", "mean", "deviation"],
        rows,
        keep_width=False,
    )
