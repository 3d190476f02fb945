"""How the predictions of students relate to those of their teachers."""

from collections.abc import Callable, Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

from edkd.report.blocks import Block, Cell, Chart, Column, Note, Section, Table, text_table
from edkd.report.findings import Findings, evaluated
from edkd.report.numbers import spread

if TYPE_CHECKING:
    from edkd.report.measures import Agreement

_LEAD = (
    "Agreement is the share of test images for which student and teacher predict the same class. "
    "KL is the mean divergence of the student from the teacher at temperature 1, in nats."
)

_PARTS = {
    "both right": ("both_right", "var(--series-2)", ""),
    "only the teacher right": ("only_teacher", "var(--series-4)", "/"),
    "only the student right": ("only_student", "var(--series-5)", "x"),
    "both wrong": ("both_wrong", "var(--series-1)", "\\"),
}
"""Fields of Agreement, with the colour and the pattern of their bars."""


def agreement(findings: Sequence[Findings], notes: Sequence[Note]) -> Section:
    """A table of agreements, and the four cases of right and wrong predictions."""
    compared = [found for found in evaluated(findings) if _agreements(found)]
    blocks: list[Block] = [*notes]
    blocks += [Note(text) for text in _alone(evaluated(findings))]
    if compared:
        blocks += [_table(compared), _chart(compared)]
    return Section("agreement", "Agreement with the teacher", _LEAD, blocks)


def _agreements(found: Findings) -> "list[Agreement]":
    return [run.agreement for run in found.runs if run.agreement]


def _alone(findings: Sequence[Findings]) -> list[str]:
    """Why rows have no comparison."""
    lines = []
    for found in findings:
        if not _agreements(found):
            lines.append(f"{found.line.name}: {found.runs[0].no_teacher}")
    return lines


def _mean_share(found: Findings, field: str) -> float:
    return mean(100 * getattr(each, field) for each in _agreements(found))


def _table(findings: Sequence[Findings]) -> Table:
    columns = [
        Column("run", is_number=False),
        Column("agreement (%)"),
        Column("KL (nats)"),
        Column("right where the teacher is right (%)"),
        Column("right where the teacher is wrong (%)"),
    ]
    rows = [_row(found) for found in findings]
    return Table("Student and teacher on the test set", columns, rows)


def _row(found: Findings) -> list[Cell]:
    each = _agreements(found)

    def shares(value: "Callable[[Agreement], float | None]") -> str:
        known = [value(one) for one in each]
        return spread([100 * share for share in known if share is not None])

    return [
        Cell(found.line.name, series=found.line.series),
        Cell(shares(lambda one: one.same)),
        Cell(spread([one.divergence for one in each], digits=4)),
        Cell(shares(lambda one: one.right_where_teacher_right)),
        Cell(shares(lambda one: one.right_where_teacher_wrong)),
    ]


def _chart(findings: Sequence[Findings]) -> Chart:
    names = [f"{found.line.series.number + 1}" for found in findings]
    traces = [_bar(part, findings, names) for part in _PARTS]
    layout = {
        "barmode": "stack",
        "hovermode": "closest",
        "showlegend": True,
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "margin": {"t": 60},
        "xaxis": {"range": [0, 100], "ticksuffix": " %"},
        "yaxis": {
            "type": "category",
            "categoryorder": "array",
            "categoryarray": names[::-1],
            "title": {"text": "row of the table"},
        },
    }
    rows = [
        [found.line.name, *(f"{_mean_share(found, field):.2f}" for field, *_ in _PARTS.values())]
        for found in findings
    ]
    table = text_table("Share of the test images (%)", ["run", *_PARTS], rows)

    most = max(findings, key=lambda found: _mean_share(found, "only_student"))
    share = _mean_share(most, "only_student")
    summary = f"Most images that only the student has right: {share:.2f} %, {most.line.name}."
    height = 150 + 30 * len(findings)
    return Chart("cases", "Who is right", summary, traces, layout, table, height)


def _bar(part: str, findings: Sequence[Findings], names: Sequence[str]) -> dict[str, Any]:
    field, color, pattern = _PARTS[part]
    return {
        "type": "bar",
        "orientation": "h",
        "name": part,
        "x": [_mean_share(found, field) for found in findings],
        "y": list(names),
        "text": [found.line.name for found in findings],
        "textposition": "none",
        "marker": {
            "color": color,
            "pattern": {"shape": pattern, "size": 6, "solidity": 0.25, "fgcolor": "var(--text)"},
        },
        "hovertemplate": "%{text}: %{x:.2f} %",
    }
