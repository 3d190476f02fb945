"""Curves for TensorBoard, in the event files of tensorboardX."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from edkd.engine.log.background import Record, Sink
from edkd.engine.log.final import TABLE, Final
from edkd.errors import reason_of, warn

FLUSH_EVERY = 30.0
"""Seconds between two moments at which the file is brought up to date."""


class TensorBoard(Sink):
    """Writes an event file.

    tensorboardX's SummaryWriter would write it in a thread and at the end of the process, where an
    error, as a full disk, is a traceback that nobody can handle. Here it raises in `send`.

    Args:
        folder: of the event files.
        done_steps: steps of a resumed run that are done; later points of the earlier process are
            hidden, because their steps run again.
        settings: hyper-parameters by full keys, for the tab HParams. The list of metrics is left
            out: TensorBoard would take that of one run for all runs of a folder, which lacks the
            keys of other methods; without it, TensorBoard collects those of all.
    """

    def __init__(
        self, folder: Path, done_steps: int, settings: Mapping[str, Any] | None = None
    ) -> None:
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._event = Event
        self._summary = summary
        self._has_settings = bool(settings)
        folder.mkdir(parents=True, exist_ok=True)
        self.writer = EventsWriter(str(folder / "events"))
        self._flushed_at = time.monotonic()

        with self._closed_on_error():
            if done_steps:
                start = SessionLog(status=SessionLog.START)
                self._write(step=done_steps + 1, session_log=start)
            if settings:
                shown = {key: _as_parameter(value) for key, value in settings.items()}
                _, begin, _ = summary.hparams(shown, {})
                self._write(summary=begin)
            self.writer.flush()

    def send(self, figures: Record, step: int) -> None:
        """Add a point to the curve of each figure."""
        with self._closed_on_error():
            for name, value in figures.items():
                self._write(step=step, summary=self._summary.scalar(name, value))

            if time.monotonic() - self._flushed_at > FLUSH_EVERY:
                self.writer.flush()
                self._flushed_at = time.monotonic()

    def finish(self, final: Final) -> None:
        """Add the final figures as points, their table as text, and the end for HParams."""
        self.send(final.figures, final.step)
        with self._closed_on_error():
            self._write(step=final.step, summary=self._summary.text(TABLE, final.markdown))
            if self._has_settings:
                _, _, end = self._summary.hparams({}, {})
                self._write(summary=end)

    def close(self) -> None:
        """Write buffered points."""
        with self._closed_on_error():
            self.writer.close()

    def _write(self, **content: Any) -> None:
        self.writer.write_event(self._event(wall_time=time.time(), **content))

    @contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        """Close the file before an error leaves; otherwise Python reports it once more later."""
        try:
            yield
        except OSError:
            with suppress(OSError):
                self.writer._py_recordio_writer.close()
            raise


def _as_parameter(value: Any) -> Any:
    """A value that HParams can show: a list becomes text."""
    return value if isinstance(value, (bool, int, float, str)) else json.dumps(value)


class Curves:
    """The part of a SummaryWriter that draws curves, for a loop without a `Logger`.

    An error, as a full disk, is one warning; then nothing is written any more.

    Args:
        folder: of the event files.
        done_epochs: of a resumed training; later points of the earlier process are hidden.
    """

    def __init__(self, folder: Path, done_epochs: int = 0) -> None:
        self._sink: TensorBoard | None = None
        with self._dropped_on_error():
            self._sink = TensorBoard(folder, done_epochs)

    def add_scalar(self, name: str, value: float, epoch: int) -> None:
        """Add a point to a curve."""
        with self._dropped_on_error():
            if self._sink:
                self._sink.send({name: value}, epoch)

    def close(self) -> None:
        """Write buffered points."""
        with self._dropped_on_error():
            if self._sink:
                self._sink.close()

    @contextmanager
    def _dropped_on_error(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever the library raises
            self._sink = None
            warn(f"TensorBoard is off: {type(error).__name__}: {reason_of(error)}")
