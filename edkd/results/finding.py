"""Finding the folders of finished runs."""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from edkd.errors import UserError, warn

RESULT = "result.json"

STUDY = "study.log"
"""In a folder of `edkd tune`, whose trials are no results: they left the test set out."""


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Folders of finished runs, each once; a warning names what is left out, see `search_runs`."""
    found, left_out = search_runs(paths)
    for line in left_out:
        warn(line)
    return found


def search_runs(paths: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """Folders of finished runs, each once, and a line about each path that is left out.

    Files and folders without a finished run are left out, so that `output/demo/*` works.

    Args:
        paths: folders of runs, and folders that hold runs at any depth.

    Raises:
        UserError: a path does not exist, or no finished run was found.
    """
    paths = list(paths)
    for path in paths:
        if not os.path.lexists(path):
            raise UserError(f"no file or folder at {path}; give folders of finished runs")

    found: dict[Path, None] = {}
    skipped: list[str] = []
    for path in paths:
        if not os.path.isdir(path):
            skipped.append(f"{path} is no folder of a run")
            continue
        os.listdir(path)  # raises where the search would pass over a folder that it cannot read
        finished, unfinished = _search(Path(os.path.realpath(path)))
        found.update(dict.fromkeys(finished))
        skipped += [f"{folder} {_why_not(folder)}" for folder in unfinished]

    if not found:
        names = ", ".join(map(str, paths))
        raise UserError(f"no finished run at {names}; the folder of a finished run has a {RESULT}")
    return list(found), [f"{line}; it is left out" for line in skipped]


def _search(folder: Path) -> tuple[list[Path], list[Path]]:
    """Finished runs in a folder, and runs in it that are not finished.

    Args:
        folder: without symbolic links; it counts as unfinished where there is no run in it.
    """
    finished = []
    unfinished = []
    seen: set[Path] = set()
    waiting = [folder]

    while waiting:
        found = waiting.pop()
        if found in seen:  # a link to a folder above
            continue
        seen.add(found)

        if _is_finished(found):
            finished.append(found)
        elif os.path.isfile(found / "config.yaml") or os.path.isfile(found / STUDY):
            unfinished.append(found)
        else:
            waiting += reversed(_subfolders(found))

    return finished, unfinished if finished or unfinished else [folder]


def _subfolders(folder: Path) -> list[Path]:
    """Folders that are not hidden, in the order of their names, with 9 before 10."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_dir()]
    except OSError:  # no permission
        return []
    shown = [name for name in names if not name.startswith(".")]
    return [Path(os.path.realpath(folder / name)) for name in sorted(shown, key=_in_order)]


def _in_order(name: str) -> list[tuple[float, str]]:
    """A key for sorting: numbers within a name count by their value, other parts as text."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [(float(part), "") if i % 2 else (0.0, part) for i, part in enumerate(parts)]


def _is_finished(folder: Path) -> bool:
    return os.path.isfile(folder / RESULT) and not _leaves_test_set_out(folder)


def _leaves_test_set_out(folder: Path) -> bool:
    """Whether a finished run has figures of held-out images alone (DATASET.TEST.EVALUATE False)."""
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # `read_run` names the fault
        return False
    return isinstance(result, dict) and "last_val_top1" in result and "last_test_top1" not in result


def _why_not(folder: Path) -> str:
    """Why a folder is left out."""
    if os.path.isfile(folder / STUDY):
        return "holds the trials of a study, which were not evaluated on the test set"
    if os.path.isfile(folder / RESULT):
        return "was not evaluated on the test set"
    return "holds no finished run"
