"""Data workers of a DataLoader: they survive Ctrl-C, and a failing one becomes a WorkerError."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch.utils.data import DataLoader

from edkd.errors import WorkerError
from edkd.signals import after_hold

KEY = "DATASET.NUM_WORKERS"
"""Where the number of workers is set, for messages."""


def supervise(
    loader: DataLoader, count: str = KEY, timeout: str = "DATASET.WORKER_TIMEOUT"
) -> Iterator[Any]:
    """The batches of a DataLoader.

    Args:
        count: the setting for the number of workers, for messages.
        timeout: the setting for the time limit of a worker, for messages.

    Raises:
        WorkerError: a worker raised an exception, died, or exceeded the time limit.
    """
    try:
        batches = iter(loader)
        watch_workers(count)
        yield from batches
    except WorkerError:
        raise
    except Exception as error:  # the loader raises a worker's exception again, of whatever type
        reason = _worker_failure(error, f"{loader.timeout:g} s ({timeout})")
        if reason is None:
            raise
        raise WorkerError(f"a data worker {reason}; try {count} 0") from error


def watch_workers(count: str = KEY) -> None:
    """Make torch report a dead worker as a WorkerError, and only outside of `hold`.

    torch installs a handler of SIGCHLD that raises a RuntimeError wherever the main thread is.
    """
    if not hasattr(signal, "SIGCHLD"):
        return
    if threading.current_thread() is not threading.main_thread():
        return

    handler: Any = signal.getsignal(signal.SIGCHLD)
    if not callable(handler) or hasattr(handler, "is_watch"):
        return

    def watch(number: int, frame: Any) -> None:
        after_hold(partial(_raise_worker_error, handler, count, number, frame))

    watch.is_watch = True  # type: ignore[attr-defined]
    signal.signal(signal.SIGCHLD, watch)


def leave_the_group(worker: int) -> None:
    """Leave the process group: Ctrl-C must not end a worker before the run has saved."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)


def _worker_failure(error: Exception, limit: str) -> str | None:
    """Describes an exception of a DataLoader; None if it does not come from a worker."""
    text = str(error)
    if "DataLoader worker process" in text:
        return f"raised {text.splitlines()[-1]}"
    if "DataLoader timed out" in text:
        return f"sent nothing for {limit}"
    if "DataLoader worker" in text or "Pin memory thread" in text:
        return f"died: {text}"
    return None


def _raise_worker_error(
    handler: Callable[[int, Any], None], count: str, number: int, frame: Any
) -> None:
    try:
        handler(number, frame)
    except RuntimeError as error:
        raise WorkerError(f"a data worker died: {error}; try {count} 0") from error
