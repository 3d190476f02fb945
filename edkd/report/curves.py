"""Charts over the epochs, a line for each row."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from edkd.report.blocks import Chart, Series, Table, text_table
from edkd.report.numbers import Band

_TABLE_EPOCHS = 16
"""Epochs that the table of a chart shows at most."""

_MARKERS = 8
"""Markers of a line at most."""

_UNIFIED = 10
"""Rows up to which the pointer shows the values of all."""


class Named(NamedTuple):
    """A line of a chart."""

    series: Series
    name: str
    band: Band


class Look(NamedTuple):
    """What a chart shows.

    Args:
        key: of the chart.
        title: the same.
        axis: name and unit of the vertical axis.
        text: writes a value.
        suffix: of the numbers on the vertical axis.
        is_wide: whether it has a line of the page for itself.
        is_step: whether a value holds until the next epoch.
    """

    key: str
    title: str
    axis: str
    text: Callable[[float | None], str]
    suffix: str = ""
    is_wide: bool = False
    is_step: bool = False


def epoch_chart(look: Look, lines: Sequence[Named], summary: str) -> Chart:
    """A chart of values over the epochs, with bands where there are several seeds.

    Args:
        lines: at least one.
        summary: as in `Chart`.
    """
    traces = []
    for line in lines:
        if line.band.deviations:
            traces.append(_area(line))
    traces += [_line(line, look) for line in lines]

    layout: dict[str, Any] = {
        "hovermode": hover_mode(len(lines)),
        "xaxis": {"title": {"text": "epoch"}, "tickformat": "d"},
        "yaxis": {"title": {"text": look.axis}, "ticksuffix": look.suffix},
    }
    epochs = max(len(line.band.epochs) for line in lines)
    if epochs < _TABLE_EPOCHS:
        layout["xaxis"] |= {"dtick": max(1, epochs // 8), "tick0": 1}

    height = 400 if look.is_wide else 300
    return Chart(look.key, look.title, summary, traces, layout, _table(look, lines), height)


def highest_and_lowest(lines: Sequence[Named], text: Callable[[float | None], str]) -> str:
    """A sentence about the values after the last epoch."""
    known = [(line.band.last, line.name) for line in lines if line.band.last is not None]
    if not known:
        return "There is no value after the last epoch."
    high = max(known)
    low = min(known)
    if high == low:
        return f"After the last epoch: {text(high[0])} ({high[1]})."
    return (
        f"After the last epoch: {text(high[0])} for {high[1]}, the highest; "
        f"{text(low[0])} for {low[1]}, the lowest."
    )


def hover_mode(number: int) -> str:
    """What the pointer shows in a chart of plotly with a number of rows."""
    return "x unified" if number <= _UNIFIED else "closest"


def _line(line: Named, look: Look) -> dict[str, Any]:
    series = line.series
    style = {"color": series.color, "dash": series.dash, "width": 2}
    if look.is_step:
        style["shape"] = "hv"

    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": line.name,
        "meta": series.number,
        "x": list(line.band.epochs),
        "y": list(line.band.means),
        "line": style,
        "marker": {
            "color": series.color,
            "symbol": series.symbol,
            "size": 7,
            "maxdisplayed": _MARKERS,
        },
        "hovertemplate": f"%{{y:.4~g}}{look.suffix}",
    }


def _area(line: Named) -> dict[str, Any]:
    """The band: one standard deviation at each side of the mean."""
    points = [
        (epoch, value, deviation)
        for epoch, value, deviation in zip(*line.band, strict=True)
        if value is not None
    ]
    there = [(epoch, value + deviation) for epoch, value, deviation in points]
    back = [(epoch, value - deviation) for epoch, value, deviation in reversed(points)]
    outline = there + back

    return {
        "type": "scatter",
        "mode": "lines",
        "name": f"{line.name}: standard deviation",
        "meta": line.series.number,
        "x": [epoch for epoch, _ in outline],
        "y": [value for _, value in outline],
        "fill": "toself",
        "fillcolor": line.series.color,
        "line": {"width": 0},
        "opacity": 0.18,
        "hoverinfo": "skip",
    }


def _table(look: Look, lines: Sequence[Named]) -> Table:
    """The means at some epochs, always with the last."""
    epochs = max(len(line.band.epochs) for line in lines)
    step = math.ceil(epochs / _TABLE_EPOCHS)
    shown = sorted({*range(step, epochs, step), epochs})

    rows = []
    for line in lines:
        means = line.band.means
        values = [means[epoch - 1] if epoch <= len(means) else None for epoch in shown]
        rows.append([line.name, *(look.text(value) for value in values)])

    which = "each epoch" if step == 1 else f"every {step} epochs"
    columns = ["run", *(f"epoch {epoch}" for epoch in shown)]
    return text_table(f"{look.title}, {which}", columns, rows)
