"""Data sets, one file each. A new file in this folder is found by itself."""

import importlib
import pkgutil
from typing import Any

import torch

from edkd.dataset._base import Batch, DataSet, Loader, NumberedLoader, dataset_dict, large_batch, register

for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")


def get_dataset(cfg: Any, device: torch.device) -> DataSet:
    """Load DATASET.TYPE; raises UserError where the data are absent or damaged."""
    return dataset_dict[cfg.DATASET.TYPE].load(cfg, device)


__all__ = [
    "Batch",
    "DataSet",
    "Loader",
    "NumberedLoader",
    "dataset_dict",
    "get_dataset",
    "large_batch",
    "register",
]
