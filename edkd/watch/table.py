"""Runs as a table for people, and as JSON for programs."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

from edkd.columns import aligned
from edkd.engine.log.time_left import shown_duration
from edkd.errors import UserError
from edkd.hints import unknown
from edkd.watch.status import STATES, Status
from edkd.watch.wording import UNKNOWN, epoch_of, notes, top1_of

HEADER = (
    "state", "method", "networks", "data set", "epoch", "last", "best", "left", "age", "folder"
)  # fmt: skip

_NUMERIC = ("epoch", "last", "best", "left", "age")

SORTS = {
    "age": "age",
    "state": "state",
    "method": "method",
    "networks": "pair",
    "dataset": "dataset",
    "epoch": "epochs_done",
    "last": "last_top1",
    "best": "best_top1",
    "left": "seconds_left",
    "folder": "folder",
}
"""What runs can be sorted by, and the attribute that has it."""

_HIGHEST_FIRST = ("epoch", "last", "best")


def chosen(runs: Sequence[Status], states: Sequence[str], words: Sequence[str]) -> list[Status]:
    """The runs in one of some states whose lines have all of some words.

    Args:
        states: all where there are none.
        words: case is ignored.

    Raises:
        UserError: there is no such state.
    """
    for state in states:
        if state not in STATES:
            raise UserError(unknown("state", state, STATES))

    wanted = states or list(STATES)
    return [run for run in runs if run.state in wanted and _has_words(run, words)]


def _has_words(run: Status, words: Sequence[str]) -> bool:
    line = " ".join(_cells(run)).lower()
    return all(word.lower() in line for word in words)


def ordered(runs: Sequence[Status], by: str, is_reversed: bool = False) -> list[Status]:
    """The runs in an order of SORTS; those that are equal in it keep theirs.

    The highest accuracies, the most recent sign of life, and the shortest time left come first,
    runs of which that is not known last.
    """
    return sorted(runs, key=partial(_rank, by=by), reverse=is_reversed)


def _rank(run: Status, by: str) -> Any:
    value = getattr(run, SORTS[by])
    if by == "state":
        return list(STATES).index(value)
    if by in _HIGHEST_FIRST:
        return -(value or 0)
    return float("inf") if value is None else value


def table(runs: Sequence[Status]) -> str:
    """A line for each run; below it, why it ended and how to continue."""
    rows = [HEADER, *(_cells(run) for run in runs)]
    header, *lines = aligned(rows, right=[HEADER.index(title) for title in _NUMERIC])

    text = [header]
    for run, line in zip(runs, lines, strict=True):
        text.append(line)
        text += [f"    {note}" for note in notes(run)]
    return "\n".join(text)


def summary(runs: Sequence[Status]) -> str:
    """As "3 runs: 1 running, 2 finished"."""
    states = [run.state for run in runs]
    counts = [f"{states.count(state)} {state}" for state in STATES if state in states]
    noun = "run" if len(runs) == 1 else "runs"
    return f"{len(runs)} {noun}: {', '.join(counts)}" if runs else "no runs"


def as_json(run: Status) -> dict[str, Any]:
    """A run as values of JSON; what is not known is null or empty."""
    values = dataclasses.asdict(run)
    age = run.age
    values["folder"] = str(run.folder)
    values["age_seconds"] = None if age is None else round(age, 1)
    return values


def _cells(run: Status) -> tuple[str, ...]:
    cells = [
        run.state,
        run.method,
        run.pair,
        run.dataset,
        epoch_of(run),
        top1_of(run, run.last_top1),
        top1_of(run, run.best_top1),
        _duration(run.seconds_left),
        _duration(run.age),
        str(run.folder),
    ]
    return tuple(cell or UNKNOWN for cell in cells)


def _duration(seconds: float | None) -> str:
    return UNKNOWN if seconds is None else shown_duration(seconds)
