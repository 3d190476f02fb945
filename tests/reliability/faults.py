"""Faults to inject, by the place in a run where they happen."""

import os
import signal
from collections.abc import Callable
from typing import Any

from edkd.engine import checkpoint
from edkd.engine.log.logger import Logger
from edkd.engine.memo.memo import TeacherMemo
from edkd.engine.run_files import RunFiles
from edkd.engine.train_step import TrainStep
from edkd.engine.trainer import Trainer

STEPS = 9
"""Steps of an epoch in the runs of the fixtures `words`, `tiny` and `digits`."""

PLACES: dict[str, tuple[Any, str]] = {
    "step": (TrainStep, "__call__"),
    "evaluation": (Trainer, "evaluate"),
    "memo": (TeacherMemo, "fill"),
    "save": (RunFiles, "save_epoch"),
    "replace": (checkpoint, "_sync_folder"),
    "log": (Logger, "epoch"),
}


def before_call(method: Callable, call: int, fault: Callable[[], object]) -> Callable:
    """A method with a fault before one of its calls, counted from 1."""
    calls = []

    def faulty(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            fault()
        return method(*args, **kwargs)

    return faulty


def kill_at(monkeypatch: Any, place: str, call: int, number: int = signal.SIGTERM) -> None:
    """Send this process a signal at a call of a place, counted from 1."""
    owner, name = PLACES[place]
    method = before_call(getattr(owner, name), call, lambda: os.kill(os.getpid(), number))
    monkeypatch.setattr(owner, name, method)
