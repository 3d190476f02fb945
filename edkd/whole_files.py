"""Files that are replaced as a whole: a reader finds the old content or the new one."""

import os
import secrets
import stat
import sys
from contextlib import suppress
from pathlib import Path

PARTIAL = ".partial"
"""Suffix of a file that is being written."""

_OPEN = {
    "/dev/stdout": 1,
    "/dev/stderr": 2,
}
"""Names of files that the process has open, which may be regular ones, with their numbers."""


def replace_file(path: Path, content: bytes) -> None:
    """Write a file and rename it into place; other processes may write the same one.

    A symbolic link stays, and its target is replaced. A device or a pipe is written to.

    Raises:
        OSError: it cannot be written, or is a folder; an old file stays as it is.
    """
    if str(path) in _OPEN:
        _write_open(_OPEN[str(path)], content)
    elif _is_replaceable(path):
        _replace(Path(os.path.realpath(path)), content)
    else:
        path.write_bytes(content)


def _is_replaceable(path: Path) -> bool:
    """Whether a path is a regular file, or nothing yet."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:  # also a link to a file that is not there yet
        return True
    return stat.S_ISREG(mode)


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}{PARTIAL}")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):  # a disk that became read-only refuses this too
            partial.unlink(missing_ok=True)
        raise


def _write_open(number: int, content: bytes) -> None:
    """Write to an open file at its position, after what was printed before."""
    for stream in (sys.stdout, sys.stderr):
        if stream:
            stream.flush()
    with open(number, "wb", closefd=False) as file:
        file.write(content)
