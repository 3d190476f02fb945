"""The name of a run's folder, which every file system can hold."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from yacs.config import CfgNode

from edkd.engine.config.command_line import pairs
from edkd.engine.config.compare import flatten, may_change
from edkd.engine.config.table import table
from edkd.engine.config.tags import names_method
from edkd.keys import Key

_UNSAFE = re.compile(r"[^\w.,+\-\[\]]+")
"""What a value in a name must not contain."""

_FORBIDDEN = re.compile(r'[<>:"|?*\\\x00-\x1f\x7f]')
"""Characters that no file name has on Windows, or on a USB stick."""

_RESERVED = re.compile(r"(CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(?:COM|LPT)[0-9¹²³]) *(?=\.|$)", re.I)
"""Names of devices on Windows, with any ending."""

_END = re.compile(r"[. ]+$")
"""Dots and blanks that Windows drops from the end of a name."""


def run_name(cfg: CfgNode, opts: Sequence[str] = ()) -> str:
    """<NAME or TAG>[,KEY=VALUE...], in the portable form.

    The pairs are those of the command line whose keys name a run and may not change on --resume.
    The method is left out where the tag begins with it. An EXPERIMENT.NAME on the command line is
    the whole name.
    """
    name = cfg.EXPERIMENT.NAME or cfg.EXPERIMENT.TAG
    if "EXPERIMENT.NAME" in dict(pairs(opts)):
        return portable(name)

    keys = table()
    values = dict(flatten(cfg))
    has_method = not cfg.EXPERIMENT.NAME and names_method(name, cfg.DISTILLER.TYPE)

    parts = [name] if name else []
    for key in _naming_keys(opts, keys):
        is_in_tag = has_method and key == "DISTILLER.TYPE"
        if not is_in_tag and not may_change(key, keys.get(key), cfg):
            parts.append(f"{key}={_shown(values[key])}")
    return portable(",".join(parts))


def old_names(tag: str, opts: Sequence[str]) -> Iterator[str]:
    """The names that earlier versions gave to the run of a command line.

    Args:
        tag: NAME or TAG of that run.
        opts: the command line.
    """
    given = dict(pairs(opts))
    if "EXPERIMENT.NAME" in given:
        yield tag
        return

    naming = _naming_keys(opts, table())
    for sign in "=:":
        parts = [f"{key}{sign}{_UNSAFE.sub('_', given[key])}" for key in naming]
        yield ",".join([tag, *parts])


def portable(name: str) -> str:
    """A name without what Windows or a FAT file system cannot hold; "/" separates folders."""
    return "/".join(_portable_part(part) for part in name.split("/"))


def _portable_part(part: str) -> str:
    if part in (".", ".."):  # other code refuses them
        return part
    part = _FORBIDDEN.sub("_", part)
    part = _END.sub(lambda match: "_" * len(match[0]), part)
    return _RESERVED.sub(r"\1_", part, count=1) if _RESERVED.match(part) else part


def _naming_keys(opts: Sequence[str], keys: Mapping[str, Key]) -> list[str]:
    return [key for key in dict(pairs(opts)) if key in keys and keys[key].names_run]


def _shown(value: Any) -> str:
    """A value as it was read: SOLVER.SEED 010 is 10."""
    if isinstance(value, float):
        value = repr(value).removesuffix(".0")
    if isinstance(value, (list, tuple)):
        value = f"[{','.join(map(_shown, value))}]"
    return _UNSAFE.sub("_", str(value))
