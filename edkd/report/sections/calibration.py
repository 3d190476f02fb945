"""Whether the confidence of predictions matches their accuracy."""

import math
from collections.abc import Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any, NamedTuple

from edkd.report.blocks import Block, Cell, Chart, Column, Note, Section, Table, text_table
from edkd.report.findings import Findings, evaluated
from edkd.report.numbers import counted, spread
from edkd.report.sections.students import has_students

if TYPE_CHECKING:
    from edkd.report.measures import Bins

_LEAD = (
    "A prediction of 80 % confidence should be right in 80 % of the cases. ECE is the mean gap "
    "over 15 bins of equal width (Guo et al., 2017); adaptive ECE has bins with equal numbers of "
    "images."
)

_COLUMNS = (
    Column("run", is_number=False),
    Column("ECE (%)"),
    Column("adaptive ECE (%)"),
    Column("mean confidence (%)"),
    Column("accuracy (%)"),
    Column("tendency", is_number=False),
)

_BIN_COLUMNS = ("run", "confidence", "images", "mean confidence (%)", "accuracy (%)")

_DIAGONAL = {
    "type": "scatter",
    "mode": "lines",
    "name": "perfect calibration",
    "x": [0, 100],
    "y": [0, 100],
    "line": {"color": "var(--muted)", "width": 1, "dash": "dot"},
    "hoverinfo": "skip",
}


class _Bin(NamedTuple):
    """A bin of the reliability diagram; its edges and means in percent."""

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


def calibration(findings: Sequence[Findings], notes: Sequence[Note]) -> Section:
    """A reliability diagram, and a table of calibration errors."""
    known = evaluated(findings)
    blocks: list[Block] = [*notes]
    if any(has_students(found.line) for found in known):
        blocks.append(Note("Of several students, the best one is evaluated."))
    blocks.append(_table(known))
    blocks.append(_chart(known))
    return Section("calibration", "Calibration", _LEAD, blocks)


# The table.


def _table(findings: Sequence[Findings]) -> Table:
    rows = [_row(found) for found in findings]
    return Table("Calibration on the test set", _COLUMNS, rows)


def _row(found: Findings) -> list[Cell]:
    adaptive = found.values(lambda run: 100 * run.adaptive.error)
    confidence = found.values(lambda run: run.confidence)
    accuracy = found.values(lambda run: run.top1)

    tendency = "not confident enough"
    if mean(confidence) > mean(accuracy):
        tendency = "too confident"
    return [
        Cell(found.line.name, series=found.line.series),
        Cell(spread(_errors(found))),
        Cell(spread(adaptive)),
        Cell(spread(confidence)),
        Cell(spread(accuracy)),
        Cell(tendency),
    ]


def _errors(found: Findings) -> list[float]:
    """ECE of each run, in percent."""
    return found.values(lambda run: 100 * run.bins.error)


# The diagram.


def _chart(findings: Sequence[Findings]) -> Chart:
    axis = {"title": {"text": "mean confidence of the bin"}, "range": [-1, 103]}
    layout = {
        "hovermode": "closest",
        "xaxis": axis | {"ticksuffix": " %"},
        "yaxis": {"title": {"text": "accuracy"}, "range": [-3, 104], "ticksuffix": " %"},
    }

    best = min(findings, key=lambda found: mean(_errors(found)))
    lowest = mean(_errors(best))
    summary = (
        f"Lowest ECE: {lowest:.2f} %, {best.line.name}. Below the diagonal, predictions are too "
        "confident. A point is a bin, larger where it has more images; the first seed is shown."
    )

    traces = [_DIAGONAL, *(_trace(found) for found in findings)]
    table = _bins(findings)
    return Chart("reliability", "Reliability diagram", summary, traces, layout, table, 420)


def _trace(found: Findings) -> dict[str, Any]:
    series = found.line.series
    filled = _filled(found.runs[0].bins)
    total = sum(each.images for each in filled)

    # The area of a marker is in proportion to its images.
    marker = {
        "color": series.color,
        "symbol": series.symbol,
        "opacity": 0.85,
        "size": [6 + 18 * math.sqrt(each.images / total) for each in filled],
    }
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": found.line.name,
        "meta": series.number,
        "x": [each.confidence for each in filled],
        "y": [each.accuracy for each in filled],
        "text": [counted(each.images, "image") for each in filled],
        "line": {"color": series.color, "dash": series.dash, "width": 1.5},
        "marker": marker,
        "hovertemplate": "confidence %{x:.1f} %, accuracy %{y:.1f} %, %{text}",
    }


def _bins(findings: Sequence[Findings]) -> Table:
    """The bins of each row that have images."""
    rows = []
    for found in findings:
        for each in _filled(found.runs[0].bins):
            texts = [
                found.line.name,
                f"{each.low:.1f} to {each.high:.1f} %",
                f"{each.images:,}",
                f"{each.confidence:.2f}",
                f"{each.accuracy:.2f}",
            ]
            rows.append(texts)
    return text_table("Bins of the reliability diagram that have images", _BIN_COLUMNS, rows)


def _filled(bins: "Bins") -> list[_Bin]:
    """The bins that have images."""
    found = []
    for place, count in enumerate(bins.counts):
        if not count:
            continue

        each = _Bin(
            low=100 * bins.edges[place],
            high=100 * bins.edges[place + 1],
            images=count,
            confidence=100 * bins.confidence[place],
            accuracy=100 * bins.accuracy[place],
        )
        found.append(each)
    return found
