"""The configuration keys of a sweep, and their values as on a command line."""

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edkd.engine.config.scalars import Scalar, shown
from edkd.errors import UserError

Options = dict[str, str]
"""Values by configuration keys, as on a command line."""

SEED = "SOLVER.SEED"

SEED_IN_TEXT = "{seed}"
"""Within a value: stands for the seed of the run."""


def words_of(options: Mapping[str, str]) -> list[str]:
    """Options as the words of a command line."""
    return [f"{key}={text}" for key, text in options.items()]


def wrong(path: Path, name: str, expected: str, value: Any) -> UserError:
    """The error for a value of the file that is of another kind."""
    return UserError(f"{path}: {name} must be {expected}, not {shown(value)}")


def variants_of(path: Path, overrides: Any) -> list[Options]:
    """Each combination of the values.

    Args:
        path: for messages.
        overrides: lists of values by keys; or a list of such groups, whose combinations follow one
            another.
    """
    groups = overrides if isinstance(overrides, list) else [overrides]
    variants: list[Options] = []

    for group in groups:
        leaves = _each_once(path, "overrides", group)
        choices = {key: _choices(path, key, value) for key, value in leaves.items()}
        for values in itertools.product(*choices.values()):
            variant = dict(zip(choices, values, strict=True))
            variants.append(variant)
    return variants or [{}]


def _choices(path: Path, key: str, value: Any) -> list[str]:
    where = f"overrides: {key}"
    if not isinstance(value, list):
        return [text_of(path, where, value)]
    if not value:
        raise wrong(path, where, "a list of values, as [1, 2]", value)
    return [text_of(path, where, item) for item in value]


def options_of(path: Path, group: Any) -> Options:
    """The values of `set`."""
    leaves = _each_once(path, "set", group)
    return {key: text_of(path, f"set: {key}", value) for key, value in leaves.items()}


def _each_once(path: Path, name: str, group: Any) -> dict[str, Any]:
    """The values of a group by full keys, none of which it has in two forms."""
    found: dict[str, Any] = {}
    for key, value in _leaves(path, name, group):
        if key in found:
            raise UserError(f"{path}: {name}: the key {key} is written twice; remove one of them")
        found[key] = value
    return found


def _leaves(path: Path, name: str, group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a group by full keys: `SOLVER.LR: 1` may be written `SOLVER: {LR: 1}`."""
    if not isinstance(group, dict):
        raise wrong(path, name, "keys and values", group)
    for key, value in group.items():
        if isinstance(value, dict):
            yield from _leaves(path, name, value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def text_of(path: Path, where: str, value: Any) -> str:
    """A value as on a command line.

    Args:
        path: for messages.
        where: in that file.
        value: parsed content.

    Raises:
        UserError: it is a group of keys.
    """
    if isinstance(value, Scalar):
        return value.text
    if not isinstance(value, list):
        raise wrong(path, where, "a value, or a list of values", value)

    items = ",".join(_item_text(path, where, item) for item in value)
    return f"[{items}]"


def _item_text(path: Path, where: str, value: Any) -> str:
    is_text = isinstance(value, Scalar) and isinstance(value.value, str)
    return json.dumps(value.text) if is_text else text_of(path, where, value)


def seeded(path: Path, options: Options, seed: int | None) -> Options:
    """The options of a run with its seed."""
    if seed is not None:
        filled = {key: text.replace(SEED_IN_TEXT, str(seed)) for key, text in options.items()}
        return {**filled, SEED: str(seed)}

    for key, text in options.items():
        if SEED_IN_TEXT in text:
            raise UserError(
                f"{path}: {key} contains {SEED_IN_TEXT}, but the file has no seeds; add them, as "
                "seeds: [1, 2, 3]"
            )
    return options
