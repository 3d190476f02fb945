"""Stopping by a signal: what is begun is finished and saved, then the command ends with 130 or 143."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class Stopped(BaseException):
    """A signal ended the command; see `exit_code`."""


_received: list[int] = []
_holds = [0]
_waiting: list[Callable[[], None]] = []


@contextmanager
def listening() -> Iterator[None]:
    """In it a first signal raises `Stopped`, at once or at the end of `hold`; a second one kills.

    Outside the main thread it does nothing: Python hears of signals there alone.
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
    """Finish what is done in it; a signal that came meanwhile raises `Stopped` at its end."""
    _holds[0] += 1
    try:
        yield
    finally:
        _holds[0] -= 1
    if not _holds[0]:
        while _waiting:
            _waiting.pop(0)()
        if _received:
            raise Stopped(_received[0])


def exit_code() -> int | None:
    """130 after SIGINT, 143 after the others, None where no signal has come."""
    return (130 if _received[0] == signal.SIGINT else 143) if _received else None


def after_hold(call: Callable[[], None]) -> None:
    """Call now, or at the end of the `hold` that is under way."""
    if _holds[0]:
        _waiting.append(call)
    else:
        call()


def _receive(number: int, frame: FrameType | None) -> None:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_DFL)
    _received.append(number)  # stays: where a library swallows `Stopped`, the end of the next `hold` raises it again
    if not _holds[0]:
        raise Stopped(number)
