"""status.json: what it says, and that it can neither delay nor end a run."""

import json
import os
import threading
import time

import pytest

from edkd.engine.log.status_file import StatusFile, end_of
from edkd.engine.log.time_left import TimeLeft
from edkd.errors import NonFiniteError
from edkd.signals import Stopped
from tests.processes import wait_for

ABOUT = {"method": "KD", "student": ["resnet8"]}


@pytest.fixture
def make(tmp_path, monkeypatch):
    """make(history): a status file of 2 epochs of 10 steps, which is written every 10 ms."""
    monkeypatch.setattr(StatusFile, "EVERY", 0.01)

    def make(history=()):
        return StatusFile(tmp_path, ABOUT, history, TimeLeft(history, 2, 20), 0)

    return make


def read(folder):
    return json.loads((folder / "status.json").read_text())


def test_it_follows_the_run(make, tmp_path):
    history = []
    status = make(history)
    status.start()
    wait_for((tmp_path / "status.json").exists)
    first = read(tmp_path)
    assert (first["step"], first["epochs_done"], first["end"]) == (0, 0, None)
    assert (first["method"], first["epochs"]) == ("KD", 2)
    assert first["pid"] == os.getpid()

    status.show("teacher cache 3/20")
    wait_for(lambda: read(tmp_path)["doing"] == "teacher cache 3/20")
    status.advance(10)
    history.append({"epoch": 1, "test_top1": 40.0, "train_seconds": 30.0})
    wait_for(lambda: read(tmp_path)["epochs_done"] == 1)
    now = read(tmp_path)
    assert (now["step"], now["doing"], now["steps_per_epoch"]) == (10, "", 10)
    assert (now["last_top1"], now["split"], now["seconds_left"]) == (40.0, "test", 30.0)
    assert first["last_sign"] <= now["last_sign"] <= now["written"]

    status.close(None)
    assert read(tmp_path)["end"] == {"state": "finished", "reason": "", "exit_code": 0}
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


@pytest.mark.parametrize(
    ("error", "state", "reason", "code"),
    [
        (Stopped(15), "stopped", "by a signal", 130),
        (NonFiniteError("loss is nan"), "failed", "loss is nan", 3),
        (KeyError("x"), "failed", "KeyError: 'x'", 1),
    ],
)
def test_how_a_run_ended(error, state, reason, code):
    assert end_of(error) == {"state": state, "reason": reason, "exit_code": code}


def test_a_folder_that_cannot_be_written_costs_nothing(make, tmp_path):
    (tmp_path / ".status.json.partial").mkdir()
    status = make()
    status.start()
    status.advance(1)
    status.close(None)
    assert not (tmp_path / "status.json").exists()


def test_a_disk_that_hangs_delays_the_end_only_shortly(make, monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(StatusFile, "CLOSE", 0.1)
    monkeypatch.setattr(StatusFile, "_write", lambda self: released.wait(30))
    status = make()
    status.start()

    begin = time.monotonic()
    status.advance(1)
    assert time.monotonic() - begin < 1
    status.close(None)
    assert time.monotonic() - begin < 15
    released.set()


def test_without_a_further_thread_the_run_goes_on(make, tmp_path, monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    status = make()
    status.start()
    status.advance(1)
    status.close(None)
    assert not list(tmp_path.iterdir())
