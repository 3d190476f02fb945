"""Seconds of each epoch."""

from collections.abc import Sequence
from statistics import mean, median

from edkd.report.blocks import Block, Note, Section, Table, text_table
from edkd.report.curves import Look, epoch_chart
from edkd.report.numbers import MISSING, duration, number, percent
from edkd.report.sections.curves import named_bands
from edkd.report.subject import Line, Subject
from edkd.results.runs import Run

_TRAIN = "train_seconds"
_EVAL = "eval_seconds"
_DATA = "data_seconds"


def times(subject: Subject) -> Section:
    """A chart and a table of the seconds of training and evaluation."""
    lead = (
        "Wall-clock time. The first epoch also holds what runs once, and the filling of the "
        "teacher cache. Compare times of the same machine only."
    )
    lines = named_bands(subject.lines, _TRAIN)
    if not lines:
        note = Note("The runs recorded no times.")
        return Section("times", "Time per epoch", lead, [note])

    shortest = min((_seconds(line, _TRAIN), line.name) for line in subject.lines)
    summary = f"Shortest median epoch of training: {duration(shortest[0])}, {shortest[1]}."
    look = Look("train-seconds", "Time of training, each epoch", "seconds", duration, " s")
    blocks: list[Block] = [epoch_chart(look, lines, summary), _table(subject)]
    return Section("times", "Time per epoch", lead, blocks)


def _table(subject: Subject) -> Table:
    columns = [
        "run",
        "train, median",
        "train, shortest",
        "train, first epoch",
        "evaluation, median",
        "waiting for images",
        "all epochs",
    ]
    rows = [_row(line) for line in subject.lines]
    return text_table("Time of an epoch; of several seeds, all epochs count", columns, rows)


def _row(line: Line) -> list[str]:
    train = _values(line.row.runs, _TRAIN)
    if not train:
        return [line.name, *[MISSING] * 6]

    evaluation = _values(line.row.runs, _EVAL)
    waiting = _values(line.row.runs, _DATA)
    first = [number(run.history[0], _TRAIN) or 0.0 for run in line.row.runs]
    share = 100 * sum(waiting) / sum(train) if waiting and sum(train) else None
    whole = (sum(train) + sum(evaluation)) / len(line.row.runs)
    return [
        line.name,
        duration(median(train)),
        duration(min(train)),
        duration(mean(first)),
        duration(median(evaluation) if evaluation else None),
        percent(share, 1),
        duration(whole),
    ]


def _seconds(line: Line, key: str) -> float:
    """The median; infinite where there is none."""
    values = _values(line.row.runs, key)
    return median(values) if values else float("inf")


def _values(runs: Sequence[Run], key: str) -> list[float]:
    found = [number(record, key) for run in runs for record in run.history]
    return [value for value in found if value is not None]
