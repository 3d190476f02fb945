"""Runs of the documented commands on digits."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from edkd.engine.checkpoint import save_checkpoint
from edkd.models import get_model
from tests.conftest import Outcome
from tests.runs import CHECKOUT

DIGITS = CHECKOUT / "configs" / "digits"
ALONE = "vanilla/resnet8.yaml"


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> Path:
    """Weights of a resnet8 for the digits, never trained; a resnet20 would take longer."""
    path = tmp_path_factory.mktemp("teacher") / "student_best"
    torch.manual_seed(0)
    save_checkpoint({"model": get_model("cifar", "resnet8", 10).state_dict()}, path)
    return path


@pytest.fixture
def train(tool, tmp_path, teacher) -> Callable[..., Outcome]:
    """Train on digits: train("edkd/res20_res8.yaml", name, KEY, VALUE, ...); see `folder`."""

    def run(config: str, name: str, *opts: object) -> Outcome:
        words = ["LOG.WANDB", "False", "SOLVER.BATCH_SIZE", "128", "SOLVER.AMP", "off"]
        words += ["SOLVER.SCHEDULE", "step"]
        words += ["LOG.PREFIX", tmp_path / "o", "EXPERIMENT.NAME", name]
        if config != ALONE:
            words += ["DISTILLER.TEACHER", "resnet8", "DISTILLER.TEACHER_CKPT", teacher]
            words += ["DISTILLER.CHECK_TEACHER", "False"]
        return tool("train", "--cfg", DIGITS / config, *words, *opts)

    return run


@pytest.fixture
def folder(tmp_path) -> Path:
    """The folder of the runs of `train`."""
    return tmp_path / "o" / "digits"
