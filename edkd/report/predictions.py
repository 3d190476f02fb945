"""The sections about predictions: calibration, agreement with the teacher, errors."""

from collections.abc import Sequence

from edkd.report.blocks import Note, Section
from edkd.report.findings import Findings, evaluated, reasons
from edkd.report.numbers import counted
from edkd.report.sections.agreement import agreement
from edkd.report.sections.calibration import calibration
from edkd.report.sections.errors import errors

_LEAD = "Calibration, agreement with the teacher and errors need the weights and the test images."

_REASONS = 5
"""Reasons that are listed at most."""


def prediction_sections(findings: Sequence[Findings]) -> list[Section]:
    """Three sections; one that gives the reason where no run could be evaluated."""
    notes = [Note(f"Not evaluated: {reason}", is_warning=True) for reason in reasons(findings)]
    if len(notes) > _REASONS:
        more = counted(len(notes) - _REASONS, "more reason")
        notes = [*notes[:_REASONS], Note(f"Not evaluated: {more} of this kind", is_warning=True)]
    if not evaluated(findings):
        return [Section("predictions", "Predictions", _LEAD, notes)]

    return [
        calibration(findings, notes),
        agreement(findings, _short(findings)),
        errors(findings, _short(findings)),
    ]


def _short(findings: Sequence[Findings]) -> list[Note]:
    """A line where rows are missing, whose reasons are in the section before."""
    missing = len(findings) - len(evaluated(findings))
    if not missing:
        return []
    return [Note(f"{counted(missing, 'row')} could not be evaluated, see Calibration.")]
