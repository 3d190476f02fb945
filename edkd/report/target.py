"""The file that a report is written to."""

import os
from pathlib import Path

from edkd.errors import UserError
from edkd.report.page import MARKER

_HEAD = 4096
"""Bytes from the start within which the marker is."""


def check_target(path: Path) -> None:
    """Raise UserError where a report cannot be written, before anything is computed.

    A file that is there is replaced if it is a report of edkd.
    """
    if path.is_dir():
        raise UserError(f"--output {path} is a folder; give the name of a file, as report.html")
    if path.exists() and not _is_report(path):
        raise UserError(
            f"{path} exists and is no report of edkd, so it is not replaced; give another file "
            "with --output"
        )

    folder = path.parent
    if not folder.is_dir():
        raise UserError(f"--output {path}: there is no folder {folder}; create it")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"--output {path}: the folder {folder} is not writable; give another file")


def _is_report(path: Path) -> bool:
    """Whether the head of a file has the marker of a report."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    return MARKER.encode() in head
