"""Accuracy of each class."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from edkd.report.blocks import Chart, Table, text_table
from edkd.report.curves import hover_mode
from edkd.report.findings import Findings, Measured

MANY = 30
"""Classes of a chart at most."""

_UNTURNED = 10
"""Classes for which the narrowest page has enough room."""


def class_chart(findings: Sequence[Findings]) -> Chart:
    """Accuracy of each class; of many classes, those with the lowest mean over the rows.

    Args:
        findings: rows of the same classes. Classes without test images are left out.
    """
    present = np.flatnonzero(findings[0].runs[0].confusion.sum(1)).tolist()
    names = [findings[0].class_names[place] for place in present]
    accuracy = np.stack([_accuracy(found.runs[0])[present] for found in findings])
    average = accuracy.mean(0)
    order = np.argsort(average, kind="stable")

    # Few classes stay in their order.
    shown = order[:MANY]
    title = f"Accuracy of the {MANY} of {len(names)} classes with the lowest mean"
    if len(names) <= MANY:
        shown = np.arange(len(names))
        title = "Accuracy of each class"

    labels = [names[place] for place in shown]
    part = accuracy[:, shown]
    traces = []
    for found, row in zip(findings, part, strict=True):
        traces.append(_points(found, row))

    layout = {
        "hovermode": hover_mode(len(findings)),
        "xaxis": class_axis(labels),
        "yaxis": {"title": {"text": "accuracy"}, "ticksuffix": " %"},
    }

    low = order[0]
    high = order[-1]
    summary = (
        f"Lowest on average: {names[low]}, {average[low]:.1f} %; "
        f"highest: {names[high]}, {average[high]:.1f} %."
    )
    table = _table(title, findings, part, labels)
    chart = Chart("classes", title, summary, traces, layout, table)
    return chart._replace(min_width=width_for(labels))


def width_for(labels: Sequence[str]) -> int:
    """Pixels in which the labels of classes do not overlap."""
    if len(labels) <= _UNTURNED:
        return 0
    return 130 + 17 * len(labels)


def class_axis(labels: Sequence[str]) -> dict[str, Any]:
    """An axis of plotly with a place for each class: several classes can have the same name."""
    count = len(labels)
    return {
        "tickmode": "array",
        "tickvals": list(range(count)),
        "ticktext": list(labels),
        "range": [-0.5, count - 0.5],
    }


def _accuracy(run: Measured) -> Any:
    """(C,), in percent; of no meaning for a class without test images."""
    totals = run.confusion.sum(1)
    right = run.confusion.diagonal()
    return 100 * right / totals.clip(min=1)


def _points(found: Findings, values: Any) -> dict[str, Any]:
    series = found.line.series
    marker = {
        "color": series.color,
        "symbol": series.symbol,
        "size": 9,
        "opacity": 0.85,
    }
    return {
        "type": "scatter",
        "mode": "markers",
        "name": found.line.name,
        "meta": series.number,
        "x": list(range(len(values))),
        "y": values.tolist(),
        "marker": marker,
        "hovertemplate": "%{y:.1f} %",
    }


def _table(title: str, findings: Sequence[Findings], part: Any, labels: Sequence[str]) -> Table:
    rows = []
    for found, values in zip(findings, part, strict=True):
        texts = [f"{value:.1f}" for value in values]
        rows.append([found.line.name, *texts])
    return text_table(f"{title} (%)", ["run", *labels], rows)
