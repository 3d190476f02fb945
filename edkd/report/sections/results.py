"""The main figures and the table of accuracies."""

from collections.abc import Sequence
from statistics import mean
from typing import Any

from edkd.report.blocks import (
    Block,
    Cell,
    Chart,
    Column,
    Details,
    Note,
    Section,
    Table,
    Tile,
    Tiles,
    text_table,
)
from edkd.report.numbers import MISSING, counted, duration, number, percent, short, spread
from edkd.report.subject import Line, Subject
from edkd.results.runs import Run

_LAST = "last top-1 (%)"
_BEST = "best top-1 (%)"


def results(subject: Subject) -> Section:
    """The figures of each row, with mean and standard deviation over the seeds."""
    blocks: list[Block] = [_tiles(subject), _table(subject)]
    blocks += _notes(subject)
    blocks += [_chart(subject), _single_runs(subject)]
    return Section("results", "Results", "", blocks)


def _tiles(subject: Subject) -> Tiles:
    leader = max(subject.lines, key=lambda line: mean(line.row.accuracies("last")))
    tiles = [
        Tile(
            "Highest top-1, last epoch",
            f"{spread(leader.row.accuracies('last'))} %",
            leader.name,
        )
    ]
    teacher = _teacher_top1(leader.first)
    if teacher:
        tiles.append(Tile("Its teacher", f"{teacher} %", leader.first.teacher))

    seeds = {len(line.row.seeds) for line in subject.lines}
    each = f"{counted(seeds.pop(), 'seed')} each" if len(seeds) == 1 else "number of seeds differs"
    tiles.append(Tile("Runs", str(len(subject.runs)), f"{_rows(subject)}, {each}"))

    total = sum(_seconds(run) for run in subject.runs)
    tiles.append(Tile("Time of all epochs", duration(total), "training and evaluation"))
    return Tiles(tiles)


def _rows(subject: Subject) -> str:
    return counted(len(subject.lines), "configuration")


def _teacher_top1(run: Run) -> str:
    """Top-1 of each teacher on the test set; "" where it was not measured."""
    return ", ".join(f"{value:.2f}" for value in run.teacher_top1)


def _seconds(run: Run) -> float:
    """Of all epochs."""
    keys = ("train_seconds", "eval_seconds")
    return sum(number(record, key) or 0.0 for record in run.history for key in keys)


def _table(subject: Subject) -> Table:
    columns = [
        Column("run", is_number=False),
        Column("method", is_number=False),
        Column("teacher -> student", is_number=False),
        Column("parameters"),
        Column("seeds"),
        Column(_LAST),
        Column(_BEST),
        Column("teacher (%)"),
    ]
    rows = [_table_row(line) for line in subject.lines]
    caption = f"Top-1 accuracy on the test set of {subject.dataset}"
    return Table(caption, columns, rows)


def _table_row(line: Line) -> list[Cell]:
    result = line.first.result
    seeds = len(line.row.seeds)
    runs = len(line.row.runs)
    return [
        Cell(line.name, series=line.series),
        Cell(line.first.method),
        Cell(line.first.pair),
        Cell(f"{result['parameters']:,}"),
        Cell(f"{seeds}" if seeds == runs else f"{seeds} ({runs} runs)"),
        Cell(spread(line.row.accuracies("last"))),
        Cell(spread(line.row.accuracies("best"))),
        Cell(_teacher_top1(line.first) or MISSING),
    ]


def _notes(subject: Subject) -> list[Note]:
    """The limits of the figures."""
    notes = []
    seeds = {len(line.row.seeds) for line in subject.lines}
    if max(seeds) > 1:
        notes.append(Note("± is the sample standard deviation over the seeds."))
    if min(seeds) == 1:
        text = "A configuration with one seed has no deviation: small differences may be chance."
        notes.append(Note(text, is_warning=True))
    if any(run.split == "test" for run in subject.runs):
        text = (
            "The test set chose the best epoch, so “best” is optimistic. Compare “last”, or hold "
            "out training images with DATASET.VAL_SPLIT."
        )
        notes.append(Note(text, is_warning=True))
    return notes


def _chart(subject: Subject) -> Chart:
    """A point for each seed, and the mean."""
    # The longest names leave no room for the points on a phone.
    names = [f"{line.series.number + 1}" for line in subject.lines]
    traces: list[dict[str, Any]] = []
    for name, line in zip(names, subject.lines, strict=True):
        traces.append(_points(name, line))

    layout = {
        "hovermode": "closest",
        "xaxis": {"title": {"text": _LAST}, "ticksuffix": " %"},
        "yaxis": {
            "type": "category",
            "categoryorder": "array",
            "categoryarray": names[::-1],
            "title": {"text": "row of the table"},
        },
    }
    reached = sorted(
        ((mean(line.row.accuracies("last")), line.name) for line in subject.lines), reverse=True
    )
    summary = f"Highest mean: {percent(reached[0][0])}, {reached[0][1]}."
    if len(reached) > 1:
        gap = reached[0][0] - reached[1][0]
        summary += f" The next, {reached[1][1]}, is {gap:.2f} points below."

    rows = [
        [line.name, ", ".join(f"{value:.2f}" for value in line.row.accuracies("last"))]
        for line in subject.lines
    ]
    table = text_table("Top-1 of each seed after the last epoch (%)", ["run", "seeds"], rows)
    height = 130 + 26 * len(subject.lines)
    title = "Top-1 after the last epoch, a point for each seed, a bar for the mean"
    return Chart("seeds", title, summary, traces, layout, table, height)


def _points(name: str, line: Line) -> dict[str, Any]:
    values = line.row.accuracies("last")
    middle = mean(values)
    symbols = [line.series.symbol] * len(values)
    marker = {"color": line.series.color, "size": 9, "symbol": symbols, "opacity": 0.75}
    return {
        "type": "scatter",
        "mode": "markers",
        "name": line.name,
        "meta": line.series.number,
        "x": [*values, middle],
        "y": [name] * (len(values) + 1),
        "marker": marker
        | {
            "symbol": [*symbols, "line-ns"],
            "size": [9] * len(values) + [20],
            "line": {"color": line.series.color, "width": [0] * len(values) + [3]},
        },
        "hovertemplate": "%{x:.2f} %",
    }


def _single_runs(subject: Subject) -> Details:
    """Each run, with the numbers of its `result.json`."""
    columns = ["run", "seed", "epochs", _LAST, _BEST, "best epoch", "time", "students"]
    rows = []
    for line in subject.lines:
        rows += [_single_run(line.name, run) for run in line.row.runs]
    table = text_table("Single runs", columns, rows)
    return Details(counted(len(rows), "single run"), [table])


def _single_run(name: str, run: Run) -> list[str]:
    return [
        name,
        MISSING if run.seed is None else str(run.seed),
        str(len(run.history)),
        f"{run.accuracy('last'):.2f}",
        f"{run.accuracy('best'):.2f}",
        str(run.result.get("best_epoch", MISSING)),
        duration(_seconds(run)),
        _students(run.result) or MISSING,
    ]


def _students(result: Any) -> str:
    """Top-1 of each student and of the ensemble, where several students train together."""
    start = "last_test_"
    parts = [
        f"{key.removeprefix(start).removesuffix('_top1')} {short(value)}"
        for key, value in result.items()
        if key.startswith(start) and key.endswith("_top1") and key != "last_test_top1"
    ]
    return ", ".join(_sorted_students(parts))


def _sorted_students(parts: Sequence[str]) -> list[str]:
    return sorted(parts, key=lambda part: (part.startswith("ensemble"), part))
