"""Finding the folders of finished runs."""

import json
import os
import re
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from edkd.errors import UserError, reason_of, warn

RESULT = "result.json"

STUDY = "study.log"
"""In a folder of `edkd tune`, whose trials are no results: they left the test set out."""

_OF_A_RUN = (RESULT, "config.yaml", STUDY)
"""Files of folders in which no runs are searched."""

_NOT_FINISHED = "holds no finished run"

_NO_FOLDER = "is no folder of a run"

_SHOWN = 3
"""Paths that are left out which an error names at most."""


class LeftOut(NamedTuple):
    """A path that is left out, and why: "holds no finished run"."""

    path: Path
    why: str

    def __str__(self) -> str:
        return f"{self.path} {self.why}"


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Folders of finished runs, each once; a warning names what is left out, see `search_runs`."""
    found, left_out = search_runs(paths)
    for line in left_out:
        warn(line)
    return found


def search_runs(paths: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """Folders of finished runs, each once, and a line about each path that is left out.

    Files, folders without a finished run, and folders within the given ones that cannot be read
    are left out, so that `output/demo/*` works.

    Args:
        paths: folders of runs, and folders that hold runs at any depth.

    Raises:
        UserError: a path does not exist, or no finished run was found.
        PermissionError: one of the given folders cannot be read.
    """
    paths = list(paths)
    for path in paths:
        if not os.path.lexists(path):
            raise UserError(f"no file or folder at {path}; give folders of finished runs")

    found: dict[Path, None] = {}
    skipped: list[LeftOut] = []
    for path in paths:
        if not os.path.isdir(path):
            skipped.append(LeftOut(path, _NO_FOLDER))
            continue
        os.listdir(path)  # raises if a given folder cannot be read
        finished, left_out = _search(Path(os.path.realpath(path)))
        found.update(dict.fromkeys(finished))
        skipped += left_out

    if not found:
        raise UserError(_nothing_at(paths, skipped))
    return list(found), [f"{each}; it is left out" for each in skipped]


def _nothing_at(paths: Sequence[Path], skipped: Sequence[LeftOut]) -> str:
    """The error where there is no finished run, with the reasons that it does not state itself."""
    names = ", ".join(map(str, paths))
    special = [each for each in skipped if each.why not in (_NOT_FINISHED, _NO_FOLDER)]
    if not special:
        return f"no finished run at {names}; the folder of a finished run has a {RESULT}"

    reasons = ", ".join(map(str, special[:_SHOWN]))
    number = len(special) - _SHOWN
    more = f", and {number} more" if number > 0 else ""
    return f"no finished run to use at {names}: {reasons}{more}; give folders of other runs"


def _search(folder: Path) -> tuple[list[Path], list[LeftOut]]:
    """Finished runs in a folder, and what is left out: other runs, and what cannot be read.

    Args:
        folder: without symbolic links; it is left out itself where nothing else is found.
    """
    finished = []
    left_out = []
    seen: set[Path] = set()
    waiting = [folder]

    while waiting:
        found = waiting.pop()
        if found in seen:  # a link to a folder above
            continue
        seen.add(found)

        try:
            if _is_finished(found):
                finished.append(found)
            elif any(_has(found, name) for name in _OF_A_RUN):
                left_out.append(LeftOut(found, _why_not(found)))
            else:
                waiting += reversed(_subfolders(found))
        except OSError as error:
            left_out.append(LeftOut(found, f"cannot be read: {reason_of(error)}"))

    if not finished and not left_out:
        left_out.append(LeftOut(folder, _why_not(folder)))
    return finished, left_out


def _subfolders(folder: Path) -> list[Path]:
    """Folders that are not hidden, in the order of their names, with 9 before 10.

    Raises:
        OSError: the folder cannot be read.
    """
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if _is_folder(entry)]
    shown = [name for name in names if not name.startswith(".")]
    return [Path(os.path.realpath(folder / name)) for name in sorted(shown, key=_in_order)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder; a link to what cannot be read may be one."""
    try:
        return entry.is_dir()
    except PermissionError:
        return True
    except OSError:  # a link to itself
        return False


def _in_order(name: str) -> list[tuple[float, str]]:
    """A key for sorting: numbers within a name count by their value, other parts as text."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [(float(part), "") if i % 2 else (0.0, part) for i, part in enumerate(parts)]


def _is_finished(folder: Path) -> bool:
    return _has(folder, RESULT) and not _leaves_test_set_out(folder)


def _has(folder: Path, name: str) -> bool:
    """Whether a folder has a file.

    Raises:
        OSError: the folder cannot be read.
    """
    try:
        mode = os.stat(folder / name).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISREG(mode)


def _leaves_test_set_out(folder: Path) -> bool:
    """Whether a finished run has figures of held-out images alone (DATASET.TEST.EVALUATE False)."""
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # `read_run` names the fault
        return False
    return isinstance(result, dict) and "last_val_top1" in result and "last_test_top1" not in result


def _why_not(folder: Path) -> str:
    """Why a folder is left out."""
    if _has(folder, STUDY):
        return "holds the trials of a study, which were not evaluated on the test set"
    if _has(folder, RESULT):
        return "was not evaluated on the test set"
    return _NOT_FINISHED
