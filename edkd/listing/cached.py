"""Records of what is registered, kept in a file as long as no file of the package changes.

To import all methods and models takes seconds, which a shell must not wait for.
"""

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edkd.signals import hold
from edkd.whole_files import replace_file

Record = dict[str, Any]
"""The fields of one thing that is listed."""

PACKAGE = Path(__file__).resolve().parents[1]

LIBRARIES = ("torchvision", "timm")
"""Packages whose models are listed."""


def records_of(kind: str, plugins: Sequence[str] = ()) -> list[Record]:
    """The records of a kind, see `registered`.

    Args:
        kind: "methods", "models", "datasets", "updates" or "keys".
        plugins: files that register more; then nothing is kept.
    """
    return _all(plugins)[kind]


def cache_file() -> Path | None:
    """Where the records are kept: below XDG_CACHE_HOME, or the user's folder for caches.

    None for a user without a home, as that of some containers; then nothing is kept.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or "~/.cache"
    try:
        return Path(home).expanduser() / "edkd" / "names.json"
    except RuntimeError:
        return None


def _all(plugins: Sequence[str]) -> dict[str, list[Record]]:
    if plugins:
        return _registered(plugins)

    path = cache_file()
    if path is None:
        return _registered(())

    state = _state()
    kept = _read(path, state)
    if kept is not None:
        return kept
    found = _registered(())
    _write(path, state, found)
    return found


def _registered(plugins: Sequence[str]) -> dict[str, list[Record]]:
    with hold():  # a signal must not interrupt the import of torch, which takes seconds
        from edkd.listing.registered import registered

        return registered(plugins)


def _state() -> str:
    """A hash that changes with every file of the package, and with the libraries of models."""
    digest = hashlib.sha256(sys.version.encode())
    for path in sorted(PACKAGE.rglob("*.py")):
        found = path.stat()
        digest.update(f"{path} {found.st_size} {found.st_mtime_ns}".encode())
    for name in LIBRARIES:
        digest.update(f"{name} {_version_of(name)}".encode())
    return digest.hexdigest()


def _version_of(name: str) -> str:
    """Where a library is, and when it was installed; "" where it is not."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        return ""
    return f"{spec.origin} {os.stat(spec.origin).st_mtime_ns}"


def _read(path: Path, state: str) -> dict[str, list[Record]] | None:
    """The records that were kept; None where there are none of this state."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content["records"] if content["state"] == state else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _write(path: Path, state: str, records: dict[str, list[Record]]) -> None:
    """Keep the records; where that fails, the next call computes them again."""
    content = json.dumps({"state": state, "records": records})
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content.encode())
