"""Data sets, one file each. A new file in this folder is found automatically."""

from edkd.dataset._base import (
    STOP,
    DataSet,
    Loader,
    NumberedLoader,
    dataset_dict,
    get_dataset,
    large_batch,
    register,
)
from edkd.registry import DATASETS, import_files

import_files(__name__, __path__, DATASETS)

__all__ = [
    "STOP",
    "DataSet",
    "Loader",
    "NumberedLoader",
    "dataset_dict",
    "get_dataset",
    "large_batch",
    "register",
]
