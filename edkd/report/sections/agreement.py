"""How the predictions of students relate to those of their teachers."""

from collections.abc import Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any, NamedTuple

from edkd.report.blocks import Block, Cell, Chart, Column, Note, Section, Table, text_table
from edkd.report.findings import Findings, evaluated
from edkd.report.numbers import row_axis, spread

if TYPE_CHECKING:
    from edkd.report.measures import Agreement

_LEAD = (
    "Agreement is the share of test images for which student and teacher predict the same class. "
    "KL is the mean divergence of the student from the teacher at temperature 1, in nats."
)

_COLUMNS = (
    Column("run", is_number=False),
    Column("agreement (%)"),
    Column("KL (nats)"),
    Column("right where the teacher is right (%)"),
    Column("right where the teacher is wrong (%)"),
)


class _Part(NamedTuple):
    """A case of right and wrong predictions: a field of Agreement, and how its bars look."""

    name: str
    field: str
    color: str
    pattern: str


_PARTS = (
    _Part("both right", "both_right", "var(--series-2)", ""),
    _Part("only the teacher right", "only_teacher", "var(--series-4)", "/"),
    _Part("only the student right", "only_student", "var(--series-5)", "x"),
    _Part("both wrong", "both_wrong", "var(--series-1)", "\\"),
)


def agreement(findings: Sequence[Findings], notes: Sequence[Note]) -> Section:
    """A table of agreements, and the four cases of right and wrong predictions."""
    known = evaluated(findings)
    compared = [found for found in known if _agreements(found)]

    blocks: list[Block] = [*notes]
    blocks += [Note(text) for text in _alone(known)]
    if compared:
        blocks.append(_table(compared))
        blocks.append(_chart(compared))
    return Section("agreement", "Agreement with the teacher", _LEAD, blocks)


def _agreements(found: Findings) -> "list[Agreement]":
    return [run.agreement for run in found.runs if run.agreement]


def _alone(findings: Sequence[Findings]) -> list[str]:
    """Why rows have no comparison, each reason once."""
    reasons: dict[str, list[str]] = {}
    for found in findings:
        if not _agreements(found):
            reason = found.runs[0].no_teacher
            reasons.setdefault(reason, []).append(found.line.name)

    return [f"{reason}: {', '.join(names)}" for reason, names in reasons.items()]


# The table.


def _table(findings: Sequence[Findings]) -> Table:
    rows = [_row(found) for found in findings]
    return Table("Student and teacher on the test set", _COLUMNS, rows)


def _row(found: Findings) -> list[Cell]:
    divergence = [each.divergence for each in _agreements(found)]
    return [
        Cell(found.line.name, series=found.line.series),
        Cell(spread(_shares(found, "same"))),
        Cell(spread(divergence, digits=4)),
        Cell(spread(_shares(found, "right_where_teacher_right"))),
        Cell(spread(_shares(found, "right_where_teacher_wrong"))),
    ]


def _shares(found: Findings, field: str) -> list[float]:
    """A share of each run, in percent; runs without it are left out."""
    values = [getattr(each, field) for each in _agreements(found)]
    return [100 * value for value in values if value is not None]


# The four cases.


def _chart(findings: Sequence[Findings]) -> Chart:
    traces = [_bar(part, findings) for part in _PARTS]

    legend = {"orientation": "h", "traceorder": "normal", "yanchor": "bottom", "y": 1.02, "x": 0}
    layout = {
        "barmode": "stack",
        "hovermode": "closest",
        "showlegend": True,
        "legend": legend,
        "margin": {"t": 70},
        "xaxis": {"range": [0, 100], "ticksuffix": " %"},
        "yaxis": row_axis([found.line.name for found in findings]),
    }

    most = max(findings, key=lambda found: mean(_shares(found, "only_student")))
    share = mean(_shares(most, "only_student"))

    summary = f"Most images that only the student has right: {share:.2f} %, {most.line.name}."
    height = 160 + 30 * len(findings)
    table = _case_table(findings)
    chart = Chart("cases", "Who is right", summary, traces, layout, table, height)
    return chart._replace(has_own_series=True)


def _case_table(findings: Sequence[Findings]) -> Table:
    rows = []
    for found in findings:
        texts = [found.line.name]
        for part in _PARTS:
            share = mean(_shares(found, part.field))
            texts.append(f"{share:.2f}")
        rows.append(texts)

    heads = ["run", *(part.name for part in _PARTS)]
    return text_table("Share of the test images (%)", heads, rows)


def _bar(part: _Part, findings: Sequence[Findings]) -> dict[str, Any]:
    pattern = {
        "shape": part.pattern,
        "size": 6,
        "solidity": 0.2,
        "fillmode": "overlay",
    }
    return {
        "type": "bar",
        "orientation": "h",
        "name": part.name,
        "x": [mean(_shares(found, part.field)) for found in findings],
        "y": list(range(len(findings))),
        "text": [found.line.name for found in findings],
        "textposition": "none",
        "marker": {"color": part.color, "pattern": pattern},
        "hovertemplate": "%{text}: %{x:.2f} %",
    }
