"""Reading what the sinks have written: event files of TensorBoard, and files of wandb."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

_BLOCK = 32768
"""Bytes of a block of a file of wandb, which is a log of LevelDB."""

_HEADER = 7
"""Bytes before the first record, and before each record: checksum (4), length (2), type (1)."""


def events(folder: Path) -> Iterator[Any]:
    """The events in the files of a folder, the oldest file first."""
    from tensorboardX.proto.event_pb2 import Event

    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])  # then 4 bytes of checksum, twice
            yield Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]


class WandbRun(NamedTuple):
    """A run that wandb recorded offline."""

    id: str
    config: dict[str, Any]
    rows: list[tuple[int, dict[str, Any]]]
    """Of its history: steps and figures, without wandb's own ones."""
    summary: dict[str, Any]


def wandb_run(folder: Path) -> WandbRun:
    """The run of wandb in the folder of a run."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    name = ""
    config: dict[str, Any] = {}
    rows: list[tuple[int, dict[str, Any]]] = []
    summary: dict[str, Any] = {}

    for content in _records(file.read_bytes()):
        record = Record.FromString(content)
        if record.HasField("run"):
            name = record.run.run_id
            config |= _items(record.run.config.update)
        if record.HasField("history"):
            rows.append((record.history.step.num, _items(record.history.item)))
        if record.HasField("summary"):
            summary |= _items(record.summary.update)
    return WandbRun(name, config, rows, summary)


def _items(items: Any) -> dict[str, Any]:
    values = {}
    for item in items:
        key = item.key or "/".join(item.nested_key)
        if not key.startswith("_"):
            values[key] = json.loads(item.value_json)
    return values


def _records(content: bytes) -> Iterator[bytes]:
    """The records of a log of LevelDB; one that passes the end of a block is in several parts."""
    position = _HEADER
    parts = b""
    while position < len(content):
        room = _BLOCK - position % _BLOCK
        if room < _HEADER:
            position += room
            continue

        length, kind = struct.unpack("<HB", content[position + 4 : position + _HEADER])
        position += _HEADER
        parts += content[position : position + length]
        position += length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""
