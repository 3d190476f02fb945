"""List, verify and delete teacher caches. This module imports no torch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edkd.engine.memo.files import (
    ABOUT,
    memo_files,
    memo_folders,
    segment_files,
    segment_name,
)
from edkd.engine.memo.store import KEY_BYTES, KEY_TYPE
from edkd.errors import StorageError, UserError
from edkd.hints import hint

_NOT_A_DESCRIPTION = (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError)
"""What damaged JSON raises when it is parsed and its entries are read."""


class Survey(NamedTuple):
    """A teacher cache, for the user."""

    line: str
    damaged: list[Path]
    """Segments whose bytes do not match their names; empty if they were not verified."""


class About(NamedTuple):
    """The content of `about.json` that is listed."""

    title: str
    num_keys: int
    row_bytes: int


def find_memos(root: Path, names: Sequence[str] = ()) -> list[Path]:
    """The folders of the named caches in `root`; without names, of all.

    Raises:
        UserError: there is no cache of such a name.
    """
    found = {path.name: path for path in memo_folders(root) if (path / ABOUT).is_file()}
    for name in names:
        if name not in found:
            raise UserError(f"no teacher cache {name} in {root}{hint(name, found)}")
    return [found[name] for name in names or found]


def survey(folder: Path, verify: bool = False) -> Survey:
    """Describe a cache in one line.

    Args:
        folder: of the cache.
        verify: whether the hash of each segment is compared with its name.

    Raises:
        UserError: `about.json` is damaged.
        StorageError: a file cannot be read.
    """
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
        f"{folder.name}: {about.title}, {held} of {about.num_keys} logits ({share:.1f} %), "
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
        view = entries.get("view")
        if view is not None:
            title = f"{title}, view {view}"

        about = About(title, int(entries["num_keys"]), int(entries["row_bytes"]))
        if about.num_keys < 1 or about.row_bytes < 1 or not title.isprintable():
            raise ValueError
    except _NOT_A_DESCRIPTION:
        raise UserError(f"{path} is damaged; delete the folder") from None
    return about


def is_intact(path: Path) -> bool:
    """Whether the bytes of a segment match its name. Raises OSError."""
    return segment_name(path.parent, path.read_bytes()) == path.name


def delete_memo(folder: Path) -> None:
    """Delete a cache. A run that uses it continues and computes the logits again.

    Raises:
        StorageError: a file cannot be deleted, or the folder holds other files.
    """
    try:
        for path in memo_files(folder):
            path.unlink(missing_ok=True)
        folder.rmdir()
    except OSError as error:
        raise StorageError(f"cannot delete {folder}: {error.strerror or error}") from error
