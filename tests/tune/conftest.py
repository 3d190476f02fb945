"""Studies of tiny runs."""

import csv
from pathlib import Path

import pytest
import yaml

from tests.conftest import PLUGIN
from tests.tiny_sweeps import write_tiny_run

PAUSING = '''
import os, time
from pathlib import Path
from edkd import signals
from edkd.distillers import Distiller, register

@register("PAUSING")
class Pausing(Distiller):
    """The student alone. It waits before its second epoch once the folder PAUSED exists."""

    needs_teacher = False

    def start_epoch(self, epoch):
        folder = os.environ.get("PAUSED")
        is_paused = epoch == 2 and folder and Path(folder).exists()
        while is_paused and not signals.exit_code():
            Path("waits").touch()
            time.sleep(0.05)

    def losses(self, student, teacher, batch):
        return {}
'''


@pytest.fixture
def write(tmp_path, monkeypatch):
    """write(**keys) -> the file of a study of `narrow` alone, changed by keys; see `tiny.yaml`."""
    write_tiny_run(tmp_path, "tiny.yaml", "pausing,narrow", PAUSING, monkeypatch)

    def write(**keys):
        content = {
            "config": "tiny.yaml",
            "plugins": [str(PLUGIN), "pausing.py"],
            "search": {"SOLVER.LR": {"low": 0.01, "high": 1, "log": True}},
            "trials": 3,
            "halving": False,
            "val_split": 0.2,
            "seeds": [1, 2],
        }
        file = tmp_path / "s.yaml"
        file.write_text(yaml.safe_dump(content | keys, sort_keys=False))
        return file

    return write


@pytest.fixture
def study(tmp_path) -> Path:
    """The folder of the study s.yaml."""
    return tmp_path / "output" / "tune" / "s"


@pytest.fixture
def tune(tool):
    """tune(file, *options) -> the outcome of the command in this process, which must not fail."""

    def run(file, *options):
        done = tool("tune", file, "--device", "cpu", *options)
        assert done.code == 0, done.err
        return done

    return run


def trials(study: Path) -> list[dict[str, str]]:
    """The lines of `trials.csv`."""
    with open(study / "trials.csv", newline="") as file:
        return list(csv.DictReader(file))
