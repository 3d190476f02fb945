"""Runs for the tests of reliability: tiny ones, and in the full form digits and real networks."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from edkd.engine.checkpoint import save_checkpoint
from edkd.models import get_model
from tests.conftest import FORM, PLUGIN


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> Path:
    """Weights of a resnet14 for ten classes, never trained."""
    path = tmp_path_factory.mktemp("teacher") / "resnet14"
    torch.manual_seed(0)
    save_checkpoint({"model": get_model("cifar", "resnet14", 10).state_dict()}, path)
    return path


@pytest.fixture
def digits(tmp_path, teacher) -> list[str]:
    """The words that train on digits for three epochs of 9 steps; the name follows."""
    return [
        *(
            "DATASET.TYPE",
            "digits",
            "DISTILLER.TEACHER",
            "resnet14",
            "DISTILLER.STUDENT",
            "resnet8",
        ),
        *("SOLVER.EPOCHS", "3", "SOLVER.LR_DECAY_STAGES", "[1,2]", "SOLVER.BATCH_SIZE", "100"),
        *("LOG.WANDB", "False", "LOG.TENSORBOARD_FREQ", "0", "LOG.PREFIX", str(tmp_path)),
        *("DISTILLER.TEACHER_CKPT", str(teacher), "EXPERIMENT.NAME"),
    ]


@pytest.fixture
def words(tiny, digits) -> list[str]:
    """Those of `tiny`; in the full form, those of `digits`. Both have the same steps."""
    return digits if FORM == "full" else tiny


@pytest.fixture
def train(tool, words):
    """train("a", KEY, VALUE, ...): that command in this process; the run is tmp_path/distill/a."""
    return lambda name, *opts: tool("train", *words, name, *opts)


@pytest.fixture
def image_folder(tmp_path, tiny) -> list[str]:
    """The words that train for two epochs of 3 steps on a folder of 12 images."""
    generator = torch.Generator().manual_seed(0)
    size = 64 if FORM == "full" else 12
    for part in ("train", "val"):
        for i in range(12):
            shape = (size, size, 3)
            pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
            folder = tmp_path / "images" / part / f"n0{i % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")

    kind = ["DATASET.TYPE", "tiny_folder", "DISTILLER.STUDENT", "narrow", "SOLVER.AMP", "off"]
    if FORM == "full":
        kind = ["DATASET.TYPE", "tiny_imagenet", "DISTILLER.STUDENT", "ShuffleV2"]
    return [
        *("--plugin", str(PLUGIN), *kind, "DATASET.ROOT", str(tmp_path / "images")),
        *("SOLVER.BATCH_SIZE", "4", "SOLVER.EPOCHS", "2"),
        *("LOG.WANDB", "False", "LOG.TENSORBOARD_FREQ", "0", "LOG.PREFIX", str(tmp_path)),
        "EXPERIMENT.NAME",
    ]
