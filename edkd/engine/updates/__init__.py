"""Update rules, one file each. A new file in this folder is found automatically."""

import importlib
import pkgutil

from edkd.engine.update import Update, find_update
from edkd.registry import UPDATES

for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")

register = UPDATES.register

__all__ = ["Update", "find_update", "register"]
