"""A picture of runs: top-1 accuracy over the epochs."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from edkd.curves import Curve, figure_of, save_figure
from edkd.results.runs import Row, Run, group_runs

_SPLITS = {"test": "the test set", "val": "held-out images"}


def draw_curves(runs: Sequence[Run], picture: Path) -> None:
    """Draw top-1 accuracy after each epoch: a line for each row, see `curves`.

    Args:
        runs: at least one.
        picture: the file to write; its suffix is the format (.png, .svg, .pdf).

    Raises:
        UserError: matplotlib is missing, does not support the format, or cannot write the file.
    """
    save_figure(curves(runs), picture)


def curves(runs: Sequence[Run]) -> Any:
    """The matplotlib Figure that `draw_curves` writes.

    A line is the mean over the seeds, a band the sample standard deviation at each side. The last
    and the best accuracy stand at the end of a line.

    Raises:
        UserError: matplotlib is missing.
    """
    rows = group_runs(runs)
    return figure_of(
        [_curve(row, rows) for row in rows],
        title=_title(runs),
        ylabel="top-1 accuracy (%)",
        note=_note(rows),
        limits=(0, 100),
    )


def _curve(row: Row, rows: Sequence[Row]) -> Curve:
    seeds = row.curves()
    columns = list(zip(*seeds, strict=True))
    values = [mean(column) for column in columns]
    deviations = [stdev(column) for column in columns] if len(seeds) > 1 else []

    # The number of seeds is in the note where all rows have the same.
    name = row.name
    if len(_numbers_of_seeds(rows)) > 1:
        name = f"{name} (n = {len(seeds)})"

    best = mean(max(curve) for curve in seeds)
    return Curve(name, values, deviations, f"{values[-1]:.2f} ({best:.2f})")


def _title(runs: Sequence[Run]) -> str:
    """Names the data set and the images where all runs share them."""
    title = "Top-1 accuracy after each epoch"
    splits = {_SPLITS[run.split] for run in runs}
    if len(splits) == 1:
        title = f"Top-1 accuracy on {splits.pop()}"

    datasets = {str(run.result.get("dataset") or "") for run in runs}
    name = datasets.pop() if len(datasets) == 1 else ""
    return f"{name}: {title[0].lower()}{title[1:]}" if name else title


def _note(rows: Sequence[Row]) -> str:
    """Explains the line, the band and the numbers."""
    numbers = _numbers_of_seeds(rows)
    ends = "At the right: last epoch (best epoch)"
    if numbers == {1}:
        return f"One seed each, no band\n{ends}"

    over = f"{numbers.pop()} seeds" if len(numbers) == 1 else "n seeds"
    return f"Line, band: mean ± standard deviation over {over}\n{ends}"


def _numbers_of_seeds(rows: Sequence[Row]) -> set[int]:
    return {len(row.seeds) for row in rows}
