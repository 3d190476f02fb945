"""Folders of configurations, data sets and downloaded weights, and paths as users see them."""

import os
import re
import shutil
from pathlib import Path

from edkd.errors import UserError

_CHECKOUT = Path(__file__).resolve().parents[1]

CONFIGS = _CHECKOUT / "configs"
"""The YAML files of a checkout; an installed package has none."""


def _data_root() -> Path:
    if root := os.environ.get("EDKD_DATA_ROOT"):
        return Path(root).expanduser()
    return _CHECKOUT if CONFIGS.is_dir() else Path.cwd()


DATA_ROOT = _data_root()
"""Holds data/ and download_ckpts/.

EDKD_DATA_ROOT of the environment, else the checkout, else the current folder.
"""

_VARIABLE = re.compile(r"\$(?:(\w+)|\{([^{}]*)\})")


def expanded(path: str, name: str) -> str:
    """A path in which ~ and environment variables, as $HOME or ${HOME}, are replaced.

    A path that exists as it is written keeps its dollar signs.

    Args:
        path: as the user wrote it.
        name: of what has this value, for messages: "LOG.PREFIX".

    Raises:
        UserError: a variable is not set, or is empty; or no file can have this name.
    """
    if not can_be_path(path):
        raise UserError(f"{name} is {path[:200]!r}, which no file can be called; correct the path")
    if "$" in path and not os.path.lexists(path):
        path = _VARIABLE.sub(lambda match: _value_of(match, path, name), path)
    if os.name == "nt":  # %USERPROFILE%
        path = os.path.expandvars(path)
    return os.path.expanduser(path)


def shipped(path: Path) -> Path:
    """The checkout's own file where a path such as configs/digits/... is not in this folder."""
    own = CONFIGS.parent / path
    is_own = not path.is_absolute() and path.parts[:1] == (CONFIGS.name,)
    return own if is_own and os.path.isfile(own) and not os.path.lexists(path) else path


def short_path(path: Path) -> Path:
    """A path as it is seen from the current folder; as it is where that does not hold it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def free_bytes(folder: Path) -> int:
    """Free space of the disk of a folder, which need not exist."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def can_be_path(text: str) -> bool:
    """Whether the system takes a text as the name of a file, which may not exist."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _value_of(match: re.Match[str], path: str, name: str) -> str:
    variable = match[1] or match[2] or ""
    value = os.environ.get(variable, "")
    if not value:
        raise UserError(
            f"{name} is {path!r}, but the environment variable {variable} is not set; set it, or "
            "write the path in full"
        )
    return value
