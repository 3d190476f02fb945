"""The students of an online method, each for itself."""

import re
from collections.abc import Mapping

from edkd.report.blocks import Block, Chart, Charts, Details, Legend, LegendEntry, Series
from edkd.report.curves import Look, Named, epoch_chart, highest_and_lowest
from edkd.report.numbers import band, percent, short
from edkd.report.sections.terms import SPLITS, term_title
from edkd.report.subject import Line

_TOP1 = re.compile(r"(val|test)_(student\d+|ensemble)_top1")
_TERM = re.compile(r"train_(loss\w*)_student\d+")
_FIGURE = re.compile(r"(val|test)_(student\d+|ensemble)_\w+")

_MEAN = "mean"


def has_students(line: Line) -> bool:
    """Whether the runs of a row recorded figures of several students."""
    return any(map(_TOP1.fullmatch, line.first.history[0]))


def is_of_student(key: str) -> bool:
    """Whether a figure is of one student, or of the ensemble."""
    return bool(_TERM.fullmatch(key) or _FIGURE.fullmatch(key))


def students(line: Line) -> Details:
    """Accuracy of each student, their mean and their ensemble; loss terms of each student."""
    series = {}
    for place, name in enumerate([*_names(line), _MEAN]):
        series[name] = Series(place)

    legend = Legend([LegendEntry(each, name) for name, each in series.items()], is_fixed=True)
    terms = [_term_chart(line, series, term) for term in _terms(line)]
    blocks: list[Block] = [
        legend,
        _accuracy_chart(line, series),
        Charts(terms),
    ]
    return Details(f"Students of {line.name}", blocks, series=line.series)


def _names(line: Line) -> list[str]:
    """As "student1", "student2" and "ensemble"."""
    found = map(_TOP1.fullmatch, line.first.history[0])
    return [match[2] for match in found if match]


def _terms(line: Line) -> list[str]:
    """The terms of the loss, without the students, each once."""
    found = map(_TERM.fullmatch, line.first.history[0])
    terms = [match[1] for match in found if match]
    return list(dict.fromkeys(terms))


def _accuracy_chart(line: Line, series: Mapping[str, Series]) -> Chart:
    split = line.first.split
    keys = {name: f"{split}_{name}_top1" for name in series}
    keys[_MEAN] = f"{split}_top1"

    title = f"Top-1 accuracy of the students of {line.name}, {SPLITS[split]}"
    look = Look(
        "top1",
        title,
        axis="top-1",
        text=percent,
        suffix=" %",
        is_wide=True,
    )
    return _chart(look, line, series, keys)


def _term_chart(line: Line, series: Mapping[str, Series], term: str) -> Chart:
    keys = {name: f"train_{term}_{name}" for name in series}
    title = term_title("train", term)
    look = Look(
        term,
        title,
        axis=f"train_{term}",
        text=short,
    )
    return _chart(look, line, series, keys)


def _chart(look: Look, line: Line, series: Mapping[str, Series], keys: Mapping[str, str]) -> Chart:
    """A chart with a line for each student that recorded a figure."""
    lines = []
    for name, key in keys.items():
        values = band(line.row, key)
        if values:
            lines.append(Named(series[name], name, values))

    summary = highest_and_lowest(lines, look.text)
    chart = epoch_chart(look, lines, summary)
    return chart._replace(has_own_series=True)
