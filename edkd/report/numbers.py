"""Numbers of runs as text, and their mean over the seeds."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any, NamedTuple

from edkd.results.runs import Row, Run

MISSING = "–"
"""Stands for a number that there is none of."""


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

    deviations = [_deviation(column) for column in columns] if len(seeds) > 1 else []
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
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def percent(value: float | None, digits: int = 2) -> str:
    """As "97.25 %"."""
    return MISSING if value is None else f"{value:.{digits}f} %"


def short(value: float | None) -> str:
    """Four significant digits."""
    return MISSING if value is None else f"{value:.4g}"


def duration(seconds: float | None) -> str:
    """As "3.42 s", "12.5 min" or "4.2 h"."""
    if seconds is None:
        return MISSING
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = seconds / 60
    return f"{minutes:.3g} min" if minutes < 120 else f"{minutes / 60:.3g} h"


def counted(count: int, noun: str) -> str:
    """As "1 run" and "3 runs"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean and sample standard deviation, as "74.10 ± 0.25"; one value has no deviation."""
    if not values:
        return MISSING
    text = f"{mean(values):.{digits}f}"
    return f"{text} ± {stdev(values):.{digits}f}" if len(values) > 1 else text


def _mean_curve(runs: Sequence[Run], key: str, epochs: int) -> list[float | None]:
    rows = [[number(record, key) for record in run.history[:epochs]] for run in runs]
    return [_mean(column) for column in zip(*rows, strict=True)]


def _mean(values: Sequence[float | None]) -> float | None:
    """None where one is missing."""
    known = [value for value in values if value is not None]
    return mean(known) if known and len(known) == len(values) else None


def _deviation(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return stdev(known) if len(known) > 1 else 0.0
