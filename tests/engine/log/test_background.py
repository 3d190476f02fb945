"""A sink in a thread: whatever it does, the caller is not delayed."""

import threading
import time

import pytest

from edkd.engine.log.background import Background, Sink


class Impatient(Background):
    START = 0.1


class Recorder(Sink):
    """Keeps what it gets."""

    def __init__(self):
        self.points = []
        self.is_closed = False

    def send(self, figures, step):
        self.points.append((figures, step))

    def close(self):
        self.is_closed = True


class Raises(Sink):
    def send(self, figures, step):
        raise OSError("the folder of events\nis read-only")


@pytest.fixture
def release():
    """An event for which hanging sinks wait; set at the end, so that no thread is left."""
    event = threading.Event()
    yield event
    event.set()


def test_points_arrive_in_order_and_the_sink_is_closed():
    recorder = Recorder()
    lines = []
    background = Background("Recorder", lambda: recorder, lines.append)
    for step in range(100):
        background.send({"loss": 1.0}, step)
    background.close(5)
    assert recorder.points == [({"loss": 1.0}, step) for step in range(100)]
    assert recorder.is_closed
    assert lines == []


@pytest.mark.parametrize("error", [ImportError("no module"), OSError("read-only"), SystemExit("x")])
def test_a_sink_that_cannot_be_made_is_dropped(error):
    def make():
        raise error

    lines = []
    background = Background("Absent", make, lines.append)
    background.send({"loss": 1.0}, 1)
    background.close(5)
    assert lines == [f"Absent is off: {type(error).__name__}: {error}"]


def test_a_sink_that_raises_is_dropped_with_one_line():
    lines = []
    background = Background("Raises", Raises, lines.append)
    for step in range(10):
        background.send({"loss": 1.0}, step)
    background.close(5)
    assert lines == ["Raises is off: OSError: the folder of events is read-only"]


def test_a_sink_that_raises_on_close_is_one_line():
    class Broken(Sink):
        def close(self):
            raise RuntimeError("no")

    lines = []
    Background("Broken", Broken, lines.append).close(5)
    assert lines == ["Broken is off: RuntimeError: no"]


def test_a_sink_that_hangs_at_the_start_is_dropped(release):
    recorder = Recorder()

    def make():
        release.wait(10)
        return recorder

    lines = []
    start = time.monotonic()
    background = Impatient("Hangs", make, lines.append)
    background.send({"loss": 1.0}, 1)
    background.close(5)
    assert time.monotonic() - start < 2
    assert lines == ["Hangs is off: no answer for 0.1 s"]

    # One that is ready later gets nothing, and is closed.
    release.set()
    background._thread.join(5)
    assert recorder.points == []
    assert recorder.is_closed


def test_a_sink_that_hangs_later_is_dropped_at_the_end(release):
    class Hangs(Sink):
        def send(self, figures, step):
            release.wait(10)

    lines = []
    background = Background("Hangs", Hangs, lines.append)
    start = time.monotonic()
    for step in range(3):
        background.send({"loss": 1.0}, step)
    background.close(0.1)
    assert time.monotonic() - start < 2
    assert lines == ["Hangs is off: no answer for 0.1 s"]


def test_points_are_dropped_where_too_many_wait(release):
    class Small(Background):
        CAPACITY = 4

    class Slow(Recorder):
        def send(self, figures, step):
            release.wait(10)
            super().send(figures, step)

    slow = Slow()
    lines = []
    background = Small("Slow", lambda: slow, lines.append)
    for step in range(50):
        background.send({}, step)

    threading.Timer(0.1, release.set).start()
    background.close(5)
    assert len(slow.points) in (3, 4)
    assert slow.is_closed
    assert lines == []


def test_a_system_without_a_further_thread_drops_the_sink(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    lines = []
    monkeypatch.setattr(threading.Thread, "start", refuse)
    background = Background("Late", Recorder, lines.append)
    background.send({"loss": 1.0}, 1)
    background.close(5)
    assert lines == ["Late is off: can't start new thread"]


def test_a_sink_that_fails_after_it_was_dropped_says_nothing_more(release):
    class HangsAndFails(Sink):
        def send(self, figures, step):
            release.wait(10)
            raise OSError("late")

    lines = []
    background = Background("Hangs", HangsAndFails, lines.append)
    background.send({"loss": 1.0}, 1)
    background.close(0.1)
    release.set()
    background._thread.join(5)
    assert lines == ["Hangs is off: no answer for 0.1 s"]
