"""The methods of each pair of networks, tested against the student alone."""

from collections.abc import Sequence

from edkd.errors import UserError
from edkd.report.blocks import Block, Cell, Column, Lines, Note, Section, Table
from edkd.report.subject import Subject
from edkd.results.comparison import columns_of
from edkd.results.grid import Choice, Grid, long_grid
from edkd.results.notes import notes_of
from edkd.results.verdicts import judged

_LEAD = (
    "As edkd table has it: all methods of a pair of teacher and student, Welch's t-test against "
    "the student alone where there are seeds for it, and published figures."
)

_TEXTS = ("method", "verdict", "published", "protocol")
"""Columns that are not numbers."""


def comparison_section(subject: Subject) -> Section:
    """A table for each pair; where it cannot be made, the reason."""
    blocks: list[Block] = []
    try:
        blocks += _tables(subject)
    except UserError as error:
        blocks.append(Note(str(error), is_warning=True))
    return Section("comparison", "Methods compared", _LEAD, blocks)


def _tables(subject: Subject) -> list[Block]:
    choice = Choice()
    columns = columns_of(subject.runs, mix_protocols=True)
    tables = judged(columns, "", choice.by, choice.alpha)

    blocks: list[Block] = []
    for one in tables:
        grid = long_grid(one, choice)
        blocks.append(_table(grid))
        if grid.notes:
            blocks.append(Lines(grid.notes))
    blocks.append(Lines(notes_of(tables, choice)))
    return blocks


def _table(grid: Grid) -> Table:
    columns = [Column(name, is_number=name not in _TEXTS) for name in grid.header]
    rows = [_row(texts) for texts in grid.rows]
    return Table(grid.title, columns, rows)


def _row(texts: Sequence[str]) -> list[Cell]:
    return [Cell(text) for text in texts]
