"""Accuracy, loss terms and learning rate over the epochs."""

import re
from collections.abc import Sequence

from edkd.report.blocks import Block, Chart, Charts, Details, Legend, LegendEntry, Section, Series
from edkd.report.curves import Look, Named, epoch_chart, highest_and_lowest
from edkd.report.numbers import Band, band, keys_of, percent, short
from edkd.report.subject import Line, Subject

_SPLITS = {"train": "training images", "val": "held-out images", "test": "test set"}

_TERMS = {
    "loss": "loss, all terms",
    "loss_ce": "task loss",
    "loss_kd": "distillation loss",
}

_TOP = re.compile(r"(train|val|test)_top(1|5)")
_LOSS = re.compile(r"(train|val|test)_(loss\w*)")
_STUDENT = re.compile(r"(val|test)_(student\d+|ensemble)_top1")


def curves(subject: Subject) -> Section:
    """A chart for each figure that the runs recorded after each epoch."""
    keys = keys_of(subject.runs)
    legend = Legend([LegendEntry(line.series, line.name) for line in subject.lines])

    blocks: list[Block] = [legend]
    blocks += [_accuracy(subject, split) for split in ("test", "val") if f"{split}_top1" in keys]
    small = [_other_accuracy(subject, key) for key in keys if _is_other_accuracy(key)]
    small += [_loss(subject, key) for key in keys if _LOSS.fullmatch(key)]
    if "lr" in keys:
        small.append(_rate(subject))
    blocks.append(Charts(small))

    blocks += [_students(line) for line in subject.lines if _has_students(line)]
    lead = (
        "Lines are means over the seeds; bands are one standard deviation at each side. The check "
        "boxes hide rows in all charts of this data set."
    )
    return Section("curves", "Curves", lead, blocks)


def named_bands(lines: Sequence[Line], key: str) -> list[Named]:
    """The rows that recorded a figure."""
    found = []
    for line in lines:
        values = band(line.row, key)
        if values:
            found.append(Named(line.series, line.name, values))
    return found


def _accuracy(subject: Subject, split: str) -> Chart:
    lines = named_bands(subject.lines, f"{split}_top1")
    title = f"Top-1 accuracy, {_SPLITS[split]}"
    look = Look(f"{split}-top1", title, "top-1", percent, " %", is_wide=True)
    return epoch_chart(look, lines, highest_and_lowest(lines, percent))


def _is_other_accuracy(key: str) -> bool:
    found = _TOP.fullmatch(key)
    return bool(found) and key not in ("test_top1", "val_top1")


def _other_accuracy(subject: Subject, key: str) -> Chart:
    split, _, top = key.partition("_top")
    lines = named_bands(subject.lines, key)
    title = f"Top-{top} accuracy, {_SPLITS[split]}"
    look = Look(key, title, f"top-{top}", percent, " %")
    return epoch_chart(look, lines, highest_and_lowest(lines, percent))


def _loss(subject: Subject, key: str) -> Chart:
    split, _, term = key.partition("_")
    lines = named_bands(subject.lines, key)
    name = _TERMS.get(term, term)
    if split != "train" and term == "loss":
        name = "cross-entropy"
    title = f"{name[0].upper()}{name[1:]}, {_SPLITS[split]}"
    return epoch_chart(Look(key, title, key, short), lines, highest_and_lowest(lines, short))


def _rate(subject: Subject) -> Chart:
    lines = named_bands(subject.lines, "lr")
    schedules = {tuple(line.band.means) for line in lines}
    summary = f"{len(schedules)} schedules. {highest_and_lowest(lines, short)}"
    if len(schedules) == 1:
        values = lines[0].band.means
        summary = f"One schedule for all, from {short(values[0])} to {short(values[-1])}."

    look = Look("lr", "Learning rate at the first step", "learning rate", short, is_step=True)
    return epoch_chart(look, lines, summary)


def _has_students(line: Line) -> bool:
    return any(_STUDENT.fullmatch(key) for key in line.first.history[0])


def _students(line: Line) -> Details:
    """Each student of an online method, their mean and their ensemble."""
    split = line.first.split
    names = [found[2] for found in map(_STUDENT.fullmatch, line.first.history[0]) if found]
    keys = {name: f"{split}_{name}_top1" for name in names} | {"mean": f"{split}_top1"}

    lines = []
    for name, key in keys.items():
        values: Band | None = band(line.row, key)
        if values:
            lines.append(Named(Series(len(lines)), name, values))

    title = f"Students of {line.name}: top-1 accuracy, {_SPLITS[split]}"
    look = Look(f"students-{line.series.number}", title, "top-1", percent, " %", is_wide=True)
    chart = epoch_chart(look, lines, highest_and_lowest(lines, percent))
    entries = [LegendEntry(each.series, each.name) for each in lines]
    return Details(f"Students of {line.name}", [Legend(entries, is_fixed=True), chart])
