"""The lock of a run's folder: one process at a time may use it."""

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from edkd.errors import StorageError, UserError, warn

try:
    import fcntl
except ImportError:  # Windows: a second process in the folder is not detected
    fcntl = None  # type: ignore[assignment]

_FILE = ".lock"

_TAKEN = (errno.EACCES, errno.EAGAIN)

PATIENCE = 0.05
"""Seconds in which a lock is tried again: `is_in_use` of another process holds it for a moment."""

_held: set[Path] = set()
"""Folders that this process has locked: a second lock of its own would not fail."""


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Lock the folder of a run. Raises UserError where another process has locked it.

    The system releases the lock when the process ends, however it ends; child processes do not
    inherit it.
    """
    if folder.resolve() in _held:  # to open and close the file would end that lock
        raise UserError(f"{folder} is in use by this process; wait for that run")
    try:
        file = open(folder / _FILE, "w")  # noqa: SIM115  closed, and so unlocked, below
    except OSError as error:
        raise StorageError(f"cannot write to {folder}: {error.strerror}") from None

    with file:
        if fcntl:
            _lock_file(file, folder)
        _held.add(folder.resolve())
        try:
            yield
        finally:
            _held.discard(folder.resolve())


def _lock_file(file: TextIO, folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in _TAKEN:
                _warn_about(folder, error)
                return
        if time.monotonic() > deadline:
            raise UserError(f"{folder} is in use by another process; wait for it, or stop it")
        time.sleep(PATIENCE / 10)


def _warn_about(folder: Path, error: OSError) -> None:
    warn(
        f"{folder} cannot be locked ({error.strerror}): a second process in it would not be "
        "detected"
    )


def is_in_use(folder: Path) -> bool | None:
    """Whether a process has locked a folder; None where that cannot be found out.

    The lock that is tried here can be shared, so that two processes that look do not find one
    another, and a folder that this user may only read can be looked at.
    """
    if folder.resolve() in _held:
        return True
    if fcntl is None:
        return None

    try:
        file = open(folder / _FILE)  # noqa: SIM115  closed below
    except FileNotFoundError:
        return False
    except OSError:
        return None

    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return True if error.errno in _TAKEN else None
    return False
