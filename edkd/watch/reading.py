"""Reads where a run is, from the lock and the files of its folder."""

import os
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edkd.engine.abandoned import is_abandoned
from edkd.engine.log.status_file import STATUS
from edkd.engine.log.time_left import shown_duration
from edkd.folder_lock import is_in_use
from edkd.watch.files import Content, Files
from edkd.watch.older import METRICS, facts_of_files, facts_of_records, failure_of
from edkd.watch.resume import command_to_resume
from edkd.watch.status import (
    ABANDONED,
    FAILED,
    FINISHED,
    RUNNING,
    STOPPED,
    Status,
    as_status,
    count,
    number,
    text,
)

RESULT = "result.json"
LOCK = ".lock"
"""A process that starts or continues a run changes it."""

FRESH = 30.0
"""Seconds after which `status.json` does not show any more that a process writes it."""

SILENT = 600.0
"""Seconds without a step after which a line says so."""

READERS = 8
"""Folders that are read at the same time, which hides the delays of a slow disk."""

_PROGRESS = (STATUS, METRICS, "worklog.txt", "latest", "config.yaml")
"""Files whose last change is a sign of life."""

_CODES = {FINISHED: 0, FAILED: 1, STOPPED: 137, ABANDONED: 137}
"""Exit codes of runs that did not write theirs; 137 is that of a process that was killed."""

_NON_FINITE = 3


def read_all(folders: Sequence[Path]) -> list[Status]:
    """Where each run is, in the same order."""
    with ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(read_status, folders))


def read_status(folder: Path) -> Status:
    """Where a run is. Files that are absent, half-written or damaged raise nothing."""
    is_locked = is_in_use(folder)  # before the files: those of a run that has ended are complete
    files = Files(folder)
    live = files.json(STATUS)
    result = files.json(RESULT)

    facts = dict(live) if live else facts_of_files(files)
    is_live = _is_live(is_locked, live)
    is_starting = is_live and bool(live) and _is_of_earlier_process(files, live)
    is_complete = not is_live and _is_complete(facts, result)

    # How far it is: a killed process may have written its last epoch, but not `status.json`.
    if is_complete:
        facts |= _facts_of_result(result, facts.get("epochs"))
    elif is_starting or not is_live or not live:
        facts |= facts_of_records(files, facts.get("epochs"))

    status = as_status(folder, facts)
    status.last_sign = number(live.get("last_sign")) or files.changed(*_PROGRESS)
    if is_starting:
        status.doing = "start"
        status.last_sign = files.changed(LOCK, *_PROGRESS)

    if is_live:
        _describe_running(status)
    else:
        status.seconds_left = None
        status.doing = ""
        _describe_end(status, files, live.get("end"), is_complete)
    if files.damaged:
        note = f"damaged: {', '.join(files.damaged)}"
        status.reason = f"{status.reason}; {note}" if status.reason else note
    return status


def _is_live(is_locked: bool | None, live: Content) -> bool:
    """Whether a process runs a run.

    Where the lock does not tell, as that of another machine on some network drives, a recent
    `status.json` does.
    """
    if is_locked:
        return True
    if is_locked is False and live.get("host") == socket.gethostname():
        return False

    written = number(live.get("written"))
    is_fresh = written is not None and abs(time.time() - written) < FRESH
    return is_fresh and live.get("end") is None


def _is_of_earlier_process(files: Files, live: Content) -> bool:
    """Whether `status.json` was written before the process that runs took the lock."""
    written = number(live.get("written"))
    locked = files.changed(LOCK)
    return written is not None and locked is not None and written < locked


def _is_complete(facts: Content, result: Content) -> bool:
    """Whether a result is that of all epochs; a finished run may have been given more."""
    if not result:
        return False
    done = count(result.get("epochs"))
    epochs = count(facts.get("epochs"))
    return done is None or epochs is None or done >= epochs


def _facts_of_result(result: Content, epochs: object) -> Content:
    """The facts of a finished run, with accuracies of the test set if that was evaluated."""
    same = ("method", "teacher", "student", "dataset", "seed")
    split = "test" if "last_test_top1" in result else "val"
    return {
        **{key: result[key] for key in same if key in result},
        "epochs_done": result.get("epochs", epochs),
        "step": None,
        "split": split,
        "last_top1": result.get(f"last_{split}_top1"),
        "best_top1": result.get(f"best_{split}_top1"),
    }


def _describe_running(status: Status) -> None:
    status.state = RUNNING
    if status.age is not None and status.age > SILENT:
        status.reason = f"no step for {shown_duration(status.age)}"

    # The steps of an epoch are done, and its record is not there yet.
    is_between = bool(status.step) and status.step == status.steps_per_epoch
    if is_between and not status.doing:
        status.doing = "evaluation"


def _describe_end(status: Status, files: Files, end: object, is_complete: bool) -> None:
    """Set the state of a run that no process runs, and why it ended."""
    known: Content = end if isinstance(end, dict) else {}
    failure = failure_of(files, status.epochs_done)
    status.reason = text(known.get("reason"))
    code = count(known.get("exit_code"))

    if is_complete:
        status.state = FINISHED
        status.reason = ""
        code = 0
    elif known.get("state") == FAILED or failure:
        status.state = FAILED
        status.reason = status.reason or failure
        code = code or _NON_FINITE
    elif is_abandoned(status.folder):
        status.state = ABANDONED
    else:
        status.state = STOPPED
        status.reason = status.reason or "killed, or the machine stopped"

    status.exit_code = _CODES[status.state] if code is None else code
    if not is_complete and _has_checkpoint(status.folder):
        status.resume = command_to_resume(files.json("environment.json"))


def _has_checkpoint(folder: Path) -> bool:
    return any(os.path.exists(folder / name) for name in ("latest", "latest.previous"))
