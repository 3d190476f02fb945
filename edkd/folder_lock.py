"""The lock of a folder, of a run or of downloads: one process at a time may use it."""

import errno
import os
import struct
import sys
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

_IS_LINUX = sys.platform == "linux"

_FLOCK = "hhqqi" if _IS_LINUX else "qqihh"
"""Type, whence, start, length and process of a lock; on Linux in this order."""

_held: set[Path] = set()
"""Files that this process has locked: a second lock of its own would not fail."""


@contextmanager
def lock(folder: Path, name: str = _FILE) -> Iterator[None]:
    """Lock a folder. Raises UserError where another process has locked it.

    The system releases the lock when the process ends, however it ends; child processes do not
    inherit it.

    Args:
        name: of the file that is locked; locks of other names do not exclude one another.
    """
    path = folder.resolve() / name
    if path in _held:  # to open and close the file would end that lock
        raise UserError(f"{folder} is in use by this process; wait for its end")
    try:
        file = open(path, "w")  # noqa: SIM115  closed, and so unlocked, below
    except OSError as error:
        raise StorageError(f"cannot write to {folder}: {error.strerror}") from None

    with file:
        if fcntl:
            _lock_file(file, folder)
        _held.add(path)
        try:
            yield
        finally:
            _held.discard(path)


def _lock_file(file: TextIO, folder: Path) -> None:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            raise UserError(
                f"{folder} is in use by another process; wait for it, or stop it"
            ) from None
        warn(
            f"{folder} cannot be locked ({error.strerror}): a second process in it would not be "
            "detected"
        )


def is_in_use(folder: Path) -> bool | None:
    """Whether a process has locked a folder; None where that cannot be found out.

    No lock is taken, so that this cannot disturb a run that starts.
    """
    if folder.resolve() / _FILE in _held:
        return True
    if fcntl is None:
        return None

    try:
        with open(folder / _FILE, "rb") as file:
            found = fcntl.fcntl(file, fcntl.F_GETLK, _wanted_lock())
    except FileNotFoundError:
        return False
    except OSError:
        return None
    return _type_of(found) != fcntl.F_UNLCK


# `struct flock`, which has another order on macOS and BSD than on Linux.


def _wanted_lock() -> bytes:
    """An exclusive lock of a whole file."""
    if _IS_LINUX:
        return struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    return struct.pack(_FLOCK, 0, 0, 0, fcntl.F_WRLCK, os.SEEK_SET)


def _type_of(found: bytes) -> int:
    """The type of the lock that stands in the way; F_UNLCK where there is none."""
    fields = struct.unpack(_FLOCK, found)
    return fields[0] if _IS_LINUX else fields[3]
