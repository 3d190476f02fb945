"""A configuration without the engine, and a small image folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from yacs.config import CfgNode

from edkd.dataset._base import KEYS as SHARED
from edkd.dataset.folder_views import KEYS as VIEWS
from edkd.dataset.strong import KEYS as STRONG

KEYS = SHARED | STRONG | VIEWS
SOLVER = {"SOLVER.BATCH_SIZE": 64, "SOLVER.SEED": 1}


def make_config(**changes: Any) -> CfgNode:
    """The defaults of DATASET.* and what else data sets read; `TEST__BATCH_SIZE=5` changes one."""
    cfg = CfgNode()
    for name, value in {**{key: own.default for key, own in KEYS.items()}, **SOLVER}.items():
        *nodes, last = name.split(".")
        node = cfg
        for part in nodes:
            node = node.setdefault(part, CfgNode())
        node[last] = value

    for name, value in changes.items():
        *nodes, last = name.split("__")
        node = cfg
        for part in nodes:
            node = node[part]
        assert last in node
        node[last] = value
    return cfg


@pytest.fixture(scope="session")
def config() -> Callable[..., CfgNode]:
    """config(DATASET__TYPE="digits", ...) -> a configuration."""
    return make_config


@pytest.fixture(scope="session")
def pristine_folder(tmp_path_factory) -> Path:
    """Two classes, 6 + 2 images of 64x64 each, one of them grayscale; not to be changed."""
    from PIL import Image

    root = tmp_path_factory.mktemp("folder")
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", 6), ("val", 2)):
        for name in ("n01", "n02"):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(256, (64, 64, 3), generator=generator, dtype=torch.uint8)
                image = Image.fromarray(pixels.numpy())
                image = image.convert("L") if number == 0 else image
                image.save(root / part / name / f"{number}.png")
    return root


@pytest.fixture
def folder(pristine_folder, tmp_path) -> Path:
    """A copy of that folder."""
    import shutil

    return shutil.copytree(pristine_folder, tmp_path / "images")
