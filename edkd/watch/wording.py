"""What is known of a run in words, for the table and for those who follow it."""

from edkd.engine.log.time_left import shown_duration
from edkd.watch.status import FAILED, FINISHED, RUNNING, STOPPED, Status

UNKNOWN = "-"


def notes(run: Status) -> list[str]:
    """Why a run ended, or what is unusual; how to continue it."""
    found = [run.reason] if run.reason else []
    if run.resume and run.state == STOPPED:
        found.append(f"continue: {run.resume}")
    return found


def progress(run: Status) -> str:
    """Where a run is, in one line: epoch, step, accuracies, time left."""
    parts = [f"epoch {epoch_of(run)}"]
    if run.step is not None and run.state == RUNNING:
        parts.append(f"step {run.step}/{run.steps_per_epoch}")
    if run.last_top1 is not None:
        parts.append(f"last {top1_of(run, run.last_top1)}")
        parts.append(f"best {top1_of(run, run.best_top1)}")
    if run.doing:
        parts.append(run.doing)
    if run.seconds_left is not None:
        parts.append(f"left {shown_duration(run.seconds_left)}")
    return "  ".join(parts)


def ending(run: Status) -> str:
    """How a run ended, in one line."""
    if run.state == FINISHED:
        return f"finished  {progress(run)}"
    code = f" (exit code {run.exit_code})" if run.state == FAILED else ""
    reason = f": {run.reason}" if run.reason else ""
    return f"{run.state}{code}{reason}"


def epoch_of(run: Status) -> str:
    """The finished epochs, as "12/240"."""
    total = "?" if run.epochs is None else run.epochs
    return f"{run.epochs_done}/{total}"


def top1_of(run: Status, value: float | None) -> str:
    """An accuracy in percent, marked where it is that of held-out images."""
    if value is None:
        return UNKNOWN
    mark = " val" if run.split == "val" else ""
    return f"{value:.2f}{mark}"
