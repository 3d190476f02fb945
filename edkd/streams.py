"""Standard streams that cannot end a run: absent, closed, on a full disk, without a reader."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from edkd.errors import StorageError, reason_of

dropped_sinks: set[str] = set()
"""Names of the sinks of the log that failed or hung in this process: their libraries may do so
again, and print, when the process ends."""


class Guard:
    """A text stream that keeps its first error instead of raising it.

    Args:
        stream: any object with `write`; None where the process has no such stream.

    Attributes:
        is_told: whether an error was taken. What is buffered then fails again and again.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = _Nothing() if stream is None else stream
        self._error: Exception | None = None
        self.is_told = False

    def write(self, text: str) -> int:
        """Write, or drop the text."""
        try:
            self._stream.write(text)
        except Exception as error:  # of a stream that another program put in place, any type
            self._error = self._error or error
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each, or drop it."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Write what is buffered, where the stream has a buffer."""
        try:
            flush = getattr(self._stream, "flush", None)
            if flush is not None:
                flush()
        except Exception as error:
            self._error = self._error or error

    def isatty(self) -> bool:
        """Whether this is a terminal; a stream that does not know is none."""
        try:
            return bool(self._stream.isatty())
        except Exception:
            return False

    def take_error(self) -> Exception | None:
        """The first error since the last call."""
        error = self._error
        self._error = None
        self.is_told = self.is_told or error is not None
        return error

    def release(self) -> None:
        """Write what is buffered. What cannot be written goes to the null device instead.

        Otherwise the interpreter tries again when it ends, and turns the exit code into 120.
        """
        self.flush()
        if self._error is None:
            return
        with suppress(Exception):
            _open_null(self._stream.fileno())
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Nothing(io.TextIOBase):
    """A stream for text that nobody reads."""

    def write(self, text: str) -> int:
        return len(text)


@contextmanager
def guarded_streams() -> Iterator[None]:
    """Make standard output and standard error unable to raise within the block.

    File descriptors 0, 1 and 2 exist afterwards: a file that is opened later must not get one of
    them, because libraries would print into it.
    """
    fill_missing_descriptors()
    before = (sys.stdout, sys.stderr)
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):  # file names need not be valid UTF-8
            stream.reconfigure(errors="backslashreplace")

    guards = [Guard(stream) for stream in before]
    sys.stdout, sys.stderr = guards
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for guard in guards:
            guard.release()


def fill_missing_descriptors() -> None:
    """Open the null device as each of the file descriptors 0, 1 and 2 that is closed."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            _open_null(descriptor)


def check_output() -> None:
    """Raise StorageError where standard output could not be written, and nobody was told yet.

    A pipe without a reader is a BrokenPipeError.
    """
    if not isinstance(sys.stdout, Guard) or sys.stdout.is_told:
        return

    sys.stdout.flush()
    error = sys.stdout.take_error()
    if isinstance(error, BrokenPipeError):
        raise error
    if error is not None:
        raise StorageError(f"cannot write standard output: {reason_of(error)}") from error


def _open_null(descriptor: int) -> None:
    opened = os.open(os.devnull, os.O_RDWR)
    if opened == descriptor:
        os.set_inheritable(descriptor, True)
        return
    os.dup2(opened, descriptor)
    os.close(opened)
