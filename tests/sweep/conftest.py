"""Sweeps of tiny runs."""

import pytest
import yaml

from tests.conftest import PLUGIN
from tests.tiny_sweeps import write_tiny_run

PAUSING = '''
import os, signal, time
from pathlib import Path
from edkd import signals
from edkd.distillers import Distiller, register

@register("PAUSING")
class Pausing(Distiller):
    """The student alone. Before its second epoch, it waits for a file, or dies once."""

    needs_teacher = False

    def start_epoch(self, epoch):
        go = os.environ.get("GO")
        while epoch == 2 and go and not Path(go).exists() and not signals.exit_code():
            time.sleep(0.05)
        died = os.environ.get("DIED")
        if epoch == 2 and died and not Path(died).exists():
            Path(died).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def losses(self, student, teacher, batch):
        return {}
'''


@pytest.fixture
def write(tmp_path, monkeypatch):
    """write(**keys) -> a file of a sweep over three epochs of `narrow` alone, changed by keys."""
    write_tiny_run(tmp_path, "alone.yaml", "alone", PAUSING, monkeypatch)

    def write(**keys):
        plugins = [str(PLUGIN), "pausing.py"]
        content = {"configs": ["alone.yaml"], "plugins": plugins} | keys
        file = tmp_path / "s.yaml"
        file.write_text(yaml.safe_dump(content, sort_keys=False))
        return file

    return write


@pytest.fixture
def runs(tmp_path):
    """The folder of the runs."""
    return tmp_path / "output" / "p"


@pytest.fixture
def undisturbed(tool, tmp_path, monkeypatch):
    """undisturbed(*opts) -> the outcome of the same run in this process, never stopped."""
    from tests.runs import outcome

    def run(*opts):
        for name in ("GO", "DIED"):
            monkeypatch.delenv(name, raising=False)
        words = ["--plugin", PLUGIN, "--plugin", "pausing.py", "--cfg", "alone.yaml"]
        done = tool("train", *words, *opts, "EXPERIMENT.NAME=alone", "LOG.PREFIX=other")
        assert done.code == 0, done.err
        return outcome(tmp_path / "other" / "p" / "alone")

    return run
