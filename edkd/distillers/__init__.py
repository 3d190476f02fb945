"""Distillation methods, one file each. A new file in this folder is found automatically."""

import functools
import importlib
import pkgutil

from edkd.distillers._base import (
    Distiller,
    check_terms,
    construct,
    distiller_dict,
    register,
    uses_published_style,
)
from edkd.distillers._combined import SEPARATOR, Combined, combine
from edkd.distillers.dkd import dkd_loss
from edkd.distillers.dml import dml_loss
from edkd.distillers.edkd import edkd_loss
from edkd.distillers.kd import kd_loss
from edkd.registry import METHODS

for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")


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
    "canonical_name",
    "check_terms",
    "construct",
    "distiller_dict",
    "dkd_loss",
    "dml_loss",
    "edkd_loss",
    "find_method",
    "kd_loss",
    "method_names",
    "register",
    "uses_published_style",
]
