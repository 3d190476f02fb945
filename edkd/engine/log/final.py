"""The final figures of a run, as all sinks get them: numbers by name, and a table."""

from collections.abc import Mapping
from typing import Any, NamedTuple

GROUP = "final"
"""First part of the names of the figures, as "final/last_test_top1"."""

TABLE = f"{GROUP}/table"
"""Name of the table."""

TEACHER_TOP1 = "teacher_top1"
"""In `result.json`: the accuracy of each teacher in percent, where it was measured."""

_FACTS = ("method", "teacher", "student", "parameters")
"""First columns of the table."""

_COUNTS = ("parameters", "extra_parameters", "best_epoch", "epochs")


class Final(NamedTuple):
    """What a run has reached."""

    figures: dict[str, float]
    """By name, accuracies in percent."""
    columns: list[str]
    """Of the table."""
    row: list[str]
    """Its only line."""
    step: int
    """The last step of the run, from 1."""

    @property
    def markdown(self) -> str:
        """The table in Markdown."""
        lines = [self.columns, ["---"] * len(self.columns), self.row]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def is_accuracy(key: str) -> bool:
    """Whether a key of a result is an accuracy of a student, or of all together."""
    return key.endswith("top1") and key != TEACHER_TOP1


def final_of(result: Mapping[str, Any], run: str, step: int) -> Final:
    """The final figures of a run.

    Args:
        result: the content of `result.json`.
        run: its name.
        step: its last step, from 1.
    """
    # The figures.
    tops = {key: value for key, value in result.items() if is_accuracy(key)}
    tops |= _teachers(result.get(TEACHER_TOP1, []))
    counts = {key: result[key] for key in _COUNTS}
    figures = {**tops, **counts}
    named = {f"{GROUP}/{key}": float(value) for key, value in figures.items()}

    # The table.
    columns = ["run", *_FACTS, *tops]
    row = [run]
    row += [_shown(result[key]) for key in _FACTS]
    row += [f"{value:.2f}" for value in tops.values()]
    return Final(named, columns, row, step)


def _teachers(top1: list[float]) -> dict[str, float]:
    """The accuracy of each teacher; the only one has no number."""
    if len(top1) == 1:
        return {TEACHER_TOP1: top1[0]}
    return {f"teacher{number}_top1": value for number, value in enumerate(top1, 1)}


def _shown(value: Any) -> str:
    """A cell of the table: names in a list are joined."""
    if isinstance(value, (list, tuple)):
        return " + ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
