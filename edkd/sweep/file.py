"""Reading the file of a sweep: its keys, their types, and the files that it names."""

import glob
import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from edkd.engine.config.scalars import Scalar, plain, shown
from edkd.engine.config.strict_yaml import read_file
from edkd.errors import UserError
from edkd.hints import hint
from edkd.paths import CONFIGS, expanded, shipped

Options = dict[str, str]
"""Values by configuration keys, as on a command line."""

KEYS = ("configs", "seeds", "overrides", "set", "plugins", "resources", "retries")


class Resources(NamedTuple):
    """What a run occupies on a Ray cluster."""

    gpus: float | None = None
    """None: the file does not name it."""
    cpus: float = 1


class SweepFile(NamedTuple):
    """The content of the file."""

    path: Path
    configs: list[str]
    """Paths of YAML files that exist."""
    seeds: list[int]
    """Empty: the seed of each configuration."""
    variants: list[Options]
    """Each combination of `overrides`; one without options where there are none."""
    fixed: Options
    """Options of all runs."""
    plugins: list[str]
    resources: Resources
    retries: int


def read_sweep(file: str) -> SweepFile:
    """Read the file of a sweep.

    Raises:
        UserError: it is absent or not valid, has an unknown key or a value of a wrong type, or
            names a file that does not exist.
    """
    path = shipped(Path(expanded(file, "FILE")))
    content = read_file(path, str(path))
    for key in content:
        if key not in KEYS:
            raise UserError(
                f"{path}: unknown key {key!r}{hint(key, KEYS)} (known: {', '.join(KEYS)}); "
                "configuration keys belong into set or overrides"
            )

    return SweepFile(
        path,
        _files(path, "configs", content),
        _seeds(path, content.get("seeds", [])),
        _variants(path, content.get("overrides", {})),
        dict(_options(path, "set", content.get("set", {}))),
        _files(path, "plugins", content) if "plugins" in content else [],
        _resources(path, content.get("resources", {})),
        _retries(path, content.get("retries", Scalar("0", 0))),
    )


# Files.


def _files(path: Path, key: str, content: Mapping[str, Any]) -> list[str]:
    """The files that a list of names and patterns stands for, each once."""
    names = plain(content.get(key))
    names = [names] if isinstance(names, str) else names
    is_list = isinstance(names, list) and all(isinstance(name, str) and name for name in names)
    if not is_list or not names:
        raise UserError(f"{path}: {key} must be a list of files, not {shown(names)}")

    found: dict[str, None] = {}
    for name in names:
        found.update(dict.fromkeys(_matches(path, key, name)))
    return list(found)


def _matches(path: Path, key: str, name: str) -> list[str]:
    """The files of a pattern: beside the sweep's file, else in the working folder, else shipped."""
    pattern = expanded(name, f"{path}: {key}")
    folders = [path.parent, Path()]
    if Path(pattern).parts[0] == CONFIGS.name:
        folders.append(CONFIGS.parent)

    for folder in folders:
        if (folder / pattern).exists():
            return [str(folder / pattern)]
        matches = glob.glob(os.path.join(glob.escape(str(folder)), pattern), recursive=True)
        files = [os.path.normpath(match) for match in sorted(matches)]
        files = [file for file in files if not os.path.basename(file).startswith("_")]
        if files:
            return files
    raise UserError(
        f"{path}: {key}: no file {name}; it is looked for beside this file and in the working "
        f"folder {os.getcwd()}"
    )


# Configuration keys.


def _variants(path: Path, overrides: Any) -> list[Options]:
    """Each combination of the values.

    Args:
        path: for messages.
        overrides: lists of values by keys; or a list of such groups, whose combinations follow one
            another.
    """
    groups = overrides if isinstance(overrides, list) else [overrides]
    variants: list[Options] = []
    for group in groups:
        choices = dict(_leaves(path, "overrides", group))
        lists = [_choices(path, key, value) for key, value in choices.items()]
        for values in itertools.product(*lists):
            variants.append(dict(zip(choices, values, strict=True)))
    return variants


def _choices(path: Path, key: str, value: Any) -> list[str]:
    if not isinstance(value, list):
        return [_text(value)]
    if not value:
        raise UserError(f"{path}: overrides: {key} has no values; write a list, as [1, 2]")
    return [_text(item) for item in value]


def _options(path: Path, name: str, group: Any) -> Iterator[tuple[str, str]]:
    for key, value in _leaves(path, name, group):
        yield key, _text(value)


def _leaves(path: Path, name: str, group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a group by full keys: `SOLVER.LR: 1` may be written `SOLVER: {LR: 1}`."""
    if not isinstance(group, dict):
        raise UserError(f"{path}: {name} must be keys and values, not {shown(group)}")
    for key, value in group.items():
        if isinstance(value, dict):
            yield from _leaves(path, name, value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _text(value: Any) -> str:
    """A value as on a command line."""
    if isinstance(value, list):
        return f"[{','.join(map(_item_text, value))}]"
    return value.text


def _item_text(value: Any) -> str:
    is_text = isinstance(value, Scalar) and isinstance(value.value, str)
    return json.dumps(value.text) if is_text else _text(value)


# Numbers.


def _seeds(path: Path, value: Any) -> list[int]:
    seeds = plain(value)
    if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds):
        raise UserError(f"{path}: seeds must be a list of whole numbers, not {shown(value)}")
    return list(dict.fromkeys(seeds))


def _retries(path: Path, value: Any) -> int:
    retries = plain(value)
    if type(retries) is not int or not 0 <= retries <= 100:
        raise UserError(f"{path}: retries must be a number from 0 to 100, not {shown(value)}")
    return retries


def _resources(path: Path, value: Any) -> Resources:
    numbers = plain(value)
    if not isinstance(numbers, dict):
        raise UserError(f"{path}: resources must be as {{gpus: 0.5, cpus: 2}}, not {shown(value)}")
    for name, number in numbers.items():
        if name not in Resources._fields:
            near = hint(name, Resources._fields)
            raise UserError(f"{path}: resources: unknown key {name!r}{near} (known: gpus, cpus)")
        _check_amount(path, name, number)
    return Resources(**numbers)


def _check_amount(path: Path, name: str, number: Any) -> None:
    """Ray takes fractions up to 1 and whole numbers above."""
    is_number = type(number) in (int, float) and math.isfinite(number)
    if not is_number or number < 0 or (number > 1 and number != int(number)):
        raise UserError(
            f"{path}: resources: {name} must be a fraction up to 1, or a whole number, not "
            f"{shown(number)}"
        )
