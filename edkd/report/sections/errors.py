"""Which classes are confused, and the images with the most confident errors."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from edkd.report.blocks import (
    Block,
    Cell,
    Chart,
    Column,
    Details,
    Image,
    Images,
    Note,
    Section,
    Table,
    text_table,
)
from edkd.report.findings import Findings, Measured, evaluated
from edkd.report.numbers import counted

_CLASSES = 30
"""Classes of a matrix or a chart at most."""

_NUMBERED = 12
"""Classes up to which the cells of a matrix hold numbers."""

_PAIRS = 12
"""Confused pairs of a table at most."""

_LEAD = (
    "Test images with a wrong prediction. With several seeds, the first is shown; its rows of the "
    "matrix add up to the number of test images of each class."
)


def errors(findings: Sequence[Findings], notes: Sequence[Note]) -> Section:
    """Accuracy of each class for all rows; matrix, pairs and images of each row."""
    known = evaluated(findings)
    blocks: list[Block] = [*notes]
    if known:
        blocks.append(_per_class(known))
    blocks += [_of_row(found, is_open=i == 0) for i, found in enumerate(known)]
    return Section("errors", "Errors", _LEAD, blocks)


# Accuracy of each class.


def _per_class(findings: Sequence[Findings]) -> Chart:
    names = findings[0].class_names
    shares = {found.line.name: _class_accuracy(found.runs[0]) for found in findings}
    average = np.mean(list(shares.values()), axis=0)
    order = np.argsort(average, kind="stable")
    shown = sorted(order[:_CLASSES].tolist()) if len(names) <= _CLASSES else order[:_CLASSES]
    labels = [_label(names, place) for place in shown]

    traces = [_class_points(found, shares[found.line.name][shown], labels) for found in findings]
    layout = {
        "hovermode": "x unified" if len(findings) <= 10 else "closest",
        "xaxis": {"type": "category", "categoryorder": "array", "categoryarray": labels},
        "yaxis": {"title": {"text": "accuracy"}, "ticksuffix": " %"},
    }
    which = "each class"
    if len(names) > _CLASSES:
        which = f"the {_CLASSES} of {len(names)} classes with the lowest mean"
    summary = (
        f"Lowest on average: {names[order[0]]}, {average[order[0]]:.1f} %; "
        f"highest: {names[order[-1]]}, {average[order[-1]]:.1f} %."
    )
    rows = [
        [name, *(f"{value:.1f}" for value in values[shown])] for name, values in shares.items()
    ]
    title = f"Accuracy of {which}"
    table = text_table(f"{title} (%)", ["run", *labels], rows)
    return Chart("classes", title, summary, traces, layout, table)


def _class_accuracy(run: Measured) -> Any:
    """(C,), in percent; 0 for a class without test images."""
    counts = run.confusion
    return 100 * counts.diagonal() / counts.sum(1).clip(min=1)


def _class_points(found: Findings, values: Any, labels: Sequence[str]) -> dict[str, Any]:
    series = found.line.series
    return {
        "type": "scatter",
        "mode": "markers",
        "name": found.line.name,
        "meta": series.number,
        "x": list(labels),
        "y": values.tolist(),
        "marker": {"color": series.color, "symbol": series.symbol, "size": 9, "opacity": 0.85},
        "hovertemplate": "%{y:.1f} %",
    }


def _label(names: Sequence[str], place: int) -> str:
    """The name of a class; names that are numbers get a word before them, for plotly's axis."""
    name = names[place]
    return f"class {name}" if name.isdigit() and len(names) > _CLASSES else name


# A row.


def _of_row(found: Findings, is_open: bool) -> Details:
    run = found.runs[0]
    wrong = int(run.confusion.sum() - run.confusion.trace())
    title = f"{found.line.name}: {counted(wrong, 'error')} in {counted(run.num_images, 'image')}"
    blocks: list[Block] = [_matrix(found), _pairs(found)]
    if found.images:
        blocks.append(_gallery(found))
    return Details(title, blocks, is_open, found.line.series)


def _matrix(found: Findings) -> Chart:
    """The confusion matrix; of many classes, those with the most errors."""
    names = found.class_names
    counts = found.runs[0].confusion
    shown = _most_confused(counts)
    part = counts[np.ix_(shown, shown)]
    totals = counts[shown].sum(1)
    shares = 100 * part / totals.clip(min=1)[:, None]
    labels = [_label(names, place) for place in shown]

    heat = {
        "type": "heatmap",
        "x": labels,
        "y": labels,
        "z": shares.tolist(),
        "text": part.tolist(),
        "zmin": 0,
        "zmax": 100,
        "colorscale": [[0, "var(--surface)"], [0.05, "var(--heat-1)"], [1, "var(--heat-2)"]],
        "xgap": 1,
        "ygap": 1,
        "colorbar": {"ticksuffix": " %", "thickness": 10, "outlinewidth": 0},
        "hovertemplate": "true %{y}, predicted %{x}: %{text} images, %{z:.1f} %<extra></extra>",
    }
    if len(shown) <= _NUMBERED:
        heat["texttemplate"] = "%{text}"

    layout = {
        "xaxis": _class_axis("predicted class", labels),
        "yaxis": _class_axis("true class", labels) | {"autorange": "reversed"},
    }
    title = "Confusion matrix"
    if len(shown) < len(names):
        title = f"Confusion matrix of the {len(shown)} of {len(names)} classes with most errors"
    height = min(620, 230 + 26 * len(shown))
    table = _matrix_table(title, labels, part, totals)
    return Chart("matrix", title, _matrix_summary(found), [heat], layout, table, height)


def _most_confused(counts: Any) -> Any:
    """The classes that are shown, in their order: those of most errors, to and from them."""
    if len(counts) <= _CLASSES:
        return np.arange(len(counts))
    wrong = counts - np.diag(counts.diagonal())
    amount = wrong.sum(0) + wrong.sum(1)
    return np.sort(np.argsort(-amount, kind="stable")[:_CLASSES])


def _class_axis(title: str, labels: Sequence[str]) -> dict[str, Any]:
    return {
        "title": {"text": title},
        "type": "category",
        "categoryorder": "array",
        "categoryarray": list(labels),
        "showgrid": False,
        "tickmode": "array",
        "tickvals": list(labels),
        "tickfont": {"size": 13 if len(labels) <= _NUMBERED else 10},
    }


def _matrix_summary(found: Findings) -> str:
    pairs = _confused(found.runs[0].confusion, 1)
    if not pairs:
        return "All predictions are right."
    true, predicted, count = pairs[0]
    names = found.class_names
    return (
        f"Colours are shares of the true class. Most often, {names[true]} is taken for "
        f"{names[predicted]}: {counted(count, 'image')}."
    )


def _matrix_table(title: str, labels: Sequence[str], part: Any, totals: Any) -> Table:
    """Counts; each row adds up to the number of images."""
    others = totals - part.sum(1)
    has_others = bool(others.any())
    heads = ["true class", *labels, *(["other classes"] if has_others else []), "images"]

    rows = []
    for label, counts, other, total in zip(labels, part, others, totals, strict=True):
        numbers = [*counts, *([other] if has_others else []), total]
        rows.append([label, *(str(number) for number in numbers)])
    return text_table(f"{title}: number of images; columns are predicted classes", heads, rows)


def _confused(counts: Any, number: int) -> list[tuple[int, int, int]]:
    """(true class, predicted class, images) of the most frequent errors."""
    wrong = counts - np.diag(counts.diagonal())
    order = np.argsort(-wrong, axis=None, kind="stable")[:number]
    places = zip(*np.unravel_index(order, wrong.shape), strict=True)
    found = [(int(true), int(taken), int(wrong[true, taken])) for true, taken in places]
    return [pair for pair in found if pair[2]]


def _pairs(found: Findings) -> Table | Note:
    counts = found.runs[0].confusion
    pairs = _confused(counts, _PAIRS)
    if not pairs:
        return Note("There is no error.")

    totals = counts.sum(1)
    heads = ["true class", "predicted class", "images", "share of the true class (%)"]
    columns = [Column(head, is_number=i > 1) for i, head in enumerate(heads)]
    rows = [
        [
            Cell(found.class_names[true]),
            Cell(found.class_names[predicted]),
            Cell(f"{count:,}"),
            Cell(f"{100 * count / totals[true]:.1f}"),
        ]
        for true, predicted, count in pairs
    ]
    return Table("Most frequent confusions", columns, rows)


def _gallery(found: Findings) -> Images:
    images = [
        Image(
            uri=wrong.uri,
            alt=f"Test image {wrong.position}: true class {wrong.target}, predicted "
            f"{wrong.predicted} with {wrong.confidence:.1f} % confidence",
            title=f"{wrong.target}, not {wrong.predicted}",
            detail=f"{wrong.confidence:.1f} %, image {wrong.position}",
            is_small=wrong.is_small,
        )
        for wrong in found.images
    ]
    caption = "Most confident errors: true class, not the predicted one; confidence"
    return Images(caption, images)
