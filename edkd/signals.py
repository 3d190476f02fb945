"""Stopping by a signal: the current step is finished and saved, then the command ends.

The exit code is 130 after SIGINT and 143 after SIGTERM and SIGUSR1.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")

SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]


class Stopped(BaseException):
    """A signal arrived; see `exit_code`."""

    hint: str = ""
    """How to continue, for the message; "" where there is nothing to continue from."""


_received: list[int] = []
_depth = [0]
_waiting: list[Callable[[], None]] = []


@contextmanager
def listening() -> Iterator[None]:
    """Turn the first signal into `Stopped`, raised now or at the end of `hold`; a second one kills.

    Outside the main thread it does nothing: Python delivers signals to the main thread alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    before = {number: signal.signal(number, _receive) for number in SIGNALS}
    try:
        yield
    finally:
        _received.clear()
        _waiting.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


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
    if _received:
        raise Stopped(_received[0])


def exit_code() -> int | None:
    """130 after SIGINT, 143 after the others, None where no signal has arrived."""
    if not _received:
        return None
    return 130 if _received[0] == signal.SIGINT else 143


def after_hold(call: Callable[[], None]) -> None:
    """Call now, or at the end of the current `hold`."""
    if _depth[0]:
        _waiting.append(call)
    else:
        call()


def _receive(number: int, frame: FrameType | None) -> None:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_DFL)

    # The number stays: a library may swallow `Stopped`; then the end of the next `hold` raises it.
    _received.append(number)
    if not _depth[0]:
        raise Stopped(number)
