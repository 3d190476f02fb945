"""Sinks for figures, each in its own thread, so that no logging library can stop or delay a run."""

import queue
import threading
from collections.abc import Callable
from contextlib import suppress

from edkd.engine.log.final import Final
from edkd.errors import reason_of
from edkd.streams import dropped_sinks

Record = dict[str, float]
"""Figures by name."""


class Sink:
    """A destination for figures."""

    def send(self, figures: Record, step: int) -> None:
        """Add a point to each curve."""

    def finish(self, final: Final) -> None:
        """Add the final figures and their table."""

    def close(self) -> None:
        """Flush and end."""


Point = tuple[Record, int]
"""Figures and their step."""


class Background:
    """Runs a sink in a thread. A sink that raises or hangs is dropped, with one line in the log.

    The constructor returns when the sink is ready, or after START seconds without it.

    Args:
        name: of the sink, for that line.
        make: creates the sink; called in the thread.
        say: writes a line to the log.
    """

    START = 45.0
    """Seconds that a sink may take to start."""

    CAPACITY = 10_000
    """Points that wait at most; later ones are dropped."""

    def __init__(self, name: str, make: Callable[[], Sink], say: Callable[[str], None]) -> None:
        self.name = name
        self.say = say
        self.is_dropped = False
        self._points: queue.Queue[Point | Final | None] = queue.Queue(self.CAPACITY)
        self._ready = threading.Event()

        # A daemon thread does not keep the process alive.
        self._thread = threading.Thread(target=self._run, args=(make,), daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # the system allows no further thread
            self._drop(reason_of(error))
            return
        if not self._ready.wait(self.START):
            self._drop(f"no answer for {self.START:g} s")

    def send(self, figures: Record, step: int) -> None:
        """Queue a point and return without waiting."""
        with suppress(queue.Full):
            self._points.put_nowait((figures, step))

    def finish(self, final: Final) -> None:
        """Queue the final figures and return without waiting."""
        self._put(final)

    def close(self, seconds: float) -> None:
        """Send the queued points and end; drop what takes longer than `seconds`."""
        if self.is_dropped:
            return
        self._put(None)
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._drop(f"no answer for {seconds:g} s")

    def _put(self, item: Final | None) -> None:
        """Queue what must not be lost: where the queue is full, its oldest point makes room."""
        if self._points.full():
            with suppress(queue.Empty):
                self._points.get_nowait()
        with suppress(queue.Full):
            self._points.put_nowait(item)

    def _drop(self, reason: str) -> None:
        """Give the sink up, with a line; a sink that hung may fail later, without another one."""
        if self.is_dropped:
            return
        self.is_dropped = True
        dropped_sinks.add(self.name)
        self.say(f"{self.name} is off: {reason}")

    def _run(self, make: Callable[[], Sink]) -> None:
        """The thread: create the sink, send points until None, close it."""
        try:
            sink = make()
            self._ready.set()
            self._send_points(sink)
            sink.close()
        except BaseException as error:  # whatever the library raises, SystemExit too
            reason = " ".join(str(error).split())[:200]
            self._drop(f"{type(error).__name__}: {reason}")
        finally:
            self._ready.set()

    def _send_points(self, sink: Sink) -> None:
        while not self.is_dropped:
            item = self._points.get()
            if item is None:
                return
            if isinstance(item, Final):
                sink.finish(item)
                continue
            figures, step = item
            sink.send(figures, step)
