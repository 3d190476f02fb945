"""Stopping by a signal: the current step is finished and saved, then the command ends.

The exit code is that of a shell, 128 + the number: 130 after SIGINT, 143 after SIGTERM, 129 after
SIGHUP (a closed terminal). It is 143 also after the user signals, which schedulers send as a notice
before SIGTERM. A signal that is ignored when the command starts, as by nohup, stays ignored.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


def _existing(*names: str) -> list[int]:
    """The signals of these names that the system has."""
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


SIGNALS = _existing("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK", "SIGXCPU", "SIGUSR1", "SIGUSR2")
"""Those that stop a command. SIGQUIT is not among them: it ends a command immediately."""

_NOTICES = _existing("SIGUSR1", "SIGUSR2")
"""Counted as SIGTERM."""

_REPEATED = _existing("SIGHUP", "SIGXCPU")
"""Sent more than once without a user's doing: both the shell and the system send SIGHUP when a
terminal closes; SIGXCPU follows each second. So a second one does not kill."""


class Stopped(BaseException):
    """A signal arrived; see `exit_code`."""

    hint: str = ""
    """How to continue, for the message; "" where there is nothing to continue from."""


_received: list[int] = []
_depth = [0]
_deferred = [0]
_waiting: list[Callable[[], None]] = []
_handled: list[int] = []


@contextmanager
def listening() -> Iterator[None]:
    """Turn the first signal into `Stopped`, raised now or at the end of `hold`; a second one kills.

    Outside the main thread it does nothing: Python delivers signals to the main thread alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    before = {number: signal.getsignal(number) for number in SIGNALS}
    handled = [number for number in SIGNALS if before[number] is not signal.SIG_IGN]
    _handled[:] = handled
    for number in handled:
        signal.signal(number, _receive)
    try:
        yield
    finally:
        _received.clear()
        _waiting.clear()
        for number in handled:  # `_handled` is empty where a worker's start was run here
            signal.signal(number, before[number] or signal.SIG_DFL)  # None: not set by Python
        _handled.clear()


@contextmanager
def hold() -> Iterator[None]:
    """Finish the block; a signal that arrives within it raises `Stopped` at its end."""
    _depth[0] += 1
    try:
        yield
    finally:
        _depth[0] -= 1

    if _depth[0]:
        return
    while _waiting:
        _waiting.pop(0)()
    if _received and not _deferred[0]:
        raise Stopped(_received[0])


@contextmanager
def deferred() -> Iterator[None]:
    """Within the block, a signal raises nothing: several processes stop by `stop_together`."""
    _deferred[0] += 1
    try:
        yield
    finally:
        _deferred[0] -= 1


def exit_code() -> int | None:
    """128 + the number of the signal; None where none has arrived."""
    if not _received:
        return None
    number = signal.SIGTERM if _received[0] in _NOTICES else _received[0]
    return 128 + number


def pending() -> int:
    """The signal that arrived first; 0 for none."""
    return _received[0] if _received else 0


def stop_together(number: int) -> None:
    """Raise `Stopped` in each of several processes, for a signal that one of them received.

    Args:
        number: of the signal, the same in all of them; 0 for none.
    """
    if not number:
        return
    if number not in _received:
        _received.insert(0, number)
    raise Stopped(number)


def after_hold(call: Callable[[], None]) -> None:
    """Call now, or at the end of the current `hold`."""
    if _depth[0]:
        _waiting.append(call)
    else:
        call()


def reset_in_worker() -> None:
    """Give a data worker the system's reactions to signals: it has nothing to save.

    torch has set its own for SIGTERM, with which the main process ends it.
    """
    for number in _handled:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)
    _handled.clear()


def _has_launcher() -> bool:
    """Whether torchrun started this process. It passes on each signal, kills after 30 seconds."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1


def _receive(number: int, frame: FrameType | None) -> None:
    for each in _handled:
        is_repeated = each in _REPEATED or _has_launcher()
        signal.signal(each, signal.SIG_IGN if is_repeated else signal.SIG_DFL)

    # The number stays: a library may swallow `Stopped`; then the end of the next `hold` raises it.
    _received.append(number)
    if not _depth[0] and not _deferred[0]:
        raise Stopped(number)
