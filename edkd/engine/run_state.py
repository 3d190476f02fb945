"""The position of a run: finished epochs, steps of the current one, means, random state."""

import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch

from edkd.dataset.sampling import random_state, set_random_state
from edkd.engine.log.background import Record
from edkd.engine.meter import Meter

T = TypeVar("T")


class RunState:
    """The position of a run and its history; part of each checkpoint.

    Attributes:
        history: a record for each finished epoch.
        step_done: steps of the current epoch that are done.
        first_step: the step at which this process entered the epoch.
        meter: running means of the current epoch.
        seconds: time that the current epoch took in earlier processes.
        data_seconds: the part of the epoch's training in which the host waited for batches.
        teacher_top1: accuracy of each teacher in percent; empty where it was not measured.
    """

    def __init__(self) -> None:
        self.history: list[Record] = []
        self.step_done = 0
        self.first_step = 0
        self.meter = Meter()
        self.seconds = 0.0
        self.data_seconds = 0.0
        self.teacher_top1: list[float] = []
        self._started: float | None = None
        self._random_state: dict[str, Any] | None = None

    @property
    def epochs_done(self) -> int:
        """Number of finished epochs."""
        return len(self.history)

    def has_begun(self) -> bool:
        """Whether a step is done."""
        return bool(self.history) or self.step_done > 0

    def start_clock(self) -> None:
        """Begin to count the seconds of an epoch."""
        self._started = time.perf_counter()

    def stop_clock(self) -> None:
        """Count no further seconds of the epoch."""
        self.seconds = self.train_seconds()
        self._started = None

    def train_seconds(self) -> float:
        """Seconds of the current epoch's training, those of earlier processes included."""
        if self._started is None:
            return self.seconds
        return self.seconds + time.perf_counter() - self._started

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches; the time until each of them comes is added to `data_seconds`."""
        start = time.perf_counter()
        for batch in batches:
            self.data_seconds += time.perf_counter() - start
            yield batch
            start = time.perf_counter()

    def start_epoch(self) -> None:
        """Enter an epoch, at its first step or where a resumed run left it."""
        self.first_step = self.step_done
        if not self.step_done:
            self.meter = Meter()
        if self._random_state is not None:
            set_random_state(self._random_state)
            self._random_state = None

    def finish_epoch(self, record: Record) -> None:
        """Add the record of the current epoch."""
        self.history.append(record)
        self.step_done = 0
        self.seconds = 0.0
        self.data_seconds = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The state for `load_state_dict`."""
        progress = None
        if self.step_done:
            progress = {
                "step": self.step_done,
                "meter": self.meter.state_dict(),
                "seconds": self.train_seconds(),
                "data_seconds": self.data_seconds,
                "random": self._random_state or random_state(),
            }
        return {
            "epoch": self.epochs_done,
            "history": self.history,
            "progress": progress,
            "teacher_top1": self.teacher_top1,
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue where another run was.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: it is not such a state.
        """
        self.history = state["history"]
        self.teacher_top1 = [float(each) for each in state.get("teacher_top1", [])]
        progress = state.get("progress")
        if progress is None:
            return

        self.step_done = progress["step"]
        self.meter.load_state_dict(progress["meter"], device)
        self.seconds = float(progress.get("seconds", 0.0))  # absent in older checkpoints
        self.data_seconds = float(progress.get("data_seconds", 0.0))

        # Raises here, before anything is written, where it is not such a state.
        set_random_state(progress["random"])
        self._random_state = progress["random"]
