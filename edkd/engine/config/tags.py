"""The tag of a run, which begins with the method in the files of configs/: "kd,res56,res20"."""

from edkd.distillers import SEPARATOR, find_method
from edkd.errors import UserError
from edkd.registry import METHODS


def retagged(tag: str, before: str, now: str) -> str:
    """The tag of a run whose method the command line has changed.

    "kd,res56,res20" becomes "mykd,res56,res20"; a tag that does not begin with the method stays.

    Args:
        tag: of the YAML file.
        before: the DISTILLER.TYPE of that file.
        now: that of the command line.
    """
    if before.lower() == now.lower() or not names_method(tag, before):
        return tag

    _, sign, networks = tag.partition(",")
    return f"{now.lower()}{sign}{networks}"


def names_method(tag: str, method: str) -> bool:
    """Whether a tag begins with a method's name, or with that of the file which defines it."""
    return tag.partition(",")[0].lower() in _words(method)


def is_same_tag(first: str, second: str) -> bool:
    """Whether two tags are equal, or differ only in the methods that they begin with."""
    if first == second:
        return True
    if not _begins_with_methods(first) or not _begins_with_methods(second):
        return False
    return first.partition(",")[2] == second.partition(",")[2]


def _begins_with_methods(tag: str) -> bool:
    known: set[str] = set()
    for entry in METHODS.entries():
        known |= _words(entry.name)

    first = tag.partition(",")[0].lower()
    return known.issuperset(first.split(SEPARATOR))


def _words(method: str) -> set[str]:
    """A method's name, and that of the file which defines it: "none" and "vanilla"."""
    try:
        module = find_method(method).__module__
    except UserError:  # a file may name a method whose plugin was not given
        module = ""
    return {method.lower(), module.rpartition(".")[2]}
