"""What is known of a run in words, for the table and for those who follow it."""

from textwrap import shorten

from edkd.engine.log.time_left import shown_duration
from edkd.watch.status import FAILED, FINISHED, RUNNING, STOPPED, Status

UNKNOWN = "-"
"""In the place of a value that is not known."""

REASON = 240
"""Characters of a reason that stand below a line; all of it is in the JSON."""


def notes(run: Status) -> list[str]:
    """What stands below the line of a run.

    This is why it ended, or what is unusual about it, and how to continue it.
    """
    found = []
    if run.reason:
        found.append(shorten(run.reason, REASON, placeholder=" ..."))
    return [*found, *ways_on(run)]


def ways_on(run: Status) -> list[str]:
    """How to continue a run that was stopped: one line, or none where nothing is to be continued.

    A run that failed would fail again, so that its reason comes first.
    """
    if run.resume and run.state == STOPPED:
        return [f"continue: {run.resume}"]
    return []


def progress(run: Status) -> str:
    """Where a run is, in one line.

    As "epoch 12/240  step 30/781  last 41.20  best 43.10  left 5 h 12 min".
    """
    parts = [f"epoch {epoch_of(run)}"]
    if run.step is not None and run.state == RUNNING:
        parts.append(f"step {run.step}/{run.steps_per_epoch}")

    # Accuracies.
    if run.last_top1 is not None:
        parts.append(f"last {top1_of(run, run.last_top1)}")
    if run.best_top1 is not None:
        parts.append(f"best {top1_of(run, run.best_top1)}")

    # What it does now, and for how long.
    if run.doing:
        parts.append(run.doing)
    if run.seconds_left is not None:
        parts.append(f"left {shown_duration(run.seconds_left)}")
    return "  ".join(parts)


def ending(run: Status) -> str:
    """How a run ended, in one line.

    As "finished  epoch 240/240  last 71.20  best 71.40", or "failed (exit code 3): loss is nan".
    """
    if run.state == FINISHED:
        return f"finished  {progress(run)}"

    line = run.state
    if run.state == FAILED:
        line += f" (exit code {run.exit_code})"
    if run.reason:
        line += f": {run.reason}"
    return line


def epoch_of(run: Status) -> str:
    """The finished epochs and those of the whole run, as "12/240"."""
    total = "?" if run.epochs is None else run.epochs
    return f"{run.epochs_done}/{total}"


def top1_of(run: Status, value: float | None) -> str:
    """An accuracy in percent.

    That of held-out images is marked: "41.20 val".
    """
    if value is None:
        return UNKNOWN
    mark = " val" if run.split == "val" else ""
    return f"{value:.2f}{mark}"
