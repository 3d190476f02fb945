"""How far the runs of a sweep are, and their results."""

import csv
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edkd.engine.checkpoint import save_text
from edkd.engine.run_folder import CONFIG
from edkd.errors import StorageError, UserError
from edkd.folder_lock import is_in_use
from edkd.results.runs import RESULT, Run, read_run
from edkd.sweep.plan import Planned, Sweep

NEW = "new"
STARTED = "started"
FINISHED = "finished"
IN_USE = "in use"
"""Another process runs it."""

RESULTS = "results.csv"

_FIGURES = ("last_test_top1", "best_test_top1", "best_epoch", "epochs", "parameters")


def state_of(run: Planned) -> str:
    """How far a run is."""
    if not is_started(run):
        return NEW
    if result_of(run):
        return FINISHED
    return IN_USE if is_in_use(run.folder) else STARTED


def is_started(run: Planned) -> bool:
    """Whether a run has a folder; nothing is locked, as `state_of` does for a moment."""
    return (run.folder / CONFIG).is_file()


def result_of(run: Planned) -> Run | None:
    """The result of a run that has done all its epochs."""
    if not (run.folder / RESULT).is_file():
        return None
    try:
        result = read_run(run.folder)
    except UserError:  # damaged: the run writes it again
        return None
    return result if len(result.history) == run.cfg.SOLVER.EPOCHS else None


class Results:
    """Results of the runs of a sweep. That of a finished run is read once."""

    def __init__(self) -> None:
        self._found: dict[int, Run] = {}

    def of(self, run: Planned) -> Run | None:
        """The same as `result_of`."""
        if run.number in self._found:
            return self._found[run.number]
        result = result_of(run)
        if result:
            self._found[run.number] = result
        return result


def make_folder(folder: Path) -> None:
    """Make the folder of a sweep or of a study.

    Raises:
        StorageError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot create the folder {folder}: {error.strerror}; set LOG.PREFIX to another"
        ) from None


def write_results(
    sweep: Sweep, results: Results, errors: Mapping[int, str], in_use: Collection[int]
) -> Path:
    """Write a line for each run to `results.csv`, and return its path.

    No folder is locked: the processes of this sweep may be about to lock theirs.

    Args:
        sweep: its runs.
        results: of its runs.
        errors: a line for each run that failed, by number.
        in_use: numbers of runs of other processes.
    """
    keys = list(dict.fromkeys(key for run in sweep.runs for key in run.options))
    header = ["run", "state", "config", *keys, *_FIGURES, "folder", "error"]
    lines = []
    for run in sweep.runs:
        result = results.of(run)
        error = errors.get(run.number, "")
        state = "failed" if error else _known_state(run, result, in_use)
        lines.append(_line(run, keys, result, state, error))

    path = sweep.folder / RESULTS
    save_text(csv_text([header, *lines]), path)
    return path


def _known_state(run: Planned, result: Run | None, in_use: Collection[int]) -> str:
    if result:
        return FINISHED
    if run.number in in_use:
        return IN_USE
    return STARTED if is_started(run) else NEW


def _line(
    run: Planned, keys: Sequence[str], result: Run | None, state: str, error: str
) -> list[Any]:
    figures: Mapping[str, Any] = result.result if result else {}
    return [
        run.number,
        state,
        run.config,
        *(run.options.get(key, "") for key in keys),
        *(figures.get(name, "") for name in _FIGURES),
        run.folder,
        error,
    ]


def csv_text(lines: Iterable[Sequence[Any]]) -> str:
    """Lines of cells as the text of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()
