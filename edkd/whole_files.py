"""Files that are replaced as a whole: a reader finds the old content or the new one."""

import os
import secrets
from contextlib import suppress
from pathlib import Path

PARTIAL = ".partial"
"""Suffix of a file that is being written."""


def replace_file(path: Path, content: bytes) -> None:
    """Write a file and rename it into place; other processes may write the same one.

    Raises:
        OSError: it cannot be written; the old file stays as it is.
    """
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}{PARTIAL}")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):  # a disk that became read-only refuses this too
            partial.unlink(missing_ok=True)
        raise
