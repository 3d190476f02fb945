"""What sweeps and studies of tiny runs need in their folder."""

from pathlib import Path

import yaml

from tests.conftest import CHECKOUT


def write_tiny_run(folder: Path, file: str, tag: str, method: str, monkeypatch) -> None:
    """Write a configuration of three epochs of `narrow` alone, and go to its folder.

    Args:
        folder: of the configuration, and of the method's `pausing.py`.
        file: of the configuration.
        tag: EXPERIMENT.TAG.
        method: Python code that registers PAUSING.
    """
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(folder)
    (folder / "pausing.py").write_text(method)

    config = {
        "EXPERIMENT": {"TAG": tag, "PROJECT": "p"},
        "DATASET": {"TYPE": "tiny"},
        "DISTILLER": {"TYPE": "PAUSING", "STUDENT": "narrow", "TEACHER": "wide"},
        "SOLVER": {"EPOCHS": 3, "LR_DECAY_STAGES": [1, 2], "BATCH_SIZE": 8, "AMP": "off"},
        "LOG": {"WANDB": False, "TENSORBOARD_FREQ": 0},
    }
    (folder / file).write_text(yaml.safe_dump(config))
