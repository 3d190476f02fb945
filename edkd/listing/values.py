"""The values of a configuration that a list shows, read as `load_config` reads them.

Nothing here imports torch, so that no names of methods or models are checked.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edkd.engine.config.scalars import Scalar, plain, shown
from edkd.engine.config.strict_yaml import BASE, read_file
from edkd.errors import UserError
from edkd.paths import expanded

Values = dict[str, Any]
"""Values by full keys."""

METHOD = "DISTILLER.TYPE"
TEACHER = "DISTILLER.TEACHER"
STUDENT = "DISTILLER.STUDENT"
DATASET = "DATASET.TYPE"
EPOCHS = "SOLVER.EPOCHS"
UPDATE = "SOLVER.TRAINER"

KEYS = (METHOD, TEACHER, STUDENT, DATASET, EPOCHS, UPDATE)
"""What is read of a file."""

_GROUPS = {key.partition(".")[0] for key in KEYS}


class Reader:
    """Reads configurations; a file that several ones are based on is read once."""

    def __init__(self) -> None:
        self._read: dict[str, Values] = {}

    def values(self, path: Path, where: str, above: tuple[str, ...] = ()) -> Values:
        """The values of a file, on top of those of the file that it is based on.

        Args:
            path: of the file.
            where: how messages name it.
            above: real paths of the files that are based on this one.

        Raises:
            UserError: a file is absent or not valid, or one of these values is of another type.
        """
        real = os.path.realpath(path)
        if real in above:
            raise UserError(f"{where}: the file is based on itself; remove one {BASE} of the chain")

        if real not in self._read:
            self._read[real] = self._merged(path, where, (*above, real))
        return self._read[real]

    def _merged(self, path: Path, where: str, above: tuple[str, ...]) -> Values:
        content = read_file(path, where)
        base = content.pop(BASE, None)
        own = _own(content, where)
        if base is None:
            return own

        name = _text(BASE, base, where)
        place = f"{where}: {BASE} {name}"
        below = self.values(path.parent / expanded(name, place), place, above)
        return below | own


def _own(content: Mapping[str, Any], where: str) -> Values:
    """The values of one file, where `SOLVER: {EPOCHS: 1}` may be written `SOLVER.EPOCHS: 1`."""
    found: Values = {}
    for key, value in _leaves(content, where):
        if key in found:
            raise UserError(f"{where}: the key {key} is written twice; remove one of them")
        found[key] = _typed(key, value, where)
    return found


def _leaves(content: Mapping[str, Any], where: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The parsed values by full keys; a group without content has none."""
    for part, value in content.items():
        key = f"{prefix}{part}"
        if key in KEYS:
            yield key, value
        elif key not in _GROUPS:
            continue
        elif isinstance(value, dict):
            yield from _leaves(value, where, f"{key}.")
        elif plain(value) is not None:
            raise UserError(f"{where}: {key} is a group of keys, not {shown(value)}")


def _typed(key: str, value: Any, where: str) -> Any:
    if key == EPOCHS:
        return _whole(key, value, where)
    if key == TEACHER and isinstance(value, list):
        return [_text(key, item, where) for item in value]
    return _text(key, value, where)


def _whole(key: str, value: Any, where: str) -> int:
    number = plain(value)
    if type(number) is not int:
        raise UserError(f"{where}: {key} must be a whole number, not {shown(value)}")
    return number


def _text(key: str, value: Any, where: str) -> str:
    """Text as it was written, as 007."""
    if not isinstance(value, Scalar):
        raise UserError(f"{where}: {key} must be one name, not {shown(value)}")
    return value.text
