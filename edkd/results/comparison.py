"""Finished runs as a comparison: a column for each pair of networks, a cell for each method."""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from statistics import mean
from typing import Any, NamedTuple

from edkd.errors import UserError
from edkd.results.names import ALONE, shown
from edkd.results.protocol import PLAIN, comparable
from edkd.results.published import Figure, code_of, published
from edkd.results.runs import Row, Run, difference

_OF_A_TEACHER = ("DISTILLER.TEACHER", "TEACHER_MEMO.")
"""Settings that have no effect without a teacher."""

_OFF: tuple[Any, ...] = (None, False, 0, "", [], "off")
"""Values of a setting that count the same as its absence, for runs of older versions."""

_SHOWN_DIFFERENCES = 3
"""Settings in which protocols differ that an error names at most."""


class Cell(NamedTuple):
    """A method in a column: runs that differ only in their seed."""

    method: str
    """Its label; see `names.method_of`."""
    row: Row
    """Its name also has the settings that tell it from others of the method."""
    code: str
    """Of the published protocol that it followed; "" for none."""
    figures: list[Figure]
    """Published accuracies of the method for this pair, those that fit the protocol first."""

    @property
    def name(self) -> str:
        """The name of its row."""
        return self.row.name

    @property
    def run(self) -> Run:
        """The first of its runs."""
        return self.row.runs[0]

    def accuracies(self, by: str) -> list[float]:
        """Top-1 accuracy of each seed after the "last" or the "best" epoch, in percent."""
        return self.row.accuracies(by)

    def mean(self, by: str) -> float:
        """Mean of the accuracies."""
        return mean(self.row.accuracies(by))


class Column(NamedTuple):
    """The methods for a pair of networks on a data set."""

    dataset: str
    pair: str
    """ "resnet56 -> resnet20", or a student that no run has with a teacher."""
    teacher: str
    """ "" where there is none."""
    cells: list[Cell]

    @property
    def title(self) -> str:
        """ "cifar100, resnet56 -> resnet20"."""
        return f"{self.dataset}, {self.pair}" if self.dataset else self.pair

    @property
    def runs(self) -> list[Run]:
        """All of its runs."""
        return [run for cell in self.cells for run in cell.row.runs]

    @property
    def teacher_accuracies(self) -> list[float]:
        """Top-1 of the teacher in percent, where runs measured it: the mean for each seed.

        One value where all runs have the same.
        """
        seeds: dict[int | None, list[float]] = {}
        for run in self.runs:
            if run.teacher_top1:
                seeds.setdefault(run.seed, []).append(mean(run.teacher_top1))

        values = [mean(measured) for measured in seeds.values()]
        return values if len(set(values)) > 1 else values[:1]

    @property
    def teacher_remark(self) -> str:
        """Behind the accuracy of several teachers, or their names: " (mean of 2)"; else ""."""
        number = max(len(run.teacher_top1) for run in self.runs)
        return f" (mean of {number})" if number > 1 else ""

    @property
    def teacher_figures(self) -> list[Figure]:
        """Published accuracies of the teacher, those that fit the protocol of its runs first."""
        return _by_fit(published(self.dataset, self.teacher, ALONE), self.code)

    @property
    def code(self) -> str:
        """Of the published protocol of its first cell; "" for none."""
        return self.cells[0].code

    @property
    def alone(self) -> Cell | None:
        """The student alone; None where no cell or several are that."""
        found = [cell for cell in self.cells if cell.method == ALONE]
        return found[0] if len(found) == 1 else None

    @property
    def is_mixed(self) -> bool:
        """Whether its cells have different protocols."""
        return any(True for _ in self.mixtures)

    @property
    def mixtures(self) -> Iterator[tuple[Run, Run, list[str]]]:
        """Two runs with different protocols, and the keys in which they differ."""
        runs = [cell.run for cell in self.cells]
        for first, second in itertools.combinations(runs, 2):
            keys = first.protocol.differences(second.protocol)
            if keys:
                yield first, second, keys


def columns_of(runs: Sequence[Run], mix_protocols: bool = False) -> list[Column]:
    """The columns of a table, in the order of the first runs.

    Runs without a teacher stand in each column of their student.

    Args:
        runs: at least one.
        mix_protocols: allow runs with different protocols in a column.

    Raises:
        UserError: the runs of a column have different protocols.
    """
    distilled = [run for run in runs if run.teacher]
    places = dict.fromkeys((run.dataset, run.pair, run.teacher) for run in distilled)
    groups = {place: [run for run in distilled if _place(run) == place] for place in places}

    # A student without a teacher.
    for run in runs:
        if run.teacher:
            continue
        same = [place for place, group in groups.items() if _has_student(group[0], run)]
        for place in same or [_place(run)]:
            groups.setdefault(place, []).append(run)

    columns = []
    for (dataset, pair, teacher), group in groups.items():
        cells = [_cell(dataset, pair, label, row) for label, row in _rows(group)]
        cells.sort(key=lambda cell: cell.method != ALONE)
        columns.append(Column(dataset, pair, teacher, cells))

    if not mix_protocols:
        for column in columns:
            _refuse_mixture(column)
    return columns


def _place(run: Run) -> tuple[str, str, str]:
    return run.dataset, run.pair if run.teacher else run.architecture, run.teacher


def _has_student(other: Run, run: Run) -> bool:
    """Whether a run without a teacher trains the student of another run."""
    return (other.dataset, other.architecture) == (run.dataset, run.architecture)


def _rows(runs: Iterable[Run]) -> list[tuple[str, Row]]:
    """Rows with the labels of their methods; their names tell all rows apart."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        text = json.dumps(_effective(run), sort_keys=True, default=str)
        groups.setdefault((run.method, text), []).append(run)

    rows = []
    for (label, _), group in groups.items():
        alike = [_effective(other[0]) for (name, _), other in groups.items() if name == label]
        settings = comparable(group[0].settings)
        name = shown(label) + difference(settings, alike)
        rows.append((label, Row(name, group)))
    return rows


def _effective(run: Run) -> dict[str, Any]:
    """The settings that tell rows apart."""
    left_out = () if run.teacher else _OF_A_TEACHER
    return {
        key: value
        for key, value in comparable(run.settings).items()
        if not _is_absent(key, value) and not key.startswith(left_out)
    }


def _is_absent(key: str, value: Any) -> bool:
    """Whether a value counts the same as the absence of its key."""
    return value in _OFF and PLAIN.get(key) in _OFF


def _cell(dataset: str, pair: str, label: str, row: Row) -> Cell:
    run = row.runs[0]
    code = code_of(run.protocol, run.architecture)
    figures = published(dataset, pair if run.teacher else run.student, label)
    return Cell(label, row, code, _by_fit(figures, code))


def _by_fit(figures: Iterable[Figure], code: str) -> list[Figure]:
    """Figures in their order, those first that fit the protocol with a code."""
    return sorted(figures, key=lambda figure: not figure.fits(code))


def _refuse_mixture(column: Column) -> None:
    """Raise UserError where the protocols of a column differ."""
    for first, second, keys in column.mixtures:
        ours, others = first.protocol.values, second.protocol.values
        parts = [
            f"{key} {_value_text(ours[key])} and {_value_text(others[key])}"
            for key in keys[:_SHOWN_DIFFERENCES]
        ]
        more = ", ..." if len(keys) > _SHOWN_DIFFERENCES else ""
        raise UserError(
            f"{column.pair}: {first.folder} and {second.folder} have different protocols "
            f"({', '.join(parts)}{more}); give them to tables of their own, or add --mix-protocols"
        )


def _value_text(value: Any) -> str:
    return "''" if value == "" else str(value)
