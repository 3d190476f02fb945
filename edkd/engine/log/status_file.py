"""`status.json`: where a run is, for `edkd runs`, which reads it from another process."""

import json
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from edkd.engine.log.background import Record
from edkd.engine.log.time_left import TimeLeft
from edkd.errors import reason_of
from edkd.signals import Stopped, exit_code

STATUS = "status.json"

FINISHED = "finished"
STOPPED = "stopped"
FAILED = "failed"

_REASON = 500
"""Characters of an error that are kept."""


class StatusFile:
    """Writes `status.json` every few seconds, in a thread of its own.

    The training loop only sets attributes, so that no step waits for the disk. A file that cannot
    be written is left as it is: nothing but a display depends on it, and a resumed run does not
    read it.

    Args:
        folder: of the run.
        about: facts that do not change: method, teacher, student, data set, seed.
        history: records of the finished epochs, extended by the caller.
        left: estimates the time left.
        step: steps of the run that are done.

    Attributes:
        doing: what runs between steps, as "teacher cache 3/20"; "" while steps run.
    """

    EVERY = 3.0
    """Seconds between two updates."""

    CLOSE = 2.0
    """Seconds that the last update may take."""

    def __init__(
        self,
        folder: Path,
        about: Mapping[str, Any],
        history: Sequence[Record],
        left: TimeLeft,
        step: int,
    ) -> None:
        self.path = folder / STATUS
        self.about = about
        self.history = history
        self.left = left
        self.doing = ""
        self.end: dict[str, Any] | None = None

        self._step = step
        self._started = time.time()
        self._sign = self._started

        self._is_ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to write."""
        with suppress(RuntimeError):  # the system allows no further thread
            self._thread.start()

    def advance(self, step: int) -> None:
        """Note that a step of the run, from 1, is done."""
        self._step = step
        self._sign = time.time()
        self.doing = ""
        self.left.count(step)

    def show(self, doing: str) -> None:
        """Note what runs between the steps."""
        self.doing = doing
        self._sign = time.time()

    def close(self, error: BaseException | None) -> None:
        """Write how the run ended.

        Args:
            error: that ended it; None where it is finished.
        """
        self.end = end_of(error)
        self._is_ending.set()
        if self._thread.is_alive():
            self._thread.join(self.CLOSE)

    def content(self) -> dict[str, Any]:
        """What the file holds now."""
        history = list(self.history)

        return {
            **self.about,
            "epochs": self.left.epochs,
            "epochs_done": len(history),
            "step": self._step,
            "steps_per_epoch": self.left.steps_per_epoch,
            "doing": self.doing,
            **top1s(history),
            "seconds_left": self.left.seconds(self._step),
            "started": self._started,
            "last_sign": self._sign,
            "written": time.time(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "end": self.end,
        }

    def _run(self) -> None:
        while not self._is_ending.is_set():
            self._write()
            self._is_ending.wait(self.EVERY)
        self._write()

    def _write(self) -> None:
        """Replace the file; the old one stays where that fails.

        Without a sync, which could delay a checkpoint: a power loss may cost this file.
        """
        partial = self.path.with_name(f".{STATUS}.partial")
        with suppress(OSError, ValueError):
            partial.write_text(json.dumps(self.content(), indent=1) + "\n", encoding="utf-8")
            os.replace(partial, self.path)


def top1s(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Top-1 of the last and the best epoch, and the split that they are of; {} without epochs."""
    for split in ("val", "test"):
        key = f"{split}_top1"
        values = [record[key] for record in history if key in record]
        if values:
            return {"split": split, "last_top1": values[-1], "best_top1": max(values)}
    return {}


def end_of(error: BaseException | None) -> dict[str, Any]:
    """How a run ended: its state, the reason in one line, the exit code of a command.

    Args:
        error: that ended it. It has failed, unless the error has another `run_state`.
    """
    if error is None:
        return {"state": FINISHED, "reason": "", "exit_code": 0}
    if isinstance(error, Stopped | KeyboardInterrupt):
        return {"state": STOPPED, "reason": "by a signal", "exit_code": exit_code() or 130}

    reason = reason_of(error)
    state = getattr(error, "run_state", FAILED)
    code = getattr(error, "exit_code", None)
    if code is None and state == FAILED:
        reason = f"{type(error).__name__}: {reason}"
    return {"state": state, "reason": reason[:_REASON], "exit_code": code or 1}
