"""Distillation methods, one file each. A new file in this folder is found automatically."""

import functools

from edkd.distillers._base import (
    Distiller,
    check_first_terms,
    check_switches,
    check_terms,
    checked_groups,
    construct,
    distiller_dict,
    evaluation_logits,
    networks_of,
    prepare_batch,
    register,
    uses_published_style,
)
from edkd.distillers._combined import SEPARATOR, Combined, combine
from edkd.distillers._contract import explained
from edkd.distillers._head import find_classifier
from edkd.distillers._layout import to_channels_last
from edkd.distillers._split import Split
from edkd.distillers.dkd import dkd_loss
from edkd.distillers.dml import dml_loss
from edkd.distillers.edkd import edkd_loss
from edkd.distillers.kd import kd_loss
from edkd.registry import METHODS, import_files

import_files(__name__, __path__, METHODS)


def method_names() -> list[str]:
    """The registered methods."""
    return METHODS.names()


def find_method(name: str) -> type[Distiller]:
    """The class of a DISTILLER.TYPE: a registered method, or several as in "KD+DKD".

    Raises:
        UserError: a name is unknown, or methods cannot be combined.
    """
    names = name.split(SEPARATOR)
    if len(names) == 1:
        return METHODS.find(name).value
    entries = [METHODS.find(part) for part in names]
    return _combined(tuple((entry.name, entry.value) for entry in entries))


def canonical_name(name: str) -> str:
    """A DISTILLER.TYPE in the case in which its methods are registered."""
    return SEPARATOR.join(METHODS.find(part).name for part in name.split(SEPARATOR))


@functools.cache
def _combined(methods: tuple[tuple[str, type[Distiller]], ...]) -> type[Distiller]:
    """Made once for the same names and classes; a class that was defined again makes a new one."""
    return combine([name for name, _ in methods])


__all__ = [
    "Combined",
    "Distiller",
    "Split",
    "canonical_name",
    "check_first_terms",
    "check_switches",
    "check_terms",
    "checked_groups",
    "construct",
    "distiller_dict",
    "dkd_loss",
    "dml_loss",
    "edkd_loss",
    "evaluation_logits",
    "explained",
    "find_classifier",
    "find_method",
    "kd_loss",
    "method_names",
    "networks_of",
    "prepare_batch",
    "register",
    "to_channels_last",
    "uses_published_style",
]
