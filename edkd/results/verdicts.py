"""The cells of a column against its baseline: Welch's t-test, and the verdict."""

from collections.abc import Sequence
from typing import NamedTuple

from edkd.errors import UserError
from edkd.hints import hint
from edkd.results.comparison import Cell, Column
from edkd.results.statistics import Welch, seeds_needed, welch

BEATS = "BEATS"
WORSE = "WORSE"
INCONCLUSIVE = "INCONCLUSIVE"

ONE_SEED = "one seed"
"""Why there is no test: a row or the baseline has a single one."""

BASELINE = "baseline"
"""Why there is no test: the row is the baseline itself."""


class Verdict(NamedTuple):
    """A cell against the baseline.

    Args:
        word: BEATS, WORSE or INCONCLUSIVE; "" where there is no test.
        reason: why there is no test; "" where there is one.
        difference: of the means in percentage points, cell minus baseline.
        test: None where there is none.
        seeds: that each needs to find this difference; None where that is not known.
    """

    word: str
    reason: str
    difference: float
    test: Welch | None
    seeds: int | None


class Judged(NamedTuple):
    """A column with the comparison of each cell with the baseline."""

    column: Column
    baseline: Cell | None
    verdicts: list[Verdict | None]
    """None where the column has no baseline."""

    @property
    def rows(self) -> list[tuple[Cell, Verdict | None]]:
        """Each cell with its verdict."""
        return list(zip(self.column.cells, self.verdicts, strict=True))


def baselines_of(columns: Sequence[Column], name: str = "") -> list[Cell | None]:
    """The baseline of each column; None where a column has none.

    Args:
        columns: of a table.
        name: a method's label or the name of a row, in any case; "": the student alone.

    Raises:
        UserError: no column has it, or a column has several rows of that name.
    """
    if not name:
        return [column.alone for column in columns]

    found = [_named(column, name) for column in columns]
    if not any(found):
        names = list(dict.fromkeys(cell.method for column in columns for cell in column.cells))
        raise UserError(
            f"--baseline {name}: no run has this method{hint(name, names)} "
            f"(the runs have: {', '.join(names)})"
        )
    return found


def judged(columns: Sequence[Column], name: str, by: str, alpha: float) -> list[Judged]:
    """Compare all cells of a table with the baseline of their column.

    Args:
        columns: of the table.
        name: of the baseline; see `baselines_of`.
        by: "last" or "best" epoch.
        alpha: significance level.

    Raises:
        UserError: there is no such baseline, or scipy is missing.
    """
    found = []
    for column, baseline in zip(columns, baselines_of(columns, name), strict=True):
        verdicts: list[Verdict | None] = [None] * len(column.cells)
        if baseline is not None:
            verdicts = [judge(cell, baseline, by, alpha) for cell in column.cells]
        found.append(Judged(column, baseline, verdicts))
    return found


def _named(column: Column, name: str) -> Cell | None:
    """The cell with a name."""
    wanted = name.casefold()
    exact = [cell for cell in column.cells if cell.name.casefold() == wanted]
    cells = exact or [cell for cell in column.cells if cell.method.casefold() == wanted]
    if len(cells) > 1:
        names = ", ".join(f"'{cell.name}'" for cell in cells)
        raise UserError(
            f"--baseline {name}: {column.pair} has several such rows; give one: {names}"
        )
    return cells[0] if cells else None


def judge(cell: Cell, baseline: Cell, by: str, alpha: float) -> Verdict:
    """Compare a cell with the baseline of its column, by Welch's t-test.

    Args:
        cell, baseline: of one column.
        by: "last" or "best" epoch.
        alpha: significance level.

    Raises:
        UserError: scipy is missing.
    """
    first, second = cell.accuracies(by), baseline.accuracies(by)
    difference = cell.mean(by) - baseline.mean(by)
    reason = _no_test(cell, baseline, by)
    if reason:
        return Verdict("", reason, difference, None, None)

    test = welch(first, second, alpha)
    assert test is not None, "_no_test covers what has no test"
    word = INCONCLUSIVE
    if test.p < alpha:
        word = BEATS if difference > 0 else WORSE
    return Verdict(word, "", difference, test, seeds_needed(first, second, alpha))


def _no_test(cell: Cell, baseline: Cell, by: str) -> str:
    """Why two cells have no test; "" where they have one."""
    samples = [cell.accuracies(by), baseline.accuracies(by)]
    if cell is baseline:
        return BASELINE
    if cell.run.protocol.differences(baseline.run.protocol):
        return "other protocol"
    if min(map(len, samples)) < 2:
        return ONE_SEED
    if all(len(set(sample)) == 1 for sample in samples):
        return "no variance"
    return ""
