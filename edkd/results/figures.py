"""Curves of accuracy over the epochs, drawn by matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from edkd.errors import UserError
from edkd.results.runs import Row, Run, group_runs
from edkd.results.table import spread

_SIZE = (8, 5)
"""Inches."""

_DPI = 120

_SPLITS = {"test": "test set", "val": "held-out images"}


def draw_curves(runs: Sequence[Run], picture: Path) -> None:
    """Draw top-1 accuracy after each epoch: mean over the seeds as a line, their range as a band.

    Args:
        runs: at least one.
        picture: the file to write; its suffix is the format (.png, .svg, .pdf).

    Raises:
        UserError: matplotlib is missing, does not support the format, or cannot write the file.
    """
    figure = curves(runs)
    try:
        figure.savefig(picture, dpi=_DPI)
    except (ValueError, OSError) as error:
        raise UserError(f"cannot write the picture {picture}: {error}") from None


def curves(runs: Sequence[Run]) -> Any:
    """The matplotlib Figure that `draw_curves` writes.

    Raises:
        UserError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        raise UserError("a picture needs matplotlib: pip install matplotlib") from None

    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    rows = group_runs(runs)
    for row in rows:
        _draw(axes, row)

    # The y axis covers all epochs, within what a percentage can be.
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0), min(high, 100))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)

    axes.set_title(_title(runs))
    axes.set_xlabel("epoch")
    axes.set_ylabel("top-1 accuracy (%)")
    axes.legend(loc="best", title=_legend_title(rows))
    return figure


def _draw(axes: Any, row: Row) -> None:
    """Add the curve of a row; a single epoch is a point."""
    columns = list(zip(*row.curves(), strict=True))
    epochs = range(1, len(columns) + 1)
    means = [mean(column) for column in columns]
    lowest = [min(column) for column in columns]
    highest = [max(column) for column in columns]

    label = f"{row.name}: {spread(columns[-1])} %"
    if len(columns) == 1:
        (line,) = axes.plot(epochs, means, marker="o", label=label)
        axes.vlines(epochs, lowest, highest, color=line.get_color(), alpha=0.4)
    else:
        (line,) = axes.plot(epochs, means, label=label)
        axes.fill_between(epochs, lowest, highest, color=line.get_color(), alpha=0.2, lw=0)


def _title(runs: Sequence[Run]) -> str:
    """Names the data set and the images where all runs share them."""
    datasets = {str(run.result.get("dataset", "")) for run in runs}
    splits = {_SPLITS[run.split] for run in runs}
    shared = [names.pop() for names in (datasets, splits) if len(names) == 1]

    title = "Top-1 accuracy after each epoch"
    return f"{title}: {', '.join(filter(None, shared))}" if any(shared) else title


def _legend_title(rows: Sequence[Row]) -> str:
    """Explains the numbers, and the band where there is one."""
    if all(len(row.seeds) == 1 for row in rows):
        return "accuracy after the last epoch"
    return "after the last epoch: mean ± std; band: range over seeds"
