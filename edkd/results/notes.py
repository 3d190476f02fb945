"""The lines below a table: how to read it, and what it must not hide."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean

from edkd.paths import short_path
from edkd.results.comparison import Cell, Column
from edkd.results.grid import MARKS, OTHER_PROTOCOL, Choice
from edkd.results.names import shown
from edkd.results.published import Figure, protocols
from edkd.results.runs import Run
from edkd.results.statistics import POWER, outliers
from edkd.results.verdicts import BASELINE, ONE_SEED, Judged, Verdict

_CHOSEN = {
    "test": "chosen on the test set (test), which makes it optimistic",
    "val": "chosen on held-out images (val)",
}
"""By split: how the best epoch was chosen."""

Columns = Sequence[Column]


def notes_of(tables: Sequence[Judged], choice: Choice, is_wide: bool = False) -> list[str]:
    """All lines below a table.

    Args:
        tables: its columns.
        choice: what it shows.
        is_wide: the pairs are side by side, so that verdicts are marks.
    """
    columns = [one.column for one in tables]
    return [
        _figures(columns),
        *_tests(tables, choice, is_wide),
        *_protocols(columns),
        *_published(columns, is_wide),
        *_teachers(columns),
        *_folders(columns),
        *_outliers(columns),
        *_circumstances(columns),
    ]


def _cells(columns: Columns) -> list[Cell]:
    return [cell for column in columns for cell in column.cells]


def _runs(columns: Columns) -> list[Run]:
    return [run for column in columns for run in column.runs]


def _figures(columns: Columns) -> str:
    """What the figures are, and on which images the best epoch was chosen."""
    splits = sorted({run.split for run in _runs(columns)})
    chosen = " or ".join(_CHOSEN[split] for split in splits)
    return (
        "top-1 accuracy in percent on the test set: mean ± standard deviation over n seeds; "
        f"last: after the last epoch; best: after the best epoch, {chosen}"
    )


# Tests.


def _tests(tables: Sequence[Judged], choice: Choice, is_wide: bool) -> list[str]:
    """What was tested, and why nothing was elsewhere."""
    verdicts = [verdict for one in tables for verdict in one.verdicts if verdict]
    number = len(set(_tested(tables)))
    baselines = {shown(one.baseline.method): None for one in tables if one.baseline}
    lines = []

    if number:
        names = " / ".join(baselines)
        lines.append(_legend(names, choice, is_wide))
        if is_wide:
            lines += _unmarked(verdicts)
    elif any(verdict.reason == ONE_SEED for verdict in verdicts):
        lines.append("no verdict: a test needs two seeds or more of a method and of the baseline")
    if number > 1:
        lines.append(_by_chance(number, choice))

    without = [one.column.title for one in tables if one.baseline is None]
    if without:
        names = "; ".join(without)
        lines.append(f"no baseline, so no test: {names} (--baseline names one)")
    return lines


def _tested(tables: Sequence[Judged]) -> Iterator[tuple[Path, Path]]:
    """The first runs of each two rows that a test compares.

    Rows without a teacher stand in each column of their student, so a test may be there twice.
    """
    for one in tables:
        if one.baseline is None:
            continue
        baseline = one.baseline.run.folder

        for cell, verdict in one.rows:
            if verdict and verdict.word:
                yield cell.run.folder, baseline


def _by_chance(number: int, choice: Choice) -> str:
    """What many comparisons at one significance level mean."""
    wrong = number * choice.alpha
    return (
        f"the {number} tests are not corrected for their number: if no method differed from the "
        f"baseline, {wrong:.2g} of them would be BEATS or WORSE on average"
    )


def _legend(baseline: str, choice: Choice, is_wide: bool) -> str:
    """How verdicts were found."""
    test = (
        f"Welch's t-test of the {choice.by} epoch against {baseline}, two-sided, alpha "
        f"{choice.alpha:g}"
    )
    if is_wide:
        marks = ", ".join(f"{mark} {word}" for word, mark in MARKS.items())
        return f"{marks}: {test}"

    return (
        f"verdict: {test}; needed: seeds of each method with which that test finds a difference "
        f"of the observed size with a probability of {100 * POWER:.0f} %"
    )


def _unmarked(verdicts: Sequence[Verdict]) -> list[str]:
    """Why figures have no mark: "no mark: one seed, no variance"."""
    reasons = dict.fromkeys(verdict.reason for verdict in verdicts)
    for usual in ("", BASELINE):
        reasons.pop(usual, None)

    if not reasons:
        return []
    names = ", ".join(reasons)
    return [f"no mark: {names}"]


# Protocols and published figures.


def _protocols(columns: Columns) -> list[str]:
    """The protocol of each column, once where all share it."""
    titles: dict[str, dict[str, None]] = {}
    for column in columns:
        for cell in column.cells:
            text = _protocol_text(cell)
            titles.setdefault(text, {})[column.title] = None

    if len(titles) == 1:
        return [f"protocol: {text}" for text in titles]
    return [f"protocol of {'; '.join(names)}: {text}" for text, names in titles.items()]


def _protocol_text(cell: Cell) -> str:
    if cell.code:
        about = protocols()[cell.code]["about"]
        return f"{cell.code}: {about}"
    return cell.run.protocol.describe()


def _published(columns: Columns, is_wide: bool) -> list[str]:
    """What published figures are, and those of their protocols that no run has the code of."""
    printed = [(cell.figures[0], cell.code) for cell in _cells(columns) if cell.figures]
    if not is_wide:
        printed += _published_teachers(columns)
    if not printed:
        return []

    lines = ["published: copied from the source, most often the best epoch on the test set"]
    others = {(figure.protocol, figure.fits(code)) for figure, code in printed}
    own = {(code, True) for _, code in printed}
    for protocol, is_same in sorted(others - own):
        start = "the same training as that of the runs"
        if not is_same:
            start = f"{OTHER_PROTOCOL} another protocol than that of the runs"
        about = protocols()[protocol]["about"]
        lines.append(f"{start}; {protocol}: {about}")
    return lines


def _published_teachers(columns: Columns) -> Iterator[tuple[Figure, str]]:
    """The printed figures of teachers, each with the code of the protocol of the runs."""
    for column in columns:
        if column.teacher_accuracies and column.teacher_figures:
            yield column.teacher_figures[0], column.code


# What a reader must know.


def _teachers(columns: Columns) -> Iterator[str]:
    """Columns in which methods had teachers of different accuracy for the same seed."""
    for column in columns:
        for seed in dict.fromkeys(run.seed for run in column.runs):
            found = _teachers_of_seed(column, seed)
            if len(set(found.values())) > 1:
                parts = ", ".join(f"{name} {value}" for name, value in found.items())
                yield f"{column.title}: the teachers of seed {seed} differ in accuracy: {parts}"


def _teachers_of_seed(column: Column, seed: int | None) -> dict[str, str]:
    """Mean accuracy of the teachers of a seed, by the names of rows.

    Rows whose runs have measured none are left out.
    """
    found = {}
    for cell in column.cells:
        runs = [run for run in cell.row.runs if run.seed == seed]
        measured = [top1 for run in runs for top1 in run.teacher_top1]
        if measured:
            found[cell.name] = f"{mean(measured):.2f}"
    return found


def _folders(columns: Columns) -> Iterator[str]:
    """Columns with images of several folders, which may be different data sets."""
    for column in columns:
        roots = {run.image_folder: None for run in column.runs if run.image_folder}
        if len(roots) > 1:
            yield (
                f"{column.title}: the images are in different folders, and only figures of the "
                f"same images can be compared: {'; '.join(roots)}"
            )


def _outliers(columns: Columns) -> list[str]:
    """Runs far from the others of their row, each once; all of them count."""
    found: dict[str, dict[str, None]] = {}
    for cell in _cells(columns):
        for by in ("last", "best"):
            values = cell.accuracies(by)
            for place in outliers(values):
                name = _outlier_name(cell, place)
                found.setdefault(name, {})[f"{by} {values[place]:.2f}"] = None

    lines = []
    for name, texts in found.items():
        figures = ", ".join(texts)
        lines.append(f"outlier, which counts in all figures: {figures}, {name}")
    return lines


def _outlier_name(cell: Cell, place: int) -> str:
    """A seed of a row, with the folders of its runs."""
    runs = cell.row.seeds[place]
    folders = ", ".join(str(short_path(run.folder)) for run in runs)
    return f"{cell.name}, seed {runs[0].seed}: {folders}"


def _circumstances(columns: Columns) -> Iterator[str]:
    """Hardware, precision and versions, and that they differ."""
    runs = _runs(columns)
    facts = {
        "hardware": [_recorded(run, "device") for run in runs],
        "precision": [run.precision for run in runs],
        "version of edkd": [_version(run) for run in runs],
    }

    unknown = []
    for name, values in facts.items():
        distinct = list(dict.fromkeys(values))
        if distinct == [""]:
            unknown.append(name)
            continue
        text = "; ".join(value or "not recorded" for value in distinct)
        start = "the runs differ in " if len(distinct) > 1 else ""
        yield f"{start}{name}: {text}"

    if unknown:
        yield f"not recorded: {', '.join(unknown)}"


def _recorded(run: Run, name: str) -> str:
    """A fact of `environment.json`; "" where it is unknown."""
    return str(run.environment.get(name) or "")


def _version(run: Run) -> str:
    """Version and commit."""
    version = _recorded(run, "edkd")
    commit, _, changes = _recorded(run, "commit").partition("+")
    short = commit[:7]
    if changes:
        short += f"+{changes}"
    return f"{version} {short}".strip()
