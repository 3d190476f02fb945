"""What is known of a run, with values of the right types whatever its files hold."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edkd.engine.log.status_file import FAILED, FINISHED, STOPPED

RUNNING = "running"
ABANDONED = "abandoned"

STATES = {
    RUNNING: "a process has locked the folder of the run",
    STOPPED: "ended by a signal, or killed; --resume continues it from its last checkpoint",
    FAILED: "ended by an error",
    ABANDONED: "ended before its first checkpoint; the next run of this name replaces it",
    FINISHED: "all epochs are done",
}

LARGEST = 2.0**63
"""No number that a run writes about itself is larger: a seed is below it."""


@dataclass
class Status:
    """What is known of a run. What is not known is empty or None.

    Attributes:
        folder: of the run.
        state: one of STATES.
        reason: why it ended, or what is unusual.
        exit_code: that its command had at the end.
        epochs_done: finished epochs, of `epochs`.
        step: steps done within the current epoch, of `steps_per_epoch`.
        doing: what runs between the steps, as "teacher cache 3/20".
        split: the images of the accuracies: "test", or "val" for held-out ones.
        last_top1, best_top1: in percent.
        last_sign: Unix time of the last step, or of the end.
        resume: the command that continues the run; "" where there is nothing to continue.
    """

    folder: Path
    state: str = STOPPED
    reason: str = ""
    exit_code: int | None = None
    method: str = ""
    teacher: list[str] = field(default_factory=list)
    student: list[str] = field(default_factory=list)
    dataset: str = ""
    seed: int | None = None
    epochs_done: int = 0
    epochs: int | None = None
    step: int | None = None
    steps_per_epoch: int | None = None
    doing: str = ""
    split: str = ""
    last_top1: float | None = None
    best_top1: float | None = None
    seconds_left: float | None = None
    last_sign: float | None = None
    resume: str = ""

    @property
    def pair(self) -> str:
        """As "resnet56 -> resnet20"."""
        students = " + ".join(self.student)
        teachers = " + ".join(self.teacher)
        return f"{teachers} -> {students}" if teachers else students

    @property
    def age(self) -> float | None:
        """Seconds since the last sign of life; the clock of another machine may be ahead."""
        if self.last_sign is None:
            return None
        return max(0.0, time.time() - self.last_sign)


def as_status(folder: Path, facts: Mapping[str, Any]) -> Status:
    """A status from the content of files, of which values of other types are left out."""
    status = Status(folder)

    for name in ("method", "dataset", "doing", "split"):
        setattr(status, name, text(facts.get(name)))
    for name in ("teacher", "student"):
        setattr(status, name, texts(facts.get(name)))
    for name in ("seed", "epochs", "steps_per_epoch"):
        setattr(status, name, count(facts.get(name)))
    for name in ("last_top1", "best_top1", "seconds_left"):
        setattr(status, name, number(facts.get(name)))

    status.epochs_done = count(facts.get("epochs_done")) or 0
    step = count(facts.get("step"))
    if step is not None and status.steps_per_epoch:
        status.step = max(0, step - status.epochs_done * status.steps_per_epoch)
    return status


def number(value: Any) -> float | None:
    """A finite number that is possible, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not is_possible(value) or math.isnan(value):
        return None
    return float(value)


def count(value: Any) -> int | None:
    """A possible number of things, else None."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if is_count and is_possible(value) else None


def is_possible(value: Any) -> bool:
    """Whether a value is none of the numbers that only damaged files hold.

    They are longer than a column of a table, or than a float can be.
    """
    is_number = isinstance(value, int | float)
    return not (is_number and abs(value) > LARGEST)


def text(value: Any) -> str:
    """A text in one line, else ""."""
    return " ".join(value.split()) if isinstance(value, str) else ""


def texts(value: Any) -> list[str]:
    """A list of texts; a single one may stand for a list."""
    values = value if isinstance(value, list) else [value]
    return [text(each) for each in values if text(each)]
