"""List, verify and delete teacher caches. This module imports no torch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edkd.engine.memo.accuracy import read_accuracy
from edkd.engine.memo.files import (
    ABOUT,
    NOT_A_DESCRIPTION,
    accuracy_files,
    memo_files,
    memo_folders,
    segment_files,
    segment_name,
)
from edkd.engine.memo.store import KEY_BYTES, KEY_TYPE
from edkd.errors import StorageError, UserError
from edkd.hints import hint
from edkd.whole_files import PARTIAL


class Survey(NamedTuple):
    """A teacher cache or a teacher's accuracy, for the user."""

    line: str
    damaged: list[Path]
    """Segments whose bytes do not match their names; empty if they were not verified."""


class About(NamedTuple):
    """The content of `about.json` that is listed."""

    title: str
    num_keys: int
    row_bytes: int


def find_memos(root: Path, names: Sequence[str] = ()) -> list[Path]:
    """The folders of the named caches in `root`, and files of accuracies; without names, all.

    Raises:
        UserError: there is none of such a name.
    """
    folders = [path for path in memo_folders(root) if memo_files(path)]
    found = {path.name: path for path in [*folders, *accuracy_files(root)]}
    for name in names:
        if name not in found:
            raise UserError(f"no teacher cache {name} in {root}{hint(name, found)}")
    return [found[name] for name in names or found]


def survey(folder: Path, verify: bool = False) -> Survey:
    """Describe a cache in one line.

    Args:
        folder: of the cache; or the file of an accuracy.
        verify: whether the hash of each segment is compared with its name.

    Raises:
        UserError: `about.json`, or the file of an accuracy, is damaged.
        StorageError: a file cannot be read.
    """
    if not folder.is_dir():
        return Survey(f"{folder.name}: {_accuracy_line(folder)}", [])

    about = read_about(folder)
    files = segment_files(folder)
    try:
        damaged = [path for path in files if verify and not is_intact(path)]
        sizes = [path.stat().st_size for path in files]
        width = KEY_BYTES + about.row_bytes
        keys = [
            np.fromfile(path, KEY_TYPE, size // width)
            for path, size in zip(files, sizes, strict=True)
        ]
    except OSError as error:
        raise StorageError(f"cannot read {folder}: {error.strerror or error}") from error

    held = len(np.unique(np.concatenate(keys))) if keys else 0
    share = 100 * held / about.num_keys
    megabytes = sum(sizes) / 1e6
    line = (
        f"{folder.name}: {about.title}, {held} of {about.num_keys} views ({share:.1f} %), "
        f"{megabytes:.1f} MB"
    )
    return Survey(line, damaged)


def read_about(folder: Path) -> About:
    """The checked content of `about.json`.

    Raises:
        UserError: it is damaged.
    """
    path = folder / ABOUT
    try:
        entries = json.loads(path.read_text())
        title = f"{entries['teacher']} on {entries['dataset']}, {entries['dtype']}"
        if "top_k" in entries:
            title = f"{title}, topk {int(entries['top_k'])}"
        if "outputs" in entries:
            title = f"{title}, {' and '.join(entries['outputs'])}"
        view = entries.get("view")
        if view is not None:
            title = f"{title}, view {view}"

        about = About(title, int(entries["num_keys"]), int(entries["row_bytes"]))
        if about.num_keys < 1 or about.row_bytes < 1 or not title.isprintable():
            raise ValueError
    except NOT_A_DESCRIPTION:
        raise UserError(f"{path} is damaged; delete the folder") from None
    return about


def _accuracy_line(path: Path) -> str:
    accuracy = read_accuracy(path)
    if accuracy is None:
        raise UserError(f"{path} is damaged; delete the file")
    return accuracy.line()


def is_intact(path: Path) -> bool:
    """Whether the bytes of a segment match its name. Raises OSError."""
    return segment_name(path.parent, path.read_bytes()) == path.name


def delete_memo(folder: Path) -> None:
    """Delete a cache. A run that uses it continues and computes the logits again.

    Args:
        folder: of the cache; or the file of an accuracy.

    Raises:
        StorageError: a file cannot be deleted, or the folder holds other files.
    """
    is_folder = folder.is_dir()
    files = memo_files(folder) if is_folder else _with_partial_files(folder)
    try:
        for path in files:
            path.unlink(missing_ok=True)
        if is_folder:
            folder.rmdir()
    except OSError as error:
        raise StorageError(f"cannot delete {folder}: {error.strerror or error}") from error


def _with_partial_files(path: Path) -> list[Path]:
    """A file, and what processes that died have left of it."""
    start = f"{path.name}."
    beside = path.parent.iterdir()
    return [path, *(each for each in beside if _is_partial(each.name, start))]


def _is_partial(name: str, start: str) -> bool:
    return name.startswith(start) and name.endswith(PARTIAL)
