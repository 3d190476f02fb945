"""How long a run still takes: an estimate from its recent epochs."""

import time
from collections.abc import Mapping, Sequence

RECENT = 5
"""Finished epochs that the estimate reads."""

FEWEST_STEPS = 5
"""Steps after which the pace of the first epoch is known."""

_SECONDS = ("train_seconds", "eval_seconds")


class TimeLeft:
    """Estimates the time left of a run.

    The epochs left are counted at the weighted median of the recent ones, of which the last weighs
    most: a single slow epoch changes little, and another machine after a resume counts after two
    epochs. The first epoch of a run, which fills the teacher cache, counts only as long as it is
    the only one. Within the first epoch, the pace of its steps counts.

    Args:
        history: records of the finished epochs, extended by the caller.
        epochs: of the whole run.
        total_steps: of the whole run.
    """

    def __init__(
        self, history: Sequence[Mapping[str, float]], epochs: int, total_steps: int
    ) -> None:
        self.history = history
        self.epochs = epochs
        self.total_steps = total_steps
        self.steps_per_epoch = max(1, total_steps // max(1, epochs))
        self._first: tuple[int, float] | None = None
        self._last: tuple[int, float] | None = None

    def count(self, step: int) -> None:
        """Note that a step of the run, from 1, is done now."""
        self._last = (step, time.monotonic())
        if self._first is None:
            self._first = self._last

    def seconds(self, step: int) -> float | None:
        """Seconds left after a step; None where there is nothing to estimate them from.

        Args:
            step: steps of the run that are done.
        """
        left = max(0, self.total_steps - step)
        of_epochs = epoch_seconds(self.history)
        if of_epochs is not None:
            return of_epochs * left / self.steps_per_epoch

        of_step = self._step_seconds()
        return None if of_step is None else of_step * left

    def _step_seconds(self) -> float | None:
        """Mean seconds of a step since the first one of this process, which is often slow."""
        if self._first is None or self._last is None:
            return None
        steps = self._last[0] - self._first[0]
        if steps < FEWEST_STEPS:
            return None
        return (self._last[1] - self._first[1]) / steps


def epoch_seconds(history: Sequence[Mapping[str, float]]) -> float | None:
    """Seconds that the next epoch will take, training and evaluation; None where not known.

    Records of older versions without seconds do not count.
    """
    taken = [_seconds_of(record) for record in history[-RECENT:]]
    if 1 < len(history) <= RECENT:
        taken = taken[1:]
    known = [seconds for seconds in taken if seconds is not None]
    return _weighted_median(known) if known else None


def shown_duration(seconds: float) -> str:
    """A duration in one or two units: "45 s", "12 min", "5 h 12 min", "3 d 4 h"."""
    whole = max(0, round(seconds))
    minutes = round(whole / 60)
    hours = round(whole / 3600)
    if whole < 90:
        return f"{whole} s"
    if minutes < 90:
        return f"{minutes} min"
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} d {hours % 24} h"


def _seconds_of(record: Mapping[str, float]) -> float | None:
    if _SECONDS[0] not in record:
        return None
    return sum(record.get(key, 0.0) for key in _SECONDS)


def _weighted_median(values: Sequence[float]) -> float:
    """The median of values whose weights are 1, 2, 3, ..."""
    weighted = sorted((value, weight) for weight, value in enumerate(values, 1))
    half = sum(weight for _, weight in weighted) / 2

    reached = 0
    for value, weight in weighted:
        reached += weight
        if reached >= half:
            return value
    raise ValueError("there are no values")
