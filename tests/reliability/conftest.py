"""What the tests of reliability share: runs on digits and on a folder of images."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from edkd.engine.checkpoint import save_checkpoint
from edkd.models import get_model


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> Path:
    """The weights of a resnet14 for ten classes, never trained."""
    path = tmp_path_factory.mktemp("teacher") / "resnet14"
    torch.manual_seed(0)
    save_checkpoint({"model": get_model("cifar", "resnet14", 10).state_dict()}, path)
    return path


@pytest.fixture
def words(tmp_path, teacher) -> list[str]:
    """The words that train on digits for three epochs of 9 steps; the name of the run comes after them."""
    return [
        *("DATASET.TYPE", "digits", "DISTILLER.TEACHER", "resnet14", "DISTILLER.STUDENT", "resnet8"),
        *("SOLVER.EPOCHS", "3", "SOLVER.LR_DECAY_STAGES", "[1,2]", "SOLVER.BATCH_SIZE", "100"),
        *("LOG.WANDB", "False", "LOG.TENSORBOARD_FREQ", "0", "LOG.PREFIX", str(tmp_path)),
        *("DISTILLER.TEACHER_CKPT", str(teacher), "EXPERIMENT.NAME"),
    ]


@pytest.fixture
def train(tool, words):
    """train("a", KEY, VALUE, ...): that command in this process; the run lies in tmp_path/distill/a."""
    return lambda name, *opts: tool("train", *words, name, *opts)


@pytest.fixture
def image_folder(tmp_path) -> list[str]:
    """The words that train ShuffleV2 alone for two epochs of 3 steps on a folder of 12 images."""
    generator = torch.Generator().manual_seed(0)
    for part in ("train", "val"):
        for i in range(12):
            pixels = torch.randint(256, (64, 64, 3), generator=generator, dtype=torch.uint8).numpy()
            folder = tmp_path / "images" / part / f"n0{i % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return [
        *("DATASET.TYPE", "tiny_imagenet", "DATASET.ROOT", str(tmp_path / "images"), "DISTILLER.STUDENT", "ShuffleV2"),
        *("SOLVER.BATCH_SIZE", "4", "SOLVER.EPOCHS", "2", "LOG.WANDB", "False", "LOG.PREFIX", str(tmp_path)),
    ]
