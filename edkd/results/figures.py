"""A picture of runs: top-1 accuracy, or another metric, over the epochs."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from edkd.curves import Curve, figure_of, save_figure
from edkd.errors import UserError
from edkd.hints import hint
from edkd.results.runs import Row, Run, group_runs

_SPLITS = {"test": "the test set", "val": "held-out images"}

_IN_PERCENT = ("top1", "top5")

_LABELS = {
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "loss": "training loss",
    "lr": "learning rate",
}
"""What each metric is called; others have the names of their keys."""


def draw_curves(runs: Sequence[Run], picture: Path) -> None:
    """Draw top-1 accuracy after each epoch: a line for each row, see `curves`.

    Args:
        runs: at least one.
        picture: the file to write; its suffix is the format (.png, .svg, .pdf).

    Raises:
        UserError: matplotlib is missing, does not support the format, or cannot write the file.
    """
    save_figure(curves(runs), picture)


def curves(
    runs: Sequence[Run], metric: str = "top1", width: float = 0.0, has_note: bool = True
) -> Any:
    """The matplotlib Figure that `draw_curves` writes.

    A line is the mean over the seeds, a band the sample standard deviation at each side. The last
    value stands at the end of a line; with accuracies, the best one follows.

    Args:
        runs: at least one.
        metric: see `Run.values`.
        width: of the figure, in inches; 0: a column of a paper.
        has_note: whether lines above the legend explain line, band and numbers.

    Raises:
        UserError: matplotlib is missing, or a run has no such metric.
    """
    is_share = _is_share(metric)
    label = _LABELS.get(metric, metric)
    return figure_of(
        curves_of(runs, metric),
        title=_title(runs, metric),
        ylabel=f"{label} (%)" if is_share else label,
        note=_note(group_runs(runs), is_share) if has_note else "",
        limits=(0, 100) if is_share else None,
        **({"width": width} if width else {}),
    )


def curves_of(runs: Sequence[Run], metric: str = "top1") -> list[Curve]:
    """A line for each row of runs; see `curves`."""
    for run in runs:
        _check_metric(run, metric)
    rows = group_runs(runs)
    return [_curve(row, rows, metric) for row in rows]


def _check_metric(run: Run, metric: str) -> None:
    """Raise UserError where an epoch of a run lacks a metric."""
    key = run.key(metric)
    for epoch, record in enumerate(run.history, 1):
        if isinstance(record.get(key), (int, float)):
            continue
        known = [name for name, value in record.items() if isinstance(value, (int, float))]
        raise UserError(
            f"{metric}: epoch {epoch} of the run {run.name} has no {key}{hint(key, known)} (it "
            f"has: {', '.join(known)})"
        )


def _is_share(metric: str) -> bool:
    """Whether a metric is in percent."""
    return metric.rpartition("_")[2] in _IN_PERCENT


def _curve(row: Row, rows: Sequence[Row], metric: str) -> Curve:
    seeds = row.curves(metric)
    columns = list(zip(*seeds, strict=True))
    values = [mean(column) for column in columns]
    deviations = [stdev(column) for column in columns] if len(seeds) > 1 else []

    # The number of seeds is in the note where all rows have the same.
    name = row.name
    if len(_numbers_of_seeds(rows)) > 1:
        name = f"{name} (n = {len(seeds)})"

    end = f"{values[-1]:.4g}"
    if _is_share(metric):
        best = mean(max(curve) for curve in seeds)
        end = f"{values[-1]:.2f} ({best:.2f})"
    return Curve(name, values, deviations, end)


def _title(runs: Sequence[Run], metric: str) -> str:
    """Names the metric, the data set and the images, where all runs share them."""
    label = _LABELS.get(metric, metric)
    title = label[0].upper() + label[1:] if metric in _LABELS else label
    splits = {_SPLITS[run.split] for run in runs}
    if metric in _IN_PERCENT:
        images = f"on {splits.pop()}" if len(splits) == 1 else "after each epoch"
        title = f"{title} {images}"

    datasets = {str(run.result.get("dataset") or "") for run in runs}
    name = datasets.pop() if len(datasets) == 1 else ""
    is_word = metric in _LABELS
    lowered = f"{title[0].lower()}{title[1:]}" if is_word else title
    return f"{name}: {lowered}" if name else title


def _note(rows: Sequence[Row], has_best: bool) -> str:
    """Explains the line, the band and the numbers."""
    numbers = _numbers_of_seeds(rows)
    ends = "At the right: last epoch (best epoch)" if has_best else "At the right: last epoch"
    if numbers == {1}:
        return f"One seed each, no band\n{ends}"

    over = f"{numbers.pop()} seeds" if len(numbers) == 1 else "n seeds"
    return f"Line, band: mean ± standard deviation over {over}\n{ends}"


def _numbers_of_seeds(rows: Sequence[Row]) -> set[int]:
    return {len(row.seeds) for row in rows}
