"""What the predictions of a row show: measures of each run, and images of the first."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from edkd.report.subject import Line
from edkd.results.runs import Run

if TYPE_CHECKING:
    from edkd.report.measures import Agreement, Bins


class Measured(NamedTuple):
    """The predictions of a run's best student on the test set; accuracies in percent."""

    run: Run
    num_images: int
    top1: float
    confidence: float
    """Mean probability of the predicted class, in percent."""
    bins: "Bins"
    adaptive: "Bins"
    confusion: Any
    """An array (C,C) of counts: rows are true classes, columns predicted ones; None for all but the
    first run of a row."""
    agreement: "Agreement | None"
    no_teacher: str
    """Why there is no comparison with a teacher."""


class WrongImage(NamedTuple):
    """A test image with a wrong prediction."""

    uri: str
    is_small: bool
    position: int
    target: str
    predicted: str
    confidence: float
    """In percent."""


class Problem(NamedTuple):
    """Why a run could not be evaluated."""

    name: str
    """Of its row."""
    reason: str


class Findings(NamedTuple):
    """A row of the table, evaluated.

    Args:
        runs: those that could be evaluated.
        images: errors of the first of these.
        class_names: by class number.
        problems: why the others could not be evaluated.
    """

    line: Line
    runs: Sequence[Measured]
    images: Sequence[WrongImage]
    class_names: Sequence[str]
    problems: Sequence[Problem]

    def values(self, figure: Callable[[Measured], float | None]) -> list[float]:
        """A figure of each run; runs without it are left out."""
        found = [figure(run) for run in self.runs]
        return [value for value in found if value is not None]


def evaluated(findings: Sequence[Findings]) -> list[Findings]:
    """Those of which at least one run could be evaluated."""
    return [each for each in findings if each.runs]


def reasons(findings: Sequence[Findings]) -> list[str]:
    """Why runs could not be evaluated, as "kd, dkd: no weights", each reason once."""
    names: dict[str, dict[str, None]] = {}
    for each in findings:
        for problem in each.problems:
            rows = names.setdefault(problem.reason, {})
            rows[problem.name] = None

    return [f"{', '.join(rows)}: {reason}" for reason, rows in names.items()]
