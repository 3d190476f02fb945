"""Stopping by a signal: what is begun is finished and saved, then the command ends."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from edkd.errors import Stopped

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class Stop:
    """While it is entered, a first signal raises `Stopped`, or waits for the end of `hold`; a second one kills.

    In a thread other than the main one it does nothing: Python hears of signals there alone.
    """

    def __init__(self) -> None:
        self.received, self.held = 0, 0
        self.before: dict[int, object] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Finish what is done in it; a signal that came meanwhile raises `Stopped` at its end."""
        self.held += 1
        try:
            yield
        finally:
            self.held -= 1
        if self.received and not self.held:
            raise Stopped(self.received)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        if not self.held:
            raise Stopped(number)
