"""Folders of configurations, data sets and downloaded weights."""

import os
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[1]

CONFIGS = _CHECKOUT / "configs"
"""The YAML files of a checkout; an installed package has none."""


def _data_root() -> Path:
    if root := os.environ.get("EDKD_DATA_ROOT"):
        return Path(root).expanduser()
    return _CHECKOUT if CONFIGS.is_dir() else Path.cwd()


DATA_ROOT = _data_root()
"""Holds data/ and download_ckpts/.

EDKD_DATA_ROOT of the environment, else the checkout, else the current folder.
"""
