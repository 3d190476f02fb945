"""Update rules, one file each. A new file in this folder is found automatically."""

from edkd.engine.update import Update, find_update
from edkd.registry import UPDATES, import_files

import_files(__name__, __path__, UPDATES)

register = UPDATES.register

__all__ = ["Update", "find_update", "register"]
