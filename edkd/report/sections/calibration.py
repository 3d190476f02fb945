"""Whether the confidence of predictions matches their accuracy."""

from collections.abc import Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

from edkd.report.blocks import Block, Cell, Chart, Column, Note, Section, Table
from edkd.report.findings import Findings, evaluated
from edkd.report.numbers import spread

if TYPE_CHECKING:
    from edkd.report.measures import Bins

_LEAD = (
    "A prediction of 80 % confidence should be right in 80 % of the cases. ECE is the mean gap over "
    "15 bins of equal width (Guo et al., 2017); adaptive ECE has bins with equal numbers of images."
)


def calibration(findings: Sequence[Findings], notes: Sequence[Note]) -> Section:
    """A reliability diagram, and a table of calibration errors."""
    known = evaluated(findings)
    if not known:
        return Section("calibration", "Calibration", _LEAD, notes)

    blocks: list[Block] = [*notes, _table(known), _chart(known)]
    return Section("calibration", "Calibration", _LEAD, blocks)


def _table(findings: Sequence[Findings]) -> Table:
    columns = [
        Column("run", is_number=False),
        Column("ECE (%)"),
        Column("adaptive ECE (%)"),
        Column("mean confidence (%)"),
        Column("accuracy (%)"),
        Column("tendency", is_number=False),
    ]
    return Table("Calibration on the test set", columns, [_row(each) for each in findings])


def _row(found: Findings) -> list[Cell]:
    confidence = found.values(lambda run: run.confidence)
    accuracy = found.values(lambda run: run.top1)
    return [
        Cell(found.line.name, series=found.line.series),
        Cell(spread(found.values(lambda run: 100 * run.bins.error))),
        Cell(spread(found.values(lambda run: 100 * run.adaptive.error))),
        Cell(spread(confidence)),
        Cell(spread(accuracy)),
        Cell("too confident" if mean(confidence) > mean(accuracy) else "not confident enough"),
    ]


def _chart(findings: Sequence[Findings]) -> Chart:
    diagonal = {
        "type": "scatter",
        "mode": "lines",
        "name": "perfect calibration",
        "x": [0, 100],
        "y": [0, 100],
        "line": {"color": "var(--muted)", "width": 1, "dash": "dot"},
        "hoverinfo": "skip",
    }
    layout = {
        "hovermode": "closest",
        "xaxis": {
            "title": {"text": "mean confidence of the bin"},
            "range": [-1, 103],
            "ticksuffix": " %",
        },
        "yaxis": {"title": {"text": "accuracy"}, "range": [-3, 104], "ticksuffix": " %"},
    }
    errors = {found.line.name: mean(_errors(found)) for found in findings}
    best = min(errors, key=lambda name: errors[name])
    summary = (
        f"Lowest ECE: {errors[best]:.2f} %, {best}. Below the diagonal, predictions are too "
        "confident. A point is a bin, larger where it has more images; the first seed is shown."
    )
    traces = [diagonal, *(_trace(found) for found in findings)]
    return Chart(
        "reliability", "Reliability diagram", summary, traces, layout, _bins(findings), 420
    )


def _errors(found: Findings) -> list[float]:
    return found.values(lambda run: 100 * run.bins.error)


def _trace(found: Findings) -> dict[str, Any]:
    series = found.line.series
    bins = found.runs[0].bins
    filled = [place for place, count in enumerate(bins.counts) if count]
    total = sum(bins.counts)

    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": found.line.name,
        "meta": series.number,
        "x": [100 * bins.confidence[place] for place in filled],
        "y": [100 * bins.accuracy[place] for place in filled],
        "text": [f"{bins.counts[place]:,} images" for place in filled],
        "line": {"color": series.color, "dash": series.dash, "width": 1.5},
        "marker": {
            "color": series.color,
            "symbol": series.symbol,
            "opacity": 0.85,
            "size": [6 + 18 * (bins.counts[place] / total) ** 0.5 for place in filled],
        },
        "hovertemplate": "confidence %{x:.1f} %, accuracy %{y:.1f} %, %{text}",
    }


def _bins(findings: Sequence[Findings]) -> Table:
    """The bins of each row: images, mean confidence, accuracy."""
    heads = ["bin", "images", "mean confidence (%)", "accuracy (%)"]
    columns = [Column("run", is_number=False), *(Column(head) for head in heads)]
    rows = []
    for found in findings:
        bins = found.runs[0].bins
        rows += [[Cell(found.line.name), *cells] for cells in _cells(bins)]
    return Table("Bins of the reliability diagram that have images", columns, rows)


def _cells(bins: "Bins") -> list[list[Cell]]:
    rows = []
    for place, count in enumerate(bins.counts):
        if not count:
            continue
        low, high = bins.edges[place : place + 2]
        texts = [
            f"{100 * low:.1f} to {100 * high:.1f} %",
            f"{count:,}",
            f"{100 * bins.confidence[place]:.2f}",
            f"{100 * bins.accuracy[place]:.2f}",
        ]
        rows.append([Cell(text) for text in texts])
    return rows
