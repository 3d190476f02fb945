"""Seconds of each epoch."""

from statistics import mean, median

from edkd.report.blocks import Block, Note, Section, Table, text_table
from edkd.report.curves import Look, epoch_chart
from edkd.report.numbers import MISSING, duration, number, numbers
from edkd.report.sections.curves import named_bands
from edkd.report.subject import Line, Subject

_TRAIN = "train_seconds"
_EVAL = "eval_seconds"
_DATA = "data_seconds"

_LEAD = (
    "Wall-clock time. The first epoch also holds what runs once, and the filling of the teacher "
    "cache. Compare times of the same machine only."
)

_COLUMNS = (
    "run",
    "train, median",
    "train, shortest",
    "train, first epoch",
    "evaluation, median",
    "waiting for images (%)",
    "all epochs of a run",
)


def times(subject: Subject) -> Section:
    """A chart and a table of the seconds of training and evaluation."""
    lines = named_bands(subject.lines, _TRAIN)
    if not lines:
        note = Note("The runs recorded no times.")
        return Section("times", "Time per epoch", _LEAD, [note])

    # The chart, then the table.
    look = Look(
        "train-seconds",
        "Time of training, each epoch",
        axis="seconds",
        text=duration,
        suffix=" s",
        is_wide=True,
    )

    chart = epoch_chart(look, lines, _shortest(subject))
    blocks: list[Block] = [chart, _table(subject)]
    return Section("times", "Time per epoch", _LEAD, blocks)


def _shortest(subject: Subject) -> str:
    """A sentence about the row with the shortest median."""
    medians = {}
    for line in subject.lines:
        seconds = numbers(line.row.runs, _TRAIN)
        if seconds:
            medians[line.name] = median(seconds)

    name = min(medians, key=lambda name: medians[name])
    return f"Shortest median epoch of training: {duration(medians[name])}, {name}."


def _table(subject: Subject) -> Table:
    rows = [_row(line) for line in subject.lines]
    return text_table("Time of an epoch; of several seeds, all epochs count", _COLUMNS, rows)


def _row(line: Line) -> list[str]:
    runs = line.row.runs
    train = numbers(runs, _TRAIN)
    if not train:
        return [line.name, *[MISSING] * (len(_COLUMNS) - 1)]

    evaluation = numbers(runs, _EVAL)
    first = [number(run.history[0], _TRAIN) or 0.0 for run in runs]
    whole = sum(train) + sum(evaluation)
    return [
        line.name,
        duration(median(train)),
        duration(min(train)),
        duration(mean(first)),
        duration(median(evaluation)) if evaluation else MISSING,
        _waiting(line, sum(train)),
        duration(whole / len(runs)),
    ]


def _waiting(line: Line, train: float) -> str:
    """The share of the training that waited for images, in percent."""
    waiting = numbers(line.row.runs, _DATA)
    if not waiting or not train:
        return MISSING
    return f"{100 * sum(waiting) / train:.1f}"
