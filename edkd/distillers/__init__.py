"""Distillation methods, one file each. A new file in this folder is found by itself."""

import importlib
import pkgutil

from edkd.distillers._base import Distiller, distiller_dict, register
from edkd.distillers.dkd import dkd_loss
from edkd.distillers.dml import dml_loss
from edkd.distillers.edkd import edkd_loss
from edkd.distillers.kd import kd_loss

for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Distiller", "distiller_dict", "dkd_loss", "dml_loss", "edkd_loss", "kd_loss", "register"]
