"""Finds the folders of runs."""

import os
from collections.abc import Iterable
from pathlib import Path

from edkd.errors import UserError, reason_of, warn

CONFIG = "config.yaml"
"""The file that makes a folder that of a run."""


def find_folders(paths: Iterable[Path]) -> list[Path]:
    """Folders of runs, each once, in the order of their names.

    Args:
        paths: folders of runs, and folders that hold runs at any depth.

    Raises:
        UserError: a path is no folder.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not os.path.isdir(path):
            what = "is a file" if os.path.lexists(path) else "does not exist"
            raise UserError(f"{path} {what}; give the folder of a run, or one that holds runs")
        found.update(dict.fromkeys(_search(path)))
    return list(found)


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run."""
    return os.path.isfile(folder / CONFIG)


def _search(folder: Path) -> list[Path]:
    """The runs in a folder; a run holds no other ones."""
    runs = []
    seen: set[str] = set()
    waiting = [folder]

    while waiting:
        found = waiting.pop()
        real = os.path.realpath(found)
        if real in seen:  # a link to a folder above
            continue
        seen.add(real)

        is_one, inside = _look_into(found)
        if is_one:
            runs.append(found)
        else:
            waiting += reversed(inside)
    return runs


def _look_into(folder: Path) -> tuple[bool, list[Path]]:
    """Whether a folder is that of a run; else the folders in it that are not hidden."""
    inside = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name == CONFIG and entry.is_file():
                    return True, []
                if not entry.name.startswith(".") and entry.is_dir():
                    inside.append(folder / entry.name)
    except OSError as error:
        warn(f"{folder} cannot be read ({reason_of(error)}); it is left out")
    return False, sorted(inside)
