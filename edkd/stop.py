"""Stopping by a signal: what is begun is finished and saved, then the command ends with 130 or 143."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class Stopped(BaseException):
    """A signal ended the command. Exit code 130 for SIGINT, 143 for the others."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 130 if number == signal.SIGINT else 143


_received: list[int] = []
_holds = [0]


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
    if _received and not _holds[0]:
        raise Stopped(_received.pop())


def _receive(number: int, frame: FrameType | None) -> None:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_DFL)
    if _holds[0]:
        _received.append(number)
    else:
        raise Stopped(number)
