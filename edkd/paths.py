"""Where data sets and downloaded weights lie."""

import os
from pathlib import Path


def _data_root() -> Path:
    if root := os.environ.get("EDKD_DATA_ROOT"):
        return Path(root).expanduser()
    checkout = Path(__file__).resolve().parents[1]
    return checkout if (checkout / "configs").is_dir() else Path.cwd()


DATA_ROOT = _data_root()
"""Holds data/ and download_ckpts/: EDKD_DATA_ROOT of the environment, else the checkout, else the current folder."""
