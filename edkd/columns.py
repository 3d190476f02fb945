"""Rows of texts as lines whose columns stand below one another."""

from collections.abc import Collection, Sequence


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """A line for each row, without blanks at its end; two blanks are between columns.

        >>> aligned([["name", "epoch"], ["a", "9"]], right=[1])
        ['name  epoch', 'a         9']

    Args:
        rows: all of one length.
        right: numbers of the columns that are aligned on the right, as numbers are.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    lines = []
    for row in rows:
        cells = []
        for place, (cell, width) in enumerate(zip(row, widths, strict=True)):
            cells.append(cell.rjust(width) if place in right else cell.ljust(width))
        lines.append("  ".join(cells).rstrip())
    return lines
