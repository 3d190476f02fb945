"""Reading the file of a sweep: its keys, their types, and the files that it names."""

import glob
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edkd.engine.config.scalars import Scalar, plain
from edkd.engine.config.strict_yaml import read_file
from edkd.errors import UserError
from edkd.hints import unknown
from edkd.paths import CONFIGS, expanded, shipped
from edkd.sweep.options import Options, options_of, variants_of, wrong

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
    path, content = content_of(file, KEYS, "set or overrides")
    return SweepFile(
        path,
        files_of(path, "configs", content),
        _seeds(path, content.get("seeds", [])),
        variants_of(path, content.get("overrides", {})),
        options_of(path, content.get("set", {})),
        files_of(path, "plugins", content) if "plugins" in content else [],
        _resources(path, content.get("resources", {})),
        _retries(path, content.get("retries", Scalar("0", 0))),
    )


def content_of(file: str, keys: Sequence[str], groups: str) -> tuple[Path, Mapping[str, Any]]:
    """The path and the content of a file of a sweep or a study.

    Args:
        file: as on the command line.
        keys: that it may have.
        groups: the keys of it that hold configuration keys, for messages.

    Raises:
        UserError: it is absent or not valid, or has an unknown key.
    """
    path = shipped(Path(expanded(file, "FILE")))
    content = read_file(path, str(path))
    for key in content:
        if key not in keys:
            raise UserError(
                f"{path}: {unknown('key', key, keys)}; configuration keys belong into {groups}"
            )
    return path, content


# Files.


def files_of(path: Path, key: str, content: Mapping[str, Any]) -> list[str]:
    """The files that a list of names and patterns stands for, each once.

    Args:
        path: of the file with the list.
        key: of the list.
        content: of that file.

    Raises:
        UserError: it is no such list, or one of the files does not exist.
    """
    names = plain(content.get(key))
    if not isinstance(names, list) or not names:
        raise wrong(path, key, "a list of files", names)

    found: dict[str, None] = {}
    for name in names:
        if not isinstance(name, str) or not name:
            raise wrong(path, key, "names of files", name)
        found.update(dict.fromkeys(_matches(path, key, name)))
    return list(found)


def _matches(path: Path, key: str, name: str) -> list[str]:
    """The files of a pattern: beside the sweep's file, else in the working folder, else shipped."""
    pattern = expanded(name, f"{path}: {key}")
    folders = [path.parent, Path()]
    if Path(pattern).parts[:1] == (CONFIGS.name,):
        folders.append(CONFIGS.parent)

    for folder in folders:
        single = folder / pattern
        if _is_file(single):
            return [str(single)]

        inside = os.path.join(glob.escape(str(folder)), pattern)
        matches = sorted(glob.glob(inside, recursive=True))
        files = [Path(match) for match in matches if _is_file(Path(match))]
        shown_files = [str(file) for file in files if not file.name.startswith("_")]
        if shown_files:
            return shown_files
    raise UserError(
        f"{path}: {key}: no file {name}; it is looked for beside this file and in the working "
        f"folder {os.getcwd()}"
    )


def _is_file(path: Path) -> bool:
    """Whether something other than a folder is there, as a file or a pipe."""
    return os.path.exists(path) and not os.path.isdir(path)


# Numbers.


def _seeds(path: Path, value: Any) -> list[int]:
    seeds = plain(value)
    if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds):
        raise wrong(path, "seeds", "a list of whole numbers", value)
    return list(dict.fromkeys(seeds))


def _retries(path: Path, value: Any) -> int:
    retries = plain(value)
    if type(retries) is not int or not 0 <= retries <= 100:
        raise wrong(path, "retries", "a number from 0 to 100", value)
    return retries


def _resources(path: Path, value: Any) -> Resources:
    numbers = plain(value)
    if not isinstance(numbers, dict):
        raise wrong(path, "resources", "as {gpus: 0.5, cpus: 2}", value)
    for name, number in numbers.items():
        if name not in Resources._fields:
            raise UserError(f"{path}: resources: {unknown('key', name, Resources._fields)}")
        _check_amount(path, name, number)
    return Resources(**numbers)


def _check_amount(path: Path, name: str, number: Any) -> None:
    """Ray takes fractions up to 1 and whole numbers above; a run uses one GPU at most."""
    is_number = type(number) in (int, float) and math.isfinite(number) and number >= 0
    is_allowed = is_number and (number <= 1 or number == int(number))
    if not is_allowed:
        expected = "a fraction up to 1, or a whole number"
        raise wrong(path, f"resources: {name}", expected, number)
    if name == "gpus" and number > 1:
        raise wrong(path, "resources: gpus", "at most 1, as a run uses one GPU", number)
