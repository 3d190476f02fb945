"""What a report is about: the rows of each data set, with a series for each."""

from collections.abc import Sequence
from typing import NamedTuple

from edkd.report.blocks import Series
from edkd.results.runs import Row, Run, group_runs


class Line(NamedTuple):
    """A row of the table and its place in the charts."""

    series: Series
    row: Row

    @property
    def name(self) -> str:
        """Of the row."""
        return self.row.name

    @property
    def first(self) -> Run:
        """The first run; all have the same settings."""
        return self.row.runs[0]


class Subject(NamedTuple):
    """The runs on one data set."""

    dataset: str
    lines: Sequence[Line]

    @property
    def runs(self) -> list[Run]:
        """All of them."""
        return [run for line in self.lines for run in line.row.runs]


def subjects_of(runs: Sequence[Run]) -> list[Subject]:
    """A subject for each data set, in the order of the first runs."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.dataset or "unknown data set", []).append(run)

    return [Subject(name, _lines(group)) for name, group in groups.items()]


def _lines(runs: Sequence[Run]) -> list[Line]:
    """The rows, each with a name of its own: names cut to a few settings may be equal."""
    lines: list[Line] = []
    for row in group_runs(runs):
        place = len(lines)
        if any(line.name == row.name for line in lines):
            row = row._replace(name=f"{row.name} [{place + 1}]")
        lines.append(Line(Series(place), row))
    return lines
