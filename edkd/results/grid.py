"""The comparison as grids of text: for each pair, or the pairs side by side."""

from collections.abc import Sequence
from statistics import mean
from typing import NamedTuple

from edkd.results.comparison import Cell, Column
from edkd.results.names import shown
from edkd.results.published import Figure
from edkd.results.statistics import MOST_SEEDS
from edkd.results.table import count_of, spread
from edkd.results.verdicts import BASELINE, BEATS, INCONCLUSIVE, WORSE, Judged, Verdict

MARKS = {
    BEATS: "↑",
    WORSE: "↓",
    INCONCLUSIVE: "~",
}
"""What stands behind a figure where there is no column for the verdict."""

OTHER_PROTOCOL = "†"
"""Behind a published figure whose protocol is not that of the runs."""

Texts = dict[str, str]
"""The texts of a row by the names of columns."""


class Grid(NamedTuple):
    """A table of text.

    Args:
        title: above it.
        header: of the columns; the first one is left-aligned.
        rows: of the same length as the header.
        notes: lines below it.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]


class Choice(NamedTuple):
    """What a table shows.

    Args:
        by: "last" or "best": the epoch that is compared.
        alpha: significance level.
        is_full: also what does not fit into 100 columns.
    """

    by: str = "last"
    alpha: float = 0.05
    is_full: bool = True


# A grid for each pair.


def long_grid(one: Judged, choice: Choice) -> Grid:
    """All figures of a pair: a row for the teacher and for each method."""
    column = one.column
    rows = []
    if column.teacher_accuracies:
        rows.append(_teacher_row(column, choice))
    for cell, verdict in one.rows:
        rows.append(_row(one, cell, verdict, choice))

    header = [name for name in _header(one, choice) if any(texts.get(name) for texts in rows)]
    lines = [[texts.get(name, "") for name in header] for texts in rows]
    return Grid(column.title, header, lines, published_lines(column))


def _header(one: Judged, choice: Choice) -> list[str]:
    """The columns that the pair can have."""
    column = one.column
    best = _best(column)
    header = ["method", "n", "last", best]
    if column.teacher_accuracies and choice.is_full:
        header.append("vs teacher")
    if column.alone:
        header.append("vs alone")
    if one.baseline and one.baseline is not column.alone:
        header.append(_versus(one.baseline))
    if one.baseline and len(column.cells) > 1:
        header += ["p", "verdict", "needed"]

    header.append("published")
    if column.is_mixed:
        header.append("protocol")
    return header


def _best(column: Column) -> str:
    """The name of the column for the best epoch, with the images that chose it."""
    splits = {run.split for run in column.runs}
    return f"best ({splits.pop()})" if len(splits) == 1 else "best"


def _versus(baseline: Cell) -> str:
    return f"vs {shown(baseline.method)}"


def _teacher_row(column: Column, choice: Choice) -> Texts:
    accuracies = column.teacher_accuracies
    texts = {
        "method": f"{_teacher_name(column)}{column.teacher_remark}",
        "last": spread(accuracies),
        "published": _figure_text(column.teacher_figures, column.code),
    }
    if len(accuracies) > 1:
        texts["n"] = f"{len(accuracies)}"
    if column.alone:
        texts["vs alone"] = _signed(mean(accuracies) - column.alone.mean(choice.by))
    return texts


def _teacher_name(column: Column) -> str:
    return f"teacher {column.teacher}"


def _row(one: Judged, cell: Cell, verdict: Verdict | None, choice: Choice) -> Texts:
    """The texts of a method."""
    column = one.column
    own = cell.mean(choice.by)
    texts = {
        "method": cell.name,
        "n": count_of(cell.row),
        "last": spread(cell.accuracies("last")),
        _best(column): spread(cell.accuracies("best")),
        "published": _figure_text(cell.figures, cell.code),
        "protocol": cell.code or cell.run.protocol.describe(),
    }

    if column.teacher_accuracies:
        texts["vs teacher"] = _signed(own - mean(column.teacher_accuracies))
    if column.alone and cell is not column.alone:
        texts["vs alone"] = _signed(own - column.alone.mean(choice.by))
    if one.baseline and verdict:
        texts |= _verdict_texts(one.baseline, verdict)
    return texts


def _verdict_texts(baseline: Cell, verdict: Verdict) -> Texts:
    """The test against the baseline."""
    texts = {"verdict": verdict.word or f"({verdict.reason})"}
    if verdict.reason != BASELINE:
        texts.setdefault(_versus(baseline), _signed(verdict.difference))

    if verdict.test:
        p = verdict.test.p
        texts["p"] = "<0.001" if p < 0.001 else f"{p:.3f}"
    if verdict.seeds:
        is_known = verdict.seeds < MOST_SEEDS
        texts["needed"] = f"{verdict.seeds}" if is_known else f">={MOST_SEEDS}"
    return texts


def _signed(value: float) -> str:
    return f"{value:+.2f}"


# Published figures.


def _figure_text(figures: Sequence[Figure], code: str) -> str:
    """The figure that fits best, with its protocol: "70.66 P240"."""
    if not figures:
        return ""
    figure = figures[0]
    mark = "" if figure.fits(code) else OTHER_PROTOCOL
    return f"{figure.value:.2f} {figure.protocol}{mark}"


def published_lines(column: Column) -> list[str]:
    """All published figures of a column with their sources: a line for each row."""
    rows = [(cell.name, cell.figures) for cell in column.cells]
    if column.teacher_accuracies:
        rows.insert(0, (_teacher_name(column), column.teacher_figures))

    lines = []
    for name, figures in rows:
        texts = [_sourced(figure) for figure in figures]
        if texts:
            lines.append(f"published for {name}: {'; '.join(texts)}")
    return lines


def _sourced(figure: Figure) -> str:
    text = f"{figure.value:.2f}"
    if figure.deviation is not None:
        text += f" ± {figure.deviation:.2f}"
    return f"{text} ({figure.protocol}, {figure.source})"


# The pairs side by side.


def wide_grid(tables: Sequence[Judged], choice: Choice) -> Grid:
    """One figure for each method and pair, with a mark for the verdict."""
    columns = [one.column for one in tables]
    datasets = {column.dataset for column in columns}
    is_one = len(datasets) == 1
    header = ["method"]
    header += [column.pair if is_one else column.title for column in columns]

    # A row of published figures follows a method that has some.
    rows = []
    if any(column.teacher_accuracies for column in columns):
        rows.append(["teacher", *(_teacher_text(column) for column in columns)])
    for name in dict.fromkeys(cell.name for column in columns for cell in column.cells):
        rows.append([name, *(_marked(one, name, choice) for one in tables)])
        figures = [_published_text(column, name) for column in columns]
        if any(figures):
            rows.append(["  published", *figures])

    title = f"{choice.by} epoch"
    if is_one:
        title = f"{datasets.pop()}, {title}"
    return Grid(title, header, rows, [])


def _teacher_text(column: Column) -> str:
    accuracies = column.teacher_accuracies
    return f"{spread(accuracies)}{column.teacher_remark}" if accuracies else ""


def _marked(one: Judged, name: str, choice: Choice) -> str:
    """The accuracy of a method in a column, with the mark of its verdict."""
    for cell, verdict in one.rows:
        if cell.name != name:
            continue
        text = spread(cell.accuracies(choice.by))
        mark = MARKS.get(verdict.word) if verdict else None
        return f"{text} {mark}" if mark else text
    return ""


def _published_text(column: Column, name: str) -> str:
    for cell in column.cells:
        if cell.name == name:
            return _figure_text(cell.figures, cell.code)
    return ""
