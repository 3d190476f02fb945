"""The task of one run, in a worker of Ray. Nothing here imports torch or Ray."""

import os
import platform
import time
from pathlib import Path
from typing import NamedTuple

from edkd.sweep.job import CONFIG, Job, Outcome, attempt, wait_until_free

LOCKED = 120.0
"""Seconds in which the process of a lost worker saves its checkpoint and ends."""

RETURNED = (CONFIG, "environment.json", "metrics.jsonl", "worklog.txt", "result.json")
"""Files that a task returns, beside the weights of the best epoch."""

_BEST = "student*_best"


class Failed(RuntimeError):
    """An attempt failed, and another one may not: Ray tries it again.

    Args:
        code: see `Outcome`.
        error: the same.
    """

    def __init__(self, code: int, error: str) -> None:
        super().__init__(code, error)


class Done(NamedTuple):
    """What a task returns."""

    outcome: Outcome
    files: dict[str, bytes]
    """Of the run's folder, by their names; empty where the run failed."""
    machine: str
    seconds: float
    """Of the last attempt."""
    resumed: bool
    """Whether an earlier attempt, or an earlier sweep, had started the run."""


def run_task(job: Job, *needed: Done) -> Done:
    """One attempt of a run.

    Args:
        job: the run.
        needed: results of the runs that it needs: Ray starts it after them.

    Raises:
        Failed: see there.
    """
    begin = time.monotonic()
    os.makedirs(job.working_folder, exist_ok=True)
    folder = Path(job.working_folder, job.folder)
    wait_until_free(folder, LOCKED)
    resumed = (folder / CONFIG).is_file()

    outcome = attempt(job, os.environ)
    if outcome.may_retry:
        raise Failed(outcome.code, outcome.error)
    seconds = time.monotonic() - begin
    files = {} if outcome.code else _files(folder)
    return Done(outcome, files, platform.node(), seconds, resumed)


def _files(folder: Path) -> dict[str, bytes]:
    paths = [folder / name for name in RETURNED]
    paths += folder.glob(_BEST)
    return {path.name: path.read_bytes() for path in paths if path.is_file()}
