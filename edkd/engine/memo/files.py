"""The files of teacher caches. This module imports no torch.

Each cache is a folder `<root>/<data set>_<teacher>_<16 hex digits>`. It holds `about.json`, which
describes it, and segments, which are named by a hash of their bytes and of the folder's name. The
accuracy of a teacher is a file of such a name that ends in `.json`. Other folders and other files
are left alone.
"""

import hashlib
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from edkd.whole_files import PARTIAL

ABOUT = "about.json"

STALE_SECONDS = 3600
"""A partial file of this age belongs to a process that died."""

NOT_A_DESCRIPTION = (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError)
"""What damaged JSON raises when it is parsed and its entries are read."""

_MEMO_NAME = re.compile(r".*_[0-9a-f]{16}", re.DOTALL)
_ACCURACY_NAME = re.compile(r".*_[0-9a-f]{16}\.json", re.DOTALL)
_FILE_NAME = re.compile(rf"([0-9a-f]{{32}}|{re.escape(ABOUT)})(\.[0-9a-f]+{PARTIAL})?")


def hash_of(content: bytes) -> str:
    """32 hex digits of the SHA-256."""
    return hashlib.sha256(content).hexdigest()[:32]


def segment_name(folder: Path, content: bytes) -> str:
    """The name of a segment: a hash of its bytes and of the name of its cache."""
    return hash_of(folder.name.encode() + content)


def memo_folders(root: Path) -> list[Path]:
    """The folders in `root` whose names are those of caches, sorted."""
    return _named(root, _MEMO_NAME, Path.is_dir)


def accuracy_files(root: Path) -> list[Path]:
    """The files in `root` whose names are those of teachers' accuracies, sorted."""
    return _named(root, _ACCURACY_NAME, Path.is_file)


def _named(root: Path, name: re.Pattern[str], is_kind: Callable[[Path], bool]) -> list[Path]:
    """The entries of a folder that have such a name and are of a kind, sorted."""
    try:
        found = [path for path in root.iterdir() if name.fullmatch(path.name)]
        return sorted(path for path in found if is_kind(path))
    except OSError:
        return []


def memo_files(folder: Path) -> list[Path]:
    """The files of a cache: segments, `about.json`, and partial files of both."""
    try:
        found = [path for path in folder.iterdir() if _FILE_NAME.fullmatch(path.name)]
        return [path for path in found if not path.is_dir()]
    except OSError:
        return []


def segment_files(folder: Path) -> list[Path]:
    """The segments of a cache, undamaged or not."""
    return [path for path in memo_files(folder) if "." not in path.name]


def stored_files(path: Path) -> list[Path]:
    """What a cache holds, undamaged or not: its segments, or the file of an accuracy itself."""
    return segment_files(path) if path.is_dir() else [path]


def folder_size(root: Path) -> int:
    """Bytes of all caches in `root`. Partial files of dead processes are removed."""
    size = 0
    for folder in memo_folders(root):
        for path in memo_files(folder):
            with suppress(OSError):  # another process may have removed it
                size += _size_unless_stale(path)
    return size


def _size_unless_stale(path: Path) -> int:
    status = path.stat()
    age = time.time() - status.st_mtime
    if path.suffix == PARTIAL and age > STALE_SECONDS:
        path.unlink()
        return 0
    return status.st_size
