"""The main figures and the table of accuracies."""

import re
from collections.abc import Mapping, Sequence
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
from edkd.report.numbers import MISSING, counted, duration, numbers, percent, row_axis, spread
from edkd.report.subject import Line, Subject
from edkd.results.runs import Row, Run
from edkd.results.table import count_of

_LAST = "last top-1 (%)"
_BEST = "best top-1 (%)"

_COLUMNS = (
    Column("run", is_number=False),
    Column("method", is_number=False),
    Column("networks", is_number=False),
    Column("parameters"),
    Column("seeds"),
    Column(_LAST),
    Column(_BEST),
    Column("teacher (%)"),
)

_RUN_COLUMNS = ("run", "seed", "epochs", _LAST, _BEST, "best epoch", "time", "students")

_ONE_SEED = "A configuration with one seed has no deviation: small differences may be chance."

_OPTIMISTIC = (
    "The test set chose the best epoch, so “best” is optimistic. Compare “last”, or hold out "
    "training images with DATASET.VAL_SPLIT."
)

_STUDENT = re.compile(r"last_test_(\w+)_top1")


def results(subject: Subject) -> Section:
    """The figures of each row, with mean and standard deviation over the seeds."""
    blocks: list[Block] = [_tiles(subject), _table(subject)]
    blocks += _notes(subject)
    blocks.append(_chart(subject))
    blocks.append(_single_runs(subject))
    return Section("results", "Results", "", blocks)


# The main figures.


def _tiles(subject: Subject) -> Tiles:
    leader = max(subject.lines, key=_mean_last)
    reached = spread(leader.row.accuracies("last"))
    tiles = [Tile("Highest top-1, last epoch", f"{reached} %", leader.name)]

    teacher = _teacher_top1(leader.row)
    if teacher:
        tiles.append(Tile("Its teacher", f"{teacher} %", leader.first.teacher))

    runs = len(subject.runs)
    tiles.append(Tile("Runs", str(runs), _counts(subject)))

    seconds = sum(_seconds(run) for run in subject.runs)
    tiles.append(Tile("Time of all epochs", duration(seconds), "training and evaluation"))
    return Tiles(tiles)


def _mean_last(line: Line) -> float:
    return mean(line.row.accuracies("last"))


def _counts(subject: Subject) -> str:
    """The number of configurations and of seeds."""
    configurations = counted(len(subject.lines), "configuration")
    seeds = sorted({len(line.row.seeds) for line in subject.lines})
    each = counted(seeds[-1], "seed")
    if len(seeds) > 1:
        each = f"{seeds[0]} to {each}"
    return f"{configurations}, {each} each"


def _teacher_top1(row: Row) -> str:
    """Top-1 of each teacher on the test set, over the seeds; "" where it was not measured.

    One value where all seeds have the same teacher.
    """
    seeds = [_teachers_of_seed(runs) for runs in row.seeds]
    measured = filter(None, seeds)

    parts = []
    for values in zip(*measured, strict=False):
        if len(set(values)) == 1:
            values = values[:1]
        parts.append(spread(values))
    return ", ".join(parts)


def _teachers_of_seed(runs: Sequence[Run]) -> list[float]:
    """The mean of each teacher over the runs of a seed; [] where none measured it."""
    measured = [run.teacher_top1 for run in runs if run.teacher_top1]
    return [mean(values) for values in zip(*measured, strict=False)]


def _seconds(run: Run) -> float:
    """Of all epochs."""
    train = numbers([run], "train_seconds")
    evaluation = numbers([run], "eval_seconds")
    return sum(train) + sum(evaluation)


# The table.


def _table(subject: Subject) -> Table:
    rows = [_table_row(line) for line in subject.lines]
    caption = f"Top-1 accuracy on the test set of {subject.dataset}"
    return Table(caption, _COLUMNS, rows)


def _table_row(line: Line) -> list[Cell]:
    row = line.row
    parameters = line.first.result["parameters"]

    return [
        Cell(line.name, series=line.series),
        Cell(line.first.method),
        Cell(line.first.pair),
        Cell(f"{parameters:,}"),
        Cell(count_of(row)),
        Cell(spread(row.accuracies("last"))),
        Cell(spread(row.accuracies("best"))),
        Cell(_teacher_top1(row) or MISSING),
    ]


def _notes(subject: Subject) -> list[Note]:
    """The limits of the figures."""
    seeds = [len(line.row.seeds) for line in subject.lines]
    splits = {run.split for run in subject.runs}

    notes = []
    if max(seeds) > 1:
        notes.append(Note("± is the sample standard deviation over the seeds."))
    if min(seeds) == 1:
        notes.append(Note(_ONE_SEED, is_warning=True))
    if "test" in splits:
        notes.append(Note(_OPTIMISTIC, is_warning=True))
    return notes


# A point for each seed.


def _chart(subject: Subject) -> Chart:
    lines = subject.lines
    traces = [_points(place, line) for place, line in enumerate(lines)]
    layout = {
        "hovermode": "closest",
        "xaxis": {"title": {"text": _LAST}, "ticksuffix": " %"},
        "yaxis": row_axis([line.name for line in lines]),
    }

    rows = []
    for line in lines:
        texts = [f"{value:.2f}" for value in line.row.accuracies("last")]
        rows.append([line.name, ", ".join(texts)])

    title = "Top-1 after the last epoch: a point for each seed, a bar for the mean"
    table = text_table("Top-1 of each seed after the last epoch (%)", ["run", "seeds"], rows)
    height = 130 + 26 * len(lines)
    return Chart("seeds", title, _ranking(lines), traces, layout, table, height)


def _ranking(lines: Sequence[Line]) -> str:
    """A sentence about the first two rows."""
    first, *others = sorted(lines, key=_mean_last, reverse=True)
    text = f"Highest mean: {percent(_mean_last(first))}, {first.name}."
    if not others:
        return text

    gap = _mean_last(first) - _mean_last(others[0])
    return f"{text} The next, {others[0].name}, is {gap:.2f} points below."


def _points(place: int, line: Line) -> dict[str, Any]:
    values = line.row.accuracies("last")
    count = len(values)
    color = line.series.color

    marker = {
        "color": color,
        "symbol": [line.series.symbol] * count + ["line-ns"],
        "size": [9] * count + [20],
        "opacity": 0.8,
        "line": {"color": color, "width": [0] * count + [3]},
    }
    return {
        "type": "scatter",
        "mode": "markers",
        "name": line.name,
        "meta": line.series.number,
        "x": [*values, mean(values)],
        "y": [place] * (count + 1),
        "marker": marker,
        "hovertemplate": "%{x:.2f} %",
    }


# Each run.


def _single_runs(subject: Subject) -> Details:
    """Each run, with the numbers of its `result.json`."""
    rows = []
    for line in subject.lines:
        rows += [_single_run(line.name, run) for run in line.row.runs]
    table = text_table("Single runs", _RUN_COLUMNS, rows)
    return Details(counted(len(rows), "single run"), [table])


def _single_run(name: str, run: Run) -> list[str]:
    best_epoch = run.result.get("best_epoch", MISSING)
    seed = MISSING if run.seed is None else str(run.seed)
    return [
        name,
        seed,
        str(len(run.history)),
        f"{run.accuracy('last'):.2f}",
        f"{run.accuracy('best'):.2f}",
        str(best_epoch),
        duration(_seconds(run)),
        _students(run.result) or MISSING,
    ]


def _students(result: Mapping[str, Any]) -> str:
    """Last top-1 of each student and of the ensemble, where several students train together."""
    parts = []
    for key, value in result.items():
        found = _STUDENT.fullmatch(key)
        if found and isinstance(value, int | float):
            parts.append(f"{found[1]} {value:.2f}")
    return ", ".join(parts)
