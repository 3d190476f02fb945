"""Runs as a table for people, and as JSON for programs."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from edkd.engine.log.time_left import shown_duration
from edkd.errors import UserError
from edkd.hints import hint
from edkd.watch.status import FAILED, FINISHED, RUNNING, STATES, STOPPED, Status

HEADER = (
    "state", "method", "networks", "data set", "epoch", "last", "best", "left", "age", "folder"
)  # fmt: skip

_NUMERIC = ("epoch", "last", "best", "left", "age")

UNKNOWN = "-"

_LAST = float("inf")

SORTS: dict[str, Callable[[Status], Any]] = {
    "age": lambda run: _LAST if run.age is None else run.age,
    "state": lambda run: list(STATES).index(run.state),
    "method": lambda run: run.method,
    "networks": lambda run: run.pair,
    "dataset": lambda run: run.dataset,
    "epoch": lambda run: -run.epochs_done,
    "last": lambda run: -(run.last_top1 or 0.0),
    "best": lambda run: -(run.best_top1 or 0.0),
    "left": lambda run: _LAST if run.seconds_left is None else run.seconds_left,
    "folder": lambda run: str(run.folder),
}
"""The order of the runs: highest accuracy and most recent sign of life first."""


def chosen(runs: Sequence[Status], states: Sequence[str], words: Sequence[str]) -> list[Status]:
    """The runs in one of some states whose lines have all of some words.

    Args:
        states: all where there are none.
        words: upper and lower case are not told apart.

    Raises:
        UserError: there is no such state.
    """
    for state in states:
        if state not in STATES:
            known = ", ".join(STATES)
            raise UserError(f"no state {state!r}{hint(state, STATES)} (known: {known})")

    folded = [word.lower() for word in words]
    found = []
    for run in runs:
        line = " ".join(_cells(run)).lower()
        is_wanted = not states or run.state in states
        if is_wanted and all(word in line for word in folded):
            found.append(run)
    return found


def ordered(runs: Sequence[Status], by: str, is_reversed: bool = False) -> list[Status]:
    """The runs in an order of SORTS; those that are equal in it keep theirs."""
    return sorted(runs, key=SORTS[by], reverse=is_reversed)


def table(runs: Sequence[Status]) -> str:
    """A line for each run; below it, why it ended and how to continue."""
    rows = [HEADER, *(_cells(run) for run in runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    header, *lines = (_line(row, widths) for row in rows)

    text = [header]
    for run, line in zip(runs, lines, strict=True):
        text.append(line)
        text += [f"    {note}" for note in notes(run)]
    return "\n".join(text)


def notes(run: Status) -> list[str]:
    """Why a run ended, or what is unusual; how to continue it."""
    found = [run.reason] if run.reason else []
    if run.resume and run.state == STOPPED:
        found.append(f"continue: {run.resume}")
    return found


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


def progress(run: Status) -> str:
    """Where a run is, in one line: epoch, step, accuracies, time left."""
    parts = [f"epoch {epoch_of(run)}"]
    if run.step is not None and run.state == RUNNING:
        parts.append(f"step {run.step}/{run.steps_per_epoch}")
    if run.last_top1 is not None:
        parts.append(f"last {top1_of(run, run.last_top1)}")
        parts.append(f"best {top1_of(run, run.best_top1)}")
    if run.doing:
        parts.append(run.doing)
    if run.seconds_left is not None:
        parts.append(f"left {shown_duration(run.seconds_left)}")
    return "  ".join(parts)


def ending(run: Status) -> str:
    """How a run ended, in one line."""
    if run.state == FINISHED:
        return f"finished  {progress(run)}"
    code = f" (exit code {run.exit_code})" if run.state == FAILED else ""
    reason = f": {run.reason}" if run.reason else ""
    return f"{run.state}{code}{reason}"


def epoch_of(run: Status) -> str:
    """The finished epochs, as "12/240"."""
    total = "?" if run.epochs is None else run.epochs
    return f"{run.epochs_done}/{total}"


def top1_of(run: Status, value: float | None) -> str:
    """An accuracy in percent, marked where it is that of held-out images."""
    if value is None:
        return UNKNOWN
    mark = " val" if run.split == "val" else ""
    return f"{value:.2f}{mark}"


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


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = []
    for title, cell, width in zip(HEADER, row, widths, strict=True):
        cells.append(cell.rjust(width) if title in _NUMERIC else cell.ljust(width))
    return "  ".join(cells).rstrip()
