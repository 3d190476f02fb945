"""What a sweep writes about its runs, and processes that the system does not start."""

import csv
import errno
import os

import pytest

from edkd.errors import StorageError
from edkd.sweep import states
from edkd.sweep.job import Job, Outcome, attempt
from edkd.sweep.plan import plan
from edkd.sweep.running import Progress
from tests.conftest import PLUGIN


def test_results_are_read_once_and_no_folder_is_locked(write, tool, monkeypatch):
    """A process that locks its folder at that moment would be refused."""
    sweep = plan(str(write(seeds=[1, 2, 3])))
    words = ["--plugin", PLUGIN, "--plugin", "pausing.py", "--cfg", "alone.yaml"]
    assert tool("train", *words, "SOLVER.SEED=1").code == 0
    assert tool("train", *words, "SOLVER.SEED=2", "SOLVER.EPOCHS=1").code == 0
    states.make_folder(sweep.folder)

    read = []
    read_run = states.read_run
    monkeypatch.setattr(states, "read_run", lambda folder: read.append(folder) or read_run(folder))
    monkeypatch.setattr(states, "is_in_use", lambda folder: pytest.fail("a lock was taken"))
    progress = Progress(sweep, "cpu", print)
    progress.skipped.append(3)
    progress.write()
    path = progress.write()

    lines = list(csv.DictReader(path.read_text().splitlines()))
    assert [line["state"] for line in lines] == ["finished", "started", "in use"]
    assert read.count(sweep.runs[0].folder) == 1


def test_a_run_that_leaves_no_result(write, capsys):
    sweep = plan(str(write()))
    states.make_folder(sweep.folder)
    progress = Progress(sweep, "cpu", print)
    progress.ended(sweep.runs[0], Outcome(0), "1 s")
    text = "no result of all epochs is in output/p/alone"
    assert capsys.readouterr().out.endswith(f"failed (exit code 0): {text}\n")
    assert progress.errors == {1: text}


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EMFILE, errno.ENOSPC])
@pytest.mark.parametrize("fails", ["subprocess.Popen", "pathlib.Path.mkdir"])
def test_a_process_that_the_system_does_not_start(tmp_path, monkeypatch, fails, code):
    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fails, refuse)
    job = Job(("train",), str(tmp_path), "run", "logs/1.log", {})
    with pytest.raises(StorageError) as raised:
        attempt(job, os.environ)
    assert f"{tmp_path}/logs/1.log ({os.strerror(code)}); free disk space" in str(raised.value)
