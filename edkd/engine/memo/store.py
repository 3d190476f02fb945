"""Rows of bytes by integer key, in a folder of segments. This module imports no torch.

A segment is a file: first its keys (int32), then their rows. It is written once and named by a hash
of its bytes and its folder. So processes can share a folder without a lock, and a damaged or
foreign file is detected.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edkd.engine.memo.files import (
    ABOUT,
    folder_size,
    segment_files,
    segment_name,
)
from edkd.whole_files import replace_file

KEY_TYPE = np.int32
KEY_BYTES = np.dtype(KEY_TYPE).itemsize

MAX_KEYS = 2**31
"""Keys are below it."""

ABSENT = -1


class Segment(NamedTuple):
    """A file of the store. Its rows have the numbers start, start + 1, ..., start + size - 1."""

    path: Path
    start: int
    size: int


class Store:
    """Rows by key. No file is trusted unverified, and no failure of the disk raises an error.

    Args:
        root: folder of all stores; the limit applies to all of them together.
        name: of this store's folder in `root`.
        about: describes the store; "num_keys" and "row_bytes" are read here.
        limit: bytes in `root` from which on nothing is written.
        say: called with a line for the log.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        about: dict[str, Any],
        limit: float,
        say: Callable[[str], None],
    ) -> None:
        self.root = root
        self.folder = root / name
        self.about = about
        self.limit = limit
        self.say = say
        self.row_bytes: int = about["row_bytes"]

        # Key -> number of its row, counted over all segments.
        self.row_numbers = np.full(about["num_keys"], ABSENT, np.int32)
        self.num_rows = 0

        self.segments: dict[str, Segment] = {}
        self.verified: set[str] = set()
        self.refused: set[str] = set()
        self.is_writable = True
        self.refresh()

    def refresh(self) -> None:
        """Find the segments that this or another process has written since the last call."""
        for path in sorted(segment_files(self.folder)):
            if path.name not in self.segments and path.name not in self.refused:
                self._enter(path)

    def contains(self) -> np.ndarray:
        """Which keys have a row, (num_keys,), bool. Their segments need not be verified yet."""
        return self.row_numbers != ABSENT

    def verify(self) -> None:
        """Compare the hash of each segment that no read has compared; damaged rows are absent."""
        for segment in list(self.segments.values()):
            if segment.path.name not in self.verified:
                self._rows(segment)

    def read(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Look up rows.

        Args:
            keys: (K,), integers.

        Returns:
            Rows (K,row_bytes), uint8, zeros where there is none; and which were found, (K,), bool.
        """
        rows = np.zeros((len(keys), self.row_bytes), np.uint8)

        # In the order of row numbers, the rows of a segment stand together.
        order = self.row_numbers[keys].argsort()
        numbers = self.row_numbers[keys][order]

        for segment in list(self.segments.values()):
            first, end = numbers.searchsorted([segment.start, segment.start + segment.size])
            if first == end:
                continue
            stored = self._rows(segment)
            if stored is not None:
                rows[order[first:end]] = stored[numbers[first:end] - segment.start]

        # Keys of a segment that could not be read are absent by now.
        return rows, self.row_numbers[keys] != ABSENT

    def add(self, keys: np.ndarray, rows: np.ndarray) -> None:
        """Write a segment.

        If the limit is reached or the disk fails, this is logged, and no later call writes.

        Args:
            keys: (K,), integers.
            rows: (K,row_bytes), uint8.
        """
        if not self.is_writable:
            return

        content = keys.astype(KEY_TYPE).tobytes() + rows.tobytes()
        path = self.folder / segment_name(self.folder, content)
        try:
            self._write(path, content)
        except OSError as error:
            self.is_writable = False
            reason = error.strerror or error
            self.say(
                f"teacher cache: nothing more is written to {self.root} ({reason}); this run "
                "continues"
            )
            return

        self.verified.add(path.name)
        self.refused.discard(path.name)
        self._enter(path)

    def _write(self, path: Path, content: bytes) -> None:
        if folder_size(self.root) + len(content) > self.limit:
            raise OSError("TEACHER_MEMO.MAX_GB is reached")

        self.folder.mkdir(parents=True, exist_ok=True)
        about = self.folder / ABOUT
        if not about.exists():
            replace_file(about, json.dumps(self.about).encode())
        replace_file(path, content)

    def _enter(self, path: Path) -> None:
        """Enter the keys of a segment. Its hash is compared when one of its rows is read."""
        try:
            size, rest = divmod(path.stat().st_size, KEY_BYTES + self.row_bytes)
            keys = np.fromfile(path, KEY_TYPE, size)
        except OSError:  # removed by another process, or the disk fails: its rows are absent
            return

        is_whole = size > 0 and rest == 0 and len(keys) == size
        if not is_whole or keys.min() < 0 or keys.max() >= len(self.row_numbers):
            self._refuse(path)
            return

        segment = Segment(path, self.num_rows, size)
        self.segments[path.name] = segment
        self.row_numbers[keys] = np.arange(segment.start, segment.start + size, dtype=np.int32)
        self.num_rows += size

    def _rows(self, segment: Segment) -> np.ndarray | None:
        """The rows of a segment, (size,row_bytes); None if they cannot be read.

        The first time the whole file is read and its hash compared; later it is mapped.
        """
        path = segment.path
        shape = (segment.size, self.row_bytes)
        offset = KEY_BYTES * segment.size
        try:
            if path.name in self.verified:
                return np.memmap(path, np.uint8, "r", offset, shape)
            content = path.read_bytes()
        except (OSError, ValueError):  # removed, unreadable, or shorter than before
            self._forget(segment)
            return None

        if segment_name(path.parent, content) != path.name:
            self._refuse(path)
            self._forget(segment)
            return None

        self.verified.add(path.name)
        return np.frombuffer(content, np.uint8, offset=offset).reshape(shape)

    def _forget(self, segment: Segment) -> None:
        """Mark the rows of a segment as absent."""
        end = segment.start + segment.size
        is_own = (self.row_numbers >= segment.start) & (self.row_numbers < end)
        self.row_numbers[is_own] = ABSENT
        self.verified.discard(segment.path.name)
        del self.segments[segment.path.name]

    def _refuse(self, path: Path) -> None:
        """Log and remove a file whose content does not match its name."""
        self.refused.add(path.name)
        self.say(
            f"teacher cache: {path} is damaged or belongs to another cache; its logits are "
            "computed again"
        )
        with suppress(OSError):  # in a read-only folder it stays, unused
            path.unlink(missing_ok=True)
