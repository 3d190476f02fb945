"""Accuracy, loss terms and learning rate over the epochs."""

import re
from collections.abc import Sequence

from edkd.report.blocks import Block, Chart, Charts, Legend, LegendEntry, Section
from edkd.report.curves import Look, Named, epoch_chart, highest_and_lowest
from edkd.report.numbers import band, keys_of, percent, short
from edkd.report.sections.students import has_students, is_of_student, students
from edkd.report.sections.terms import SPLITS, term_title
from edkd.report.subject import Line, Subject

_TOP = re.compile(r"(train|val|test)_top(1|5)")
_LOSS = re.compile(r"(train|val|test)_(loss\w*)")

_MAIN = ("test_top1", "val_top1")
"""Figures with a wide chart."""

_LEAD = (
    "Lines are means over the seeds; bands are one standard deviation at each side. The check "
    "boxes hide rows in all charts of this data set."
)


def curves(subject: Subject) -> Section:
    """A chart for each figure that the runs recorded after each epoch."""
    entries = [LegendEntry(line.series, line.name) for line in subject.lines]
    blocks: list[Block] = [Legend(entries)]

    # The accuracy that papers report comes first.
    keys = keys_of(subject.runs)
    for key in _MAIN:
        lines = named_bands(subject.lines, key)
        if lines:
            blocks.append(_accuracy(lines, key))
    keys.sort(key=lambda key: key == "lr")  # the last one; the others stay in their order
    small = [_small_chart(subject, key) for key in keys]
    blocks.append(Charts([chart for chart in small if chart]))

    # Methods that train several students.
    for line in subject.lines:
        if has_students(line):
            blocks.append(students(line))
    return Section("curves", "Curves", _LEAD, blocks)


def named_bands(lines: Sequence[Line], key: str) -> list[Named]:
    """The rows that recorded a figure."""
    found = []
    for line in lines:
        values = band(line.row, key)
        if values:
            found.append(Named(line.series, line.name, values))
    return found


def _small_chart(subject: Subject, key: str) -> Chart | None:
    """The chart of a figure; None for one that is drawn elsewhere, or is none of these."""
    if key in _MAIN or is_of_student(key):
        return None

    lines = named_bands(subject.lines, key)
    if not lines:
        return None
    if key == "lr":
        return _rate(lines)
    if _TOP.fullmatch(key):
        return _accuracy(lines, key)
    if _LOSS.fullmatch(key):
        return _loss(lines, key)
    return None


def _accuracy(lines: Sequence[Named], key: str) -> Chart:
    split, _, top = key.partition("_top")
    title = f"Top-{top} accuracy, {SPLITS[split]}"
    look = Look(
        key,
        title,
        axis=f"top-{top}",
        text=percent,
        suffix=" %",
        is_wide=key in _MAIN,
    )
    summary = highest_and_lowest(lines, percent)
    return epoch_chart(look, lines, summary)


def _loss(lines: Sequence[Named], key: str) -> Chart:
    split, _, term = key.partition("_")
    look = Look(key, term_title(split, term), axis=key, text=short)
    summary = highest_and_lowest(lines, short)
    return epoch_chart(look, lines, summary)


def _rate(lines: Sequence[Named]) -> Chart:
    look = Look(
        "lr",
        "Learning rate at the first step of an epoch",
        axis="learning rate",
        text=short,
        is_step=True,
    )
    return epoch_chart(look, lines, _schedules(lines))


def _schedules(lines: Sequence[Named]) -> str:
    """A sentence about the learning rates."""
    schedules = {tuple(line.band.means) for line in lines}
    if len(schedules) > 1:
        text = highest_and_lowest(lines, short)
        return f"{len(schedules)} schedules. {text}"

    (values,) = schedules
    first = short(values[0])
    last = short(values[-1])
    return f"One schedule for all, from {first} to {last}."
