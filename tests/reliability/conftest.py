"""Runs for the tests of reliability: tiny ones, and in the full form digits and real networks."""

from pathlib import Path

import pytest
import torch

from edkd.engine.checkpoint import save_checkpoint
from edkd.models import get_model
from tests.conftest import FORM


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
        *("DISTILLER.TEACHER_CKPT", str(teacher), "DISTILLER.CHECK_TEACHER", "False"),
        "EXPERIMENT.NAME",
    ]


@pytest.fixture
def words(tiny, digits) -> list[str]:
    """Those of `tiny`; in the full form, those of `digits`. Both have the same steps."""
    return digits if FORM == "full" else tiny


@pytest.fixture
def train(tool, words):
    """train("a", KEY, VALUE, ...): that command in this process; the run is tmp_path/distill/a."""
    return lambda name, *opts: tool("train", *words, name, *opts)
