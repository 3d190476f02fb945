"""The task of one run, in a worker of Ray. Nothing here imports torch or Ray."""

import os
import platform
import time
from pathlib import Path
from typing import NamedTuple

from edkd.errors import StorageError
from edkd.sweep.job import CONFIG, Job, Outcome, attempt, wait_until_free

LOCKED = 120.0
"""Seconds in which the process of a lost worker saves its checkpoint and ends."""

RETURNED = (CONFIG, "environment.json", "metrics.jsonl", "worklog.txt", "result.json")
"""Files that a task returns: a network file system may show them late to other machines."""

MARK = ".token"
"""File with the token of the sweep, beside the logs: it tells a task whether storage is shared."""

_BEST = "student*_best"
"""The weights of the best epoch, which a task returns where storage is not shared."""


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
        needed: results of the runs that it needs, for the order alone: Ray starts it after them.

    Raises:
        Failed: see there.
    """
    begin = time.monotonic()
    folder = Path(job.working_folder, job.folder)
    wait_until_free(folder, LOCKED)
    resumed = (folder / CONFIG).is_file()

    try:
        outcome = attempt(job, os.environ)
    except StorageError as error:
        raise Failed(error.exit_code, str(error)) from None
    if outcome.may_retry:
        raise Failed(outcome.code, outcome.error)
    seconds = time.monotonic() - begin
    files = {} if outcome.code else _files(folder, _is_shared(job))
    return Done(outcome, files, platform.node(), seconds, resumed)


def _is_shared(job: Job) -> bool:
    """Whether the machine of the sweep has the same storage as this one."""
    mark = Path(job.working_folder, job.log).with_name(MARK)
    try:
        return mark.read_text() == job.token
    except OSError:
        return False


def _files(folder: Path, is_shared: bool) -> dict[str, bytes]:
    paths = [folder / name for name in RETURNED]
    if not is_shared:
        paths += folder.glob(_BEST)
    return {path.name: path.read_bytes() for path in paths if path.is_file()}
