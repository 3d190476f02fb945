"""How far the runs of a sweep are, and their results."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edkd.engine.checkpoint import save_text
from edkd.engine.folder_lock import is_in_use
from edkd.engine.run_folder import CONFIG
from edkd.errors import StorageError, UserError
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
    if not (run.folder / CONFIG).is_file():
        return NEW
    if is_in_use(run.folder):
        return IN_USE
    return FINISHED if result_of(run) else STARTED


def result_of(run: Planned) -> Run | None:
    """The result of a run that has done all its epochs."""
    if not (run.folder / RESULT).is_file():
        return None
    try:
        result = read_run(run.folder)
    except UserError:  # damaged: the run writes it again
        return None
    return result if len(result.history) == run.cfg.SOLVER.EPOCHS else None


def results_of(sweep: Sweep) -> list[Run]:
    """The results of all finished runs."""
    found = [result_of(run) for run in sweep.runs]
    return [result for result in found if result]


def make_folder(sweep: Sweep) -> None:
    """Make the folder of a sweep.

    Raises:
        StorageError: it cannot be made.
    """
    try:
        sweep.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot create the folder {sweep.folder}: {error.strerror}; set LOG.PREFIX to another"
        ) from None


def write_results(sweep: Sweep, errors: Mapping[int, str]) -> Path:
    """Write a line for each run to `results.csv`, and return its path.

    Args:
        sweep: its runs.
        errors: a line for each run that failed, by number.
    """
    keys = list(dict.fromkeys(key for run in sweep.runs for key in run.options))
    header = ["run", "state", "config", *keys, *_FIGURES, "folder", "error"]
    lines = [_line(run, keys, errors.get(run.number, "")) for run in sweep.runs]

    path = sweep.folder / RESULTS
    save_text(_csv([header, *lines]), path)
    return path


def _line(run: Planned, keys: Sequence[str], error: str) -> list[Any]:
    result = result_of(run)
    figures: Mapping[str, Any] = result.result if result else {}
    return [
        run.number,
        "failed" if error else state_of(run),
        run.config,
        *(run.options.get(key, "") for key in keys),
        *(figures.get(name, "") for name in _FIGURES),
        run.folder,
        error,
    ]


def _csv(lines: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()
