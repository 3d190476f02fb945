"""The message for a key that is not in the table: what may be meant."""

from collections.abc import Sequence

from edkd.engine.config.table import Keys
from edkd.hints import closest
from edkd.known_elsewhere import RENAMED, key_note
from edkd.registry import METHODS

_TEMPERATURE = {"T", "TEMPERATURE"}
"""Published methods call the temperature by one of these names."""


def unknown_key(part: str, prefix: str, keys: Keys, source: str) -> str:
    """The message for an unknown key.

    Args:
        part: the last part of its name.
        prefix: the group before it, with a dot: "SOLVER."; "" for none.
        keys: the table.
        source: file or command line.
    """
    name = f"{prefix}{part}"
    message = f"unknown key {name} ({source})"
    members = members_of(keys, prefix)

    # A name of an earlier version?
    if name in RENAMED:
        return f"{message}; it is now {RENAMED[name]}"

    # A name of another system?
    known = [f"{prefix}{member}" for member in members]
    all_known = f"known here: {', '.join(known)}"
    note = key_note(name)
    if note:
        return f"{message}{note}; {all_known}"

    # A typing error in the last part?
    near = closest(part, members) or _synonym(part, members)
    if near:
        return f"{message}, did you mean '{prefix}{near}'?"

    # A key of another group?
    elsewhere = _in_other_groups(part, prefix, keys)
    if elsewhere:
        return f"{message}, did you mean {' or '.join(elsewhere)}?"
    return f"{message}; {all_known}"


def members_of(keys: Keys, prefix: str) -> list[str]:
    """The keys and groups directly within a group, by their last parts.

    Args:
        keys: the table.
        prefix: the group, with a dot at its end; "" for the outermost groups.
    """
    found: dict[str, None] = {}
    for name in keys:
        if name.startswith(prefix):
            inside = name.removeprefix(prefix)
            found[inside.split(".")[0]] = None
    return list(found)


def _synonym(part: str, members: Sequence[str]) -> str:
    """The temperature of a group under its other name, or ""."""
    for name in members:
        if {name, part.upper()} == _TEMPERATURE:
            return name
    return ""


def _in_other_groups(part: str, prefix: str, keys: Keys) -> list[str]:
    """The keys of this last part, in quotes.

    Keys of methods are left out where a group was given: the user did not mean a method.
    """
    left_out: list[str] = []
    if prefix:
        left_out = [f"{METHODS.node_of(entry)}." for entry in METHODS.entries()]

    found = []
    for name in keys:
        last = name.rpartition(".")[2]
        if last == part and not name.startswith(tuple(left_out)):
            found.append(f"'{name}'")
    return found
