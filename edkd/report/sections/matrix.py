"""The confusion matrix and the most frequent confusions."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from edkd.report.blocks import Cell, Chart, Column, Note, Table, text_table
from edkd.report.findings import Findings
from edkd.report.numbers import counted
from edkd.report.sections.classes import MANY, class_axis, width_for

_NUMBERED = 12
"""Classes up to which the cells of a matrix hold numbers."""

_PAIRS = 12
"""Confusions of a table at most."""

_SCALE = [
    [0, "var(--surface)"],
    [0.02, "var(--heat-1)"],
    [1, "var(--heat-2)"],
]
"""Colours by the share of the true class. A single error is visible."""


class _Confusion(NamedTuple):
    """Classes that are confused, by their numbers."""

    true: int
    predicted: int
    images: int


class _Part(NamedTuple):
    """The classes of a matrix that are shown.

    Args:
        labels: K of them.
        counts: (K,K), rows are true classes.
        totals: (K,), test images of each true class.
    """

    labels: Sequence[str]
    counts: Any
    totals: Any


def matrix_chart(found: Findings) -> Chart:
    """The confusion matrix; of many classes, those with the most errors."""
    names = found.class_names
    counts = found.runs[0].confusion
    shown = _most_confused(counts)
    labels = [names[place] for place in shown]
    part = _Part(labels, counts[np.ix_(shown, shown)], counts[shown].sum(1))

    title = "Confusion matrix"
    if len(shown) < len(names):
        title = f"Confusion matrix of the {len(shown)} of {len(names)} classes with most errors"

    across = {"title": {"text": "predicted class"}, "showgrid": False}
    down = {
        "title": {"text": "true class"},
        "showgrid": False,
        "range": [len(labels) - 0.5, -0.5],
    }
    layout = {"xaxis": class_axis(labels) | across, "yaxis": class_axis(labels) | down}
    height = min(620, 230 + 26 * len(shown))
    table = _table(title, part)
    chart = Chart("matrix", title, _summary(found), [_heat(part)], layout, table, height)
    return chart._replace(min_width=width_for(labels))


def confusion_table(found: Findings) -> Table | Note:
    """The most frequent confusions."""
    counts = found.runs[0].confusion
    names = found.class_names
    totals = counts.sum(1)
    confusions = _confusions(counts, _PAIRS)
    if not confusions:
        return Note("There is no error.")

    columns = [
        Column("true class", is_number=False),
        Column("predicted class", is_number=False),
        Column("images"),
        Column("share of the true class (%)"),
    ]
    rows = []
    for each in confusions:
        share = 100 * each.images / totals[each.true]
        texts = [names[each.true], names[each.predicted], f"{each.images:,}", f"{share:.1f}"]
        rows.append([Cell(text) for text in texts])
    return Table("Most frequent confusions", columns, rows)


def _most_confused(counts: Any) -> Any:
    """The classes that are shown, in their order: those of most errors, to and from them."""
    if len(counts) <= MANY:
        return np.arange(len(counts))

    wrong = _wrong(counts)
    amount = wrong.sum(0) + wrong.sum(1)
    order = np.argsort(-amount, kind="stable")
    return np.sort(order[:MANY])


def _wrong(counts: Any) -> Any:
    """The matrix with a diagonal of zeros."""
    return counts - np.diag(counts.diagonal())


def _heat(part: _Part) -> dict[str, Any]:
    """The trace; its colours are shares of the true class, its numbers are counts."""
    shares = 100 * part.counts / part.totals.clip(min=1)[:, None]
    heat = {
        "type": "heatmap",
        "z": shares.tolist(),
        "text": part.counts.tolist(),
        "zmin": 0,
        "zmax": 100,
        "colorscale": _SCALE,
        "xgap": 1,
        "ygap": 1,
        "colorbar": {"ticksuffix": " %", "thickness": 10, "outlinewidth": 0},
        "hovertemplate": "true %{y}, predicted %{x}: %{text} images, %{z:.1f} %<extra></extra>",
    }
    if len(part.labels) <= _NUMBERED:
        heat["texttemplate"] = "%{text}"
    return heat


def _summary(found: Findings) -> str:
    confusions = _confusions(found.runs[0].confusion, 1)
    if not confusions:
        return "All predictions are right."

    names = found.class_names
    first = confusions[0]
    return (
        f"Colours are shares of the true class. Most often, {names[first.true]} is taken for "
        f"{names[first.predicted]}: {counted(first.images, 'image')}."
    )


def _table(title: str, part: _Part) -> Table:
    """Counts; each row adds up to the number of images in its last column."""
    others = part.totals - part.counts.sum(1)
    has_others = bool(others.any())

    rows = []
    for place, name in enumerate(part.labels):
        texts = [str(count) for count in part.counts[place]]
        if has_others:
            texts.append(str(others[place]))
        rows.append([name, *texts, str(part.totals[place])])

    heads = ["true class", *part.labels]
    if has_others:
        heads.append("other classes")
    caption = f"{title}: number of images; columns are predicted classes"
    return text_table(caption, [*heads, "images"], rows)


def _confusions(counts: Any, number: int) -> list[_Confusion]:
    """The most frequent errors, without those that never happen."""
    wrong = _wrong(counts)
    order = np.argsort(-wrong, axis=None, kind="stable")[:number]
    trues, predictions = np.unravel_index(order, wrong.shape)

    found = []
    for true, predicted in zip(trues.tolist(), predictions.tolist(), strict=True):
        images = int(wrong[true, predicted])
        if images:
            found.append(_Confusion(true, predicted, images))
    return found
