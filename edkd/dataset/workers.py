"""Data workers of a DataLoader: they survive Ctrl-C, and a failing one becomes a WorkerError."""

import errno
import multiprocessing.queues
import os
import re
import signal
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from edkd.errors import WorkerError, reason_of, warn
from edkd.memory import return_freed_memory
from edkd.signals import after_hold, reset_in_worker

KEY = "DATASET.NUM_WORKERS"
"""Where the number of workers is set, for messages."""


class Resource(NamedTuple):
    """What the system did not give to the workers."""

    remedy: str
    """How to get more of it."""
    signs: tuple[str, ...]
    """Parts of an error's text that name it, in lower case."""
    codes: tuple[int, ...]
    """The system's numbers of such an error."""


RESOURCES = (
    Resource(
        "raise the limit of open files with 'ulimit -n 65536'",
        ("too many open files", "ancdata"),
        (errno.EMFILE, errno.ENFILE),
    ),
    Resource(
        "make the shared memory larger, /dev/shm (docker run --shm-size 2g)",
        ("shared memory", "bus error", "/torch_", "send a batch: no space left"),
        (errno.ENOSPC,),
    ),
    Resource(
        "raise the limit of processes and threads with 'ulimit -u 65536' (docker run --pids-limit)",
        ("can't start new thread", "resource temporarily unavailable"),
        (errno.EAGAIN,),
    ),
    Resource(
        "give the workers more memory",
        ("cannot allocate memory", "out of memory", "signal: killed"),
        (errno.ENOMEM,),
    ),
)

_live: weakref.WeakKeyDictionary[Any, weakref.ref[DataLoader]] = weakref.WeakKeyDictionary()
"""Iterators with workers that `supervise` reads from, and their loaders."""

_CODES = {code for resource in RESOURCES for code in resource.codes}

_EXIT = 64
"""A worker that cannot send a batch exits with this + the system's number of the error."""


def supervise(
    loader: DataLoader, count: str = KEY, timeout: str = "DATASET.WORKER_TIMEOUT"
) -> Iterator[Any]:
    """The batches of a DataLoader.

    Args:
        count: the setting for the number of workers, for messages.
        timeout: the setting for the time limit of a worker, for messages.

    Raises:
        WorkerError: a worker could not be started, raised an exception, died, or exceeded the time
            limit.
    """
    batches = None
    try:
        batches = iter(loader)
        if loader.num_workers:
            _live[batches] = weakref.ref(loader)
        watch_workers(count)
        yield from batches
    except WorkerError as error:
        _stop(loader, error)
        raise
    except Exception as error:  # the loader raises a worker's exception again, of whatever type
        limit = f"{loader.timeout:g} s ({timeout})"
        if batches is None:
            reason = _failed_start(error)
        else:
            reason = _failure(error, loader.num_workers, limit, _exit_codes(batches))
        if reason is None:
            raise
        _stop(loader, error)
        raise WorkerError(_message(reason, count)) from error


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


def start_worker(worker: int) -> None:
    """Prepare a worker, as `worker_init_fn` of a DataLoader.

    It leaves the process group: Ctrl-C must not end it before the run has saved. Where a batch
    cannot be sent, it exits; otherwise, the main process would wait for this batch.
    """
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    reset_in_worker()
    return_freed_memory()

    queue: Any = multiprocessing.queues.Queue
    start = queue._start_thread

    def start_or_exit(self: Any) -> None:
        try:
            start(self)
        except RuntimeError as error:
            _exit_with(error)

    def report(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if getattr(error, "errno", 0) in _CODES:
            _exit_with(error)
        sys.__excepthook__(kind, error, trace)

    queue._start_thread = start_or_exit
    queue._on_queue_feeder_error = staticmethod(_exit_with)
    sys.excepthook = report  # called by the thread that hands open files to the main process


def _exit_with(error: BaseException, batch: Any = None) -> None:
    """End a worker that cannot send a batch; the exit code tells the reason."""
    code = getattr(error, "errno", 0)
    if code not in _CODES:
        resource = _resource(str(error))
        code = resource.codes[0] if resource else 0
    if not code:
        warn(f"a data worker cannot send a batch: {type(error).__name__}: {reason_of(error)}")
    os._exit(_EXIT + code)


def _stop(loader: DataLoader, error: Exception) -> None:
    """End the workers that are left: saving the run may need the files that they hold open.

    The error refers to the iterator, also to one that could not start all of its workers. torch's
    own end of it would wait for workers that hang, and fail for an incomplete iterator.
    """
    loader._iterator = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        iterator = frame.f_locals.get("self")
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            _end_workers(iterator)


def _end_workers(iterator: Any) -> None:
    """Kill the workers of an iterator and close its queues, once."""
    if getattr(iterator, "_shutdown", False):
        return
    iterator._shutdown = True
    with suppress(Exception):  # what the user must learn is the first error
        _release(iterator)


def _release(iterator: Any) -> None:
    signal_handling._remove_worker_pids(id(iterator))
    iterator._worker_pids_set = False
    if hasattr(iterator, "_pin_memory_thread_done_event"):
        iterator._pin_memory_thread_done_event.set()

    for worker in iterator._workers:
        worker.kill()
    for worker in iterator._workers:
        worker.join(1)
    for queue in iterator._index_queues:
        queue.cancel_join_thread()
        queue.close()


def end_workers() -> None:
    """End all workers after a WorkerError that was raised outside of their loader.

    A dead worker is reported wherever the main thread is, so also during a training step. Saving
    the run may need the open files of those that are left.
    """
    for iterator, loader in list(_live.items()):
        owner = loader()
        if owner is not None:
            owner._iterator = None
        _end_workers(iterator)


def _failed_start(error: Exception) -> str | None:
    """Describes an error of creating the workers; None for one of a sampler."""
    frames = traceback.walk_tb(error.__traceback__)
    modules = {frame.f_globals.get("__name__", "") for frame, _ in frames}
    reason = f"the data workers could not be started: {_first_sentence(str(error))}"

    if "multiprocessing.synchronize" in modules:
        return f"{reason}, for a semaphore in shared memory"
    if "multiprocessing.context" in modules or _resource(str(error)) is not None:
        return reason
    return None


def _failure(error: Exception, workers: int, limit: str, codes: Sequence[int]) -> str | None:
    """Describes an exception of a DataLoader; None if it does not come from its workers.

    Args:
        workers: their number.
        limit: the time limit of a worker, for the message.
        codes: exit codes of those that have ended.
    """
    text = str(error)
    if "DataLoader timed out" in text:
        return f"a data worker sent nothing for {limit}"
    if "DataLoader worker process" in text:
        return f"a data worker raised {text.splitlines()[-1]}"
    if "DataLoader worker" in text:
        return _death(text, codes)
    if "Pin memory thread" in text:
        return f"a data worker died: {_first_sentence(text)}"

    is_of_system = isinstance(error, (EOFError, ConnectionError)) or _resource(text) is not None
    if workers and is_of_system:
        return f"the data workers failed: {type(error).__name__}: {_first_sentence(text)}"
    return None


def _death(text: str, codes: Sequence[int] = ()) -> str:
    """Describes the end of a worker, from torch's message and the exit codes, if they are known."""
    by_signal = re.search(r"killed by signal: [^.]*", text)
    if by_signal:
        return f"a data worker died: {by_signal.group(0)}"

    named = re.search(r"exit code:? (\d+)", text)
    found = [*codes, int(named.group(1))] if named else list(codes)

    for code in found:
        if code - _EXIT in _CODES:
            return f"a data worker could not send a batch: {os.strerror(code - _EXIT)}"
    for code in found:
        if code < 0:
            return f"a data worker died: killed by signal: {signal.strsignal(-code)}"
    return f"a data worker died: {_first_sentence(text)}"


def _message(reason: str, count: str) -> str:
    """The line of a WorkerError: what happened, the resource that was short, how to fix it."""
    resource = _resource(reason)
    if resource is None:
        return f"{reason}; try {count} 0"
    return f"{reason}; set {count} 0 or a smaller number, or {resource.remedy}"


def _resource(text: str) -> Resource | None:
    """The resource that an error is about."""
    line = text.lower()
    for resource in RESOURCES:
        if any(sign in line for sign in resource.signs):
            return resource
    return None


def _exit_codes(batches: Any) -> list[int]:
    """The exit codes of the workers of an iterator that have ended."""
    workers = getattr(batches, "_workers", [])
    codes = [worker.exitcode for worker in workers]
    return [code for code in codes if code]


def _first_sentence(text: str) -> str:
    """Of a message; of a traceback that came from another thread, the last line."""
    if text.startswith("Caught "):
        return text.splitlines()[-1]
    return " ".join(text.split(". ")[0].split())


def _raise_worker_error(
    handler: Callable[[int, Any], None], count: str, number: int, frame: Any
) -> None:
    try:
        handler(number, frame)
    except RuntimeError as error:
        raise WorkerError(_message(_death(str(error)), count)) from error
