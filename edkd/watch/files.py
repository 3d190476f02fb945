"""Reads the files of a run, which another process may be writing, or which may be damaged."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edkd.watch.status import is_possible

_UNREADABLE = (OSError, ValueError, OverflowError, RecursionError)

_MALFORMED_YAML = (LookupError, TypeError, AttributeError)
"""What PyYAML raises for values that contradict their tags, as `!!bool x`."""

Content = dict[str, Any]


class Files:
    """The files of a run. What is absent or damaged reads as empty.

    Args:
        folder: of the run.

    Attributes:
        damaged: names of the files that are there and could not be read, or have impossible
            numbers.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.damaged: list[str] = []

    def json(self, name: str) -> Content:
        """A file that holds a mapping in JSON."""
        return self._mapping(name, json.loads)

    def yaml(self, name: str) -> Content:
        """A file that holds a mapping in YAML."""
        return self._mapping(name, _load_yaml)

    def records(self, name: str) -> list[Content]:
        """The lines of a file that hold a mapping in JSON each; others are left out."""
        lines = self.text(name).splitlines()
        try:
            found = json.loads(f"[{','.join(lines)}]")  # one call takes half the time
        except _UNREADABLE:
            self.note(name)
            found = [_record(line) for line in lines]
        return [record for record in found if isinstance(record, dict)]

    def text(self, name: str) -> str:
        """A text file."""
        try:
            return (self.folder / name).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        except OSError:
            self.note(name)
            return ""

    def changed(self, *names: str) -> float | None:
        """When the last of some files was changed, as a Unix time; None where there is none."""
        times = []
        for name in names:
            try:
                times.append(os.stat(self.folder / name).st_mtime)
            except OSError:
                continue
        return max(times, default=None)

    def _mapping(self, name: str, load: Callable[[str], Any]) -> Content:
        text = self.text(name)
        if not text:
            return {}
        try:
            content = load(text)
        except _UNREADABLE:
            content = None
        if isinstance(content, dict) and all(map(is_possible, content.values())):
            return content
        self.note(name)
        return {}

    def note(self, name: str) -> None:
        """Note that a file is damaged."""
        if name not in self.damaged:
            self.damaged.append(name)


def _record(line: str) -> Any:
    """A line in JSON; None where it is damaged."""
    try:
        return json.loads(line)
    except _UNREADABLE:
        return None


def _load_yaml(text: str) -> Any:
    """Plain values of a YAML file; the loader never runs code from it."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast
    try:
        return yaml.load(text, Loader=loader)
    except (yaml.YAMLError, *_MALFORMED_YAML) as error:
        raise ValueError(str(error)) from None
