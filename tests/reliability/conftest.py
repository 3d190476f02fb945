"""What the tests of reliability share: a short and a full form, the figures that they print, and a run on digits."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from edkd.engine.checkpoint import load_checkpoint, save_checkpoint
from edkd.models import get_model

FULL = os.environ.get("EDKD_RELIABILITY") == "full"
FIGURES: dict[str, list[str]] = {}
STEPS = 9  # in an epoch of `words`


@pytest.fixture(scope="session")
def extent() -> Callable:
    """extent(short, full): the one in CI, the other in `make reliability`."""
    return lambda short, full: full if FULL else short


@pytest.fixture(scope="session")
def figure() -> Callable[[str, str], None]:
    """figure("R5", "0 of 1220 damaged checkpoints believed"): a line of the table at the end of the session."""
    return lambda name, text: FIGURES.setdefault(name, []).append(text)


def pytest_terminal_summary(terminalreporter):
    if FIGURES:
        terminalreporter.section(f"reliability, {'full' if FULL else 'short'} form")
        for name in sorted(FIGURES, key=lambda name: int(name[1:])):
            for text in FIGURES[name]:
                terminalreporter.line(f"| {name} | {text} |")


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> Path:
    """The weights of a resnet14 for ten classes, never trained."""
    path = tmp_path_factory.mktemp("teacher") / "resnet14"
    torch.manual_seed(0)
    save_checkpoint({"model": get_model("cifar", "resnet14", 10).state_dict()}, path)
    return path


@pytest.fixture
def words(tmp_path, teacher) -> list[str]:
    """The words of a command line that trains on digits for three epochs of 9 steps; the run's name comes after them."""
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


def outcome(folder: Path):
    """What two runs must have in common, bit by bit: figures, weights and the state of the optimizer."""
    state = load_checkpoint(folder / "latest")
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    figures = [{key: value for key, value in record.items() if "seconds" not in key} for record in records]
    slots = [value for slot in state["optimizer"]["state"].values() for value in slot.values()]
    tensors = [*state["model"].values(), *slots]
    return figures, [tensor.tolist() if isinstance(tensor, torch.Tensor) else tensor for tensor in tensors]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, and what it holds."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
