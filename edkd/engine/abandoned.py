"""Folders of runs that ended before their first checkpoint: the next run may use them."""

import shutil
from contextlib import suppress
from pathlib import Path

from edkd.errors import StorageError

METRICS = "metrics.jsonl"
EVENTS = "train.events"

KEPT = ("config.yaml", "environment.json", METRICS, "worklog.txt", "wandb")
"""Files that a new run overwrites or continues."""

REMOVED = (EVENTS, "nonfinite.json", "status.json")


def is_abandoned(folder: Path) -> bool:
    """Whether a folder holds a run without any finished epoch or checkpoint, and no other file.

    Hidden files do not count, as in an empty folder.
    """
    ours = {*KEPT, *REMOVED}
    try:
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        metrics = folder / METRICS
        has_epochs = metrics.exists() and metrics.stat().st_size > 0
        return names <= ours and not has_epochs and not _has_foreign_events(folder / EVENTS)
    except OSError:
        return False


def clear_abandoned(folder: Path) -> str:
    """Remove what a run left that ended before its first checkpoint.

    Args:
        folder: locked by this process.

    Returns:
        A line for the log; "" where there was nothing.
    """
    left = [folder / name for name in (*REMOVED, "worklog.txt", "environment.json")]
    if not any(path.exists() for path in left):
        return ""

    try:
        for name in ("nonfinite.json", "status.json"):
            (folder / name).unlink(missing_ok=True)
        for path in folder.glob(".*.partial"):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write to {folder}: {error.strerror}") from None
    with suppress(OSError):  # a viewer may hold its files; a new one is added then
        shutil.rmtree(folder / EVENTS)
    return "a run that ended before its first checkpoint was here; its files are replaced"


def _has_foreign_events(events: Path) -> bool:
    if not events.is_dir():
        return events.exists()
    return any(".tfevents." not in path.name or path.is_dir() for path in events.iterdir())
