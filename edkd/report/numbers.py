"""Numbers of runs as text, and their mean over the seeds."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any, NamedTuple

from edkd.results import table
from edkd.results.runs import Row, Run

MISSING = "-"
"""Stands for a number that there is none of."""

_LONG = 120
"""Seconds or minutes from which the next unit is used."""

_LABEL = 18
"""Characters of a name beside an axis; more would leave no room for the chart on a phone."""


class Band(NamedTuple):
    """A figure after each epoch: mean and sample standard deviation over the seeds.

    Args:
        epochs: numbers of the epochs.
        means: None where a seed has no finite value.
        deviations: empty with one seed.
    """

    epochs: Sequence[int]
    means: Sequence[float | None]
    deviations: Sequence[float]

    @property
    def last(self) -> float | None:
        """The value after the last epoch."""
        return self.means[-1]


def band(row: Row, key: str) -> Band | None:
    """A figure of `metrics.jsonl` over the seeds, cut to the shortest run; None without it.

    Runs of the same seed count as one.
    """
    epochs = min(len(run.history) for run in row.runs)
    seeds = [_mean_curve(runs, key, epochs) for runs in row.seeds]
    columns = list(zip(*seeds, strict=True))

    means = [_mean(column) for column in columns]
    if all(value is None for value in means):
        return None

    deviations: list[float] = []
    if len(seeds) > 1:
        deviations = [_deviation(column) for column in columns]
    return Band(range(1, epochs + 1), means, deviations)


def keys_of(runs: Sequence[Run]) -> list[str]:
    """The figures of all epochs, in the order in which they first appear."""
    found: dict[str, None] = {}
    for run in runs:
        for record in run.history:
            found.update(dict.fromkeys(record))
    return list(found)


def number(record: Mapping[str, Any], key: str) -> float | None:
    """A finite number of a record; None where there is none."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        converted = float(value)
    except OverflowError:  # an integer of hundreds of digits
        return None
    return converted if math.isfinite(converted) else None


def numbers(runs: Sequence[Run], key: str) -> list[float]:
    """All finite numbers of a figure, of all epochs of runs."""
    found = []
    for run in runs:
        for record in run.history:
            value = number(record, key)
            if value is not None:
                found.append(value)
    return found


def percent(value: float | None) -> str:
    """As "97.25 %"."""
    if value is None:
        return MISSING
    return f"{value:.2f} %"


def short(value: float | None) -> str:
    """Four significant digits."""
    if value is None:
        return MISSING
    return f"{value:.4g}"


def duration(seconds: float | None) -> str:
    """As "3.42 s", "12.5 min" or "4.2 h"."""
    if seconds is None:
        return MISSING
    if seconds < _LONG:
        return f"{seconds:.3g} s"

    minutes = seconds / 60
    if minutes < _LONG:
        return f"{minutes:.3g} min"
    return f"{minutes / 60:.3g} h"


def counted(count: int, noun: str) -> str:
    """As "1 run" and "3 runs"."""
    plural = "" if count == 1 else "s"
    return f"{count:,} {noun}{plural}"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """As `table.spread`; MISSING where there are no values."""
    return table.spread(values, digits) if values else MISSING


def row_axis(names: Sequence[str]) -> dict[str, Any]:
    """A vertical axis of plotly with a place for each row, from the top; long names are cut."""
    return {
        "tickmode": "array",
        "tickvals": list(range(len(names))),
        "ticktext": [_cut(name) for name in names],
        "range": [len(names) - 0.4, -0.6],
    }


def _cut(name: str) -> str:
    """A name without its middle, if it is long: rows often differ in the last part."""
    if len(name) <= _LABEL:
        return name
    start = name[: _LABEL // 2 - 1]
    end = name[-_LABEL // 2 :]
    return f"{start}…{end}"


def _mean_curve(runs: Sequence[Run], key: str, epochs: int) -> list[float | None]:
    """The mean of runs after each epoch."""
    curve = []
    for epoch in range(epochs):
        values = [number(run.history[epoch], key) for run in runs]
        curve.append(_mean(values))
    return curve


def _mean(values: Sequence[float | None]) -> float | None:
    """None where one is missing."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return mean(known)


def _deviation(values: Sequence[float | None]) -> float:
    """0 where fewer than two are known."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return 0.0
    return stdev(known)
