"""Data sets, one file each. A new file in this folder is found automatically."""

import importlib
import pkgutil

from edkd.dataset._base import (
    REPLACE,
    DataSet,
    Loader,
    NumberedLoader,
    dataset_dict,
    get_dataset,
    large_batch,
    register,
)

for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "REPLACE",
    "DataSet",
    "Loader",
    "NumberedLoader",
    "dataset_dict",
    "get_dataset",
    "large_batch",
    "register",
]
